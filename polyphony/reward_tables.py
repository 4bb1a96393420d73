"""What `polyphony rewards` shows: summaries, tables and JSON. In: scored completions. Out: lines of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev, quantiles
from typing import Final

from configs.bound import BoundEntry
from configs.kinds.scorers import ScorerCommon
from polyphony.reward_scoring import Measured, Scored
from rollouts.files import Json
from rollouts.records import Judgement
from viewer.text import MISSING, one_line

_ROWS_SHOWN: Final = 10
_TAGS_SHOWN: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What one scorer gave. `nulls` has for each status its count, `reasons` the detail of its first."""

    kind: str
    weight: float
    combine: str
    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    num_null: int
    ms_per_row: float
    nulls: dict[str, int]
    reasons: dict[str, str]
    tags: dict[str, dict[str, int]]
    num_stored: int
    """Completions that have a score of a scorer of this name from their run."""
    num_changed: int
    """Of these, how many have another score now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast one scorer is, with one replica."""

    kind: str
    concurrency: int
    num_rows: int
    rows_per_s: float
    group_p50_s: float
    group_p99_s: float
    null_share: float


def summary_of(
    entry: BoundEntry[ScorerCommon], name: str, scored: Sequence[Scored], seconds: float
) -> Summary:
    """The summary of the scorer `name`, which spent `seconds` on all of `scored`."""
    judgements = [row.judgements[name] for row in scored]
    known = [each.score for each in judgements if each.score is not None]
    nulls = [each for each in judgements if each.score is None]
    stored = [(row.stored[name], row.judgements[name].score) for row in scored if name in row.stored]
    tags: dict[str, Counter[str]] = {}
    for each in judgements:
        for tag, value in each.tags.items():
            tags.setdefault(tag, Counter())[value] += 1
    return Summary(
        kind=entry.kind_name,
        weight=entry.common.weight,
        combine=entry.common.combine,
        mean=fmean(known) if known else None,
        std=pstdev(known) if known else None,
        min=min(known, default=None),
        max=max(known, default=None),
        num_null=len(nulls),
        ms_per_row=1000.0 * seconds / len(scored),
        nulls=dict(sorted(Counter(str(each.status) for each in nulls).items())),
        # Reversed, so that the first of each status is the one that stays.
        reasons={str(each.status): each.detail for each in reversed(nulls)},
        tags={
            tag: dict(sorted(found.items(), key=lambda it: (-it[1], it[0]))) for tag, found in tags.items()
        },
        num_stored=len(stored),
        num_changed=sum(old != new for old, new in stored),
    )


def summary_lines(summaries: Mapping[str, Summary]) -> Iterator[str]:
    """A table of all scorers, then what is worth a line of each."""
    lines = [["scorer", "kind", "weight", "mean", "sd", "min", "max", "null", "ms/row"]]
    for name, each in summaries.items():
        weight = number(each.weight) if each.combine == "sum" else each.combine
        values = (number(value) for value in (each.mean, each.std, each.min, each.max))
        lines.append([name, each.kind, weight, *values, str(each.num_null), number(each.ms_per_row)])
    yield from table(lines)
    for name, each in summaries.items():
        for status, count in each.nulls.items():
            yield f"{name}: {count} {status}, the first: {one_line(each.reasons[status] or 'no reason', 200)}"
        for tag, counts in each.tags.items():
            shown = [f"{one_line(value, 40)} {count}" for value, count in counts.items()][:_TAGS_SHOWN]
            yield f"{name}: tag {one_line(tag, 40)}: {', '.join(shown)}"
        if each.num_stored:
            changed = f"{each.num_changed} of {each.num_stored} scores"
            yield f"{name}: {changed} differ from those that the run stored"


def row_lines(scored: Sequence[Scored]) -> Iterator[str]:
    """The first rows with their scores."""
    names = list(scored[0].sample.scores)  # in the order of the config
    lines = [["row", *names, "reward", "completion"]]
    for row in scored[:_ROWS_SHOWN]:
        scores = [_cell(row.judgements[name]) for name in names]
        text = one_line(row.sample.completion.text, 60)
        lines.append([one_line(row.place, 60), *scores, number(row.sample.reward), text])
    yield from table(lines)
    if len(scored) > _ROWS_SHOWN:
        yield f"and {len(scored) - _ROWS_SHOWN} more; --json FILE writes them all"


def _cell(judgement: Judgement) -> str:
    """A score with its tags, such as "0 wrong_answer"; `-` with the status if it is missing."""
    words = list(judgement.tags.values()) if judgement.score is not None else [str(judgement.status)]
    return " ".join([number(judgement.score), *(one_line(word, 20) for word in words)])


def as_json(row: Scored) -> dict[str, Json]:
    """A scored completion as JSON."""
    sample = row.sample
    return {
        "place": row.place,
        "prompt_id": row.prompt_id,
        "reward": sample.reward,
        "scores": dict(sample.scores),
        "score_status": dict(sample.score_status),
        "details": {name: each.detail for name, each in row.judgements.items() if each.detail},
        "tags": dict(sample.tags),
        "answer": sample.answer,
        "answer_ok": sample.answer_ok,
        "numbers": dict(sample.numbers),
        "texts": dict(sample.texts),
        "text": sample.completion.text,
    }


def speed_of(measured: Measured) -> Speed:
    """The speed of a scorer, from what was measured."""
    return Speed(
        kind=measured.entry.kind_name,
        concurrency=measured.entry.common.concurrency,
        num_rows=measured.num_rows,
        rows_per_s=measured.num_rows / measured.wall_s,
        group_p50_s=quantile(measured.group_s, 50),
        group_p99_s=quantile(measured.group_s, 99),
        null_share=measured.num_null / max(1, measured.num_rows),
    )


def speed_lines(speeds: Mapping[str, Speed]) -> Iterator[str]:
    """A table of all scorers."""
    lines = [["scorer", "kind", "rows/s", "p50 ms/group", "p99 ms/group", "null share"]]
    for name, each in speeds.items():
        times = (number(1000.0 * seconds) for seconds in (each.group_p50_s, each.group_p99_s))
        lines.append([name, each.kind, number(each.rows_per_s), *times, number(each.null_share)])
    yield from table(lines)


def quantile(values: Sequence[float], percent: int) -> float:
    """The percentile `percent` (1 to 99) by linear interpolation; 0 without values."""
    if len(values) < 2:
        return values[0] if values else 0.0
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def table(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of cells as columns of equal width."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()


def number(value: float | None) -> str:
    """Four significant digits; `-` for null."""
    return MISSING if value is None else f"{value:.4g}"
