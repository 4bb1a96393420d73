"""The same rows twice: as they were sampled, and with tokens of an environment put in between.

The inserted tokens have garbage: any id, no sampler's logprob, NaN and infinite scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from rollout_rows import make_group, make_sample

from actors.buffer import _index_of
from rollouts.records import Completion, Sample, Span
from rollouts.schema import group_to_batch, to_batch, validate
from trainer.model.rows import RankRows, read_rows, score_columns

T = TypeVar("T")

SCORES = ("proximal_logprobs", "ref_logprobs", "base_logprobs", "entropy", "entropy_t1", "policy_logprobs")
GARBAGE = (math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0)
ORIGINS = ("policy", "policy", "replay", "tempered", "sft")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of T tokens; `gaps` [T + 1] are how many tokens to insert before each of them and at the end."""

    num_tokens: int
    seed: int
    reward: float | None
    answer: str
    cut: bool
    gaps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """A step: rows as the buffer has them, its index, as a rank reads them, and what the rank scored."""

    batch: pa.RecordBatch
    index: pa.Table
    rank: RankRows
    scored: dict[str, list[np.ndarray]]
    columns: pa.Table


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[str, list[Row]]]:
    """Groups of one origin each; the first is of policy."""
    groups = []
    for origin in ("policy", *draw(st.lists(st.sampled_from(ORIGINS), max_size=3))):
        size = 1 if origin == "sft" else draw(st.integers(1, 3))
        groups.append((origin, [draw(_rows(origin)) for _ in range(size)]))
    return groups


@st.composite
def _rows(draw: st.DrawFn, origin: str) -> Row:
    num_tokens = draw(st.integers(1, 5))
    gap = st.sampled_from([0, 0, 1, 2])
    return Row(
        num_tokens=num_tokens,
        seed=draw(st.integers(0, 10**6)),
        reward=None if origin == "sft" else draw(st.sampled_from([0.0, 1.0, 1.0, 0.5, None])),
        answer=draw(st.sampled_from("34")),
        cut=draw(st.booleans()),
        gaps=tuple(draw(st.lists(gap, min_size=num_tokens + 1, max_size=num_tokens + 1))),
    )


def build(groups: Sequence[tuple[str, Sequence[Row]]], inserted: bool) -> Rows:
    """The step with or without the inserted tokens; the same otherwise."""
    batches, flat, number = [], [], 0
    for index, (origin, rows) in enumerate(groups):
        samples = []
        for row in rows:
            samples.append(make_row_sample(f"s{number}", origin, row, row.gaps if inserted else None))
            flat.append(row)
            number += 1
        batches.append(group_to_batch(make_group(index, tuple(samples)), "run"))
    batch = to_batch(pa.Table.from_batches(batches))
    validate(batch)
    rank = read_rows(batch, 0.7)
    scored = {name: [_scores(row, name, inserted) for row in flat] for name in SCORES}
    columns = pa.Table.from_batches([score_columns(rank, scored)])
    return Rows(batch, _index_of(batch), rank, scored, columns)


def make_row_sample(sample_id: str, origin: str, row: Row, gaps: tuple[int, ...] | None) -> Sample:
    """The row as a judged sample, with `gaps` if they are given."""
    rng = np.random.default_rng(row.seed)
    ids, logprobs = rng.integers(0, 9, row.num_tokens).tolist(), (-3 * rng.random(row.num_tokens)).tolist()
    starts = sorted({0, row.num_tokens // 2})
    plain = make_sample(sample_id, row.num_tokens, reward=row.reward)
    completion = replace(
        plain.completion,
        token_ids=tuple(ids),
        behavior_logprobs=tuple(logprobs),
        versions=tuple((start, 3 + start) for start in starts),
        finish_reason="length" if row.cut else "stop",
    )
    span = Span(label="answer", start=row.num_tokens - 1, end=row.num_tokens)
    found = replace(plain, origin=origin, completion=completion, answer=row.answer, spans=(span,))
    return found if gaps is None else _with_gaps(found, gaps, rng)


def _with_gaps(sample: Sample, gaps: Sequence[int], rng: np.random.Generator) -> Sample:
    old, places = sample.completion, places_of(gaps)

    def spread(values: Sequence[T], fill: Callable[[], T]) -> tuple[T, ...]:
        new = [fill() for _ in range(len(values) + sum(gaps))]
        for place, value in zip(places, values, strict=True):
            new[place] = value
        return tuple(new)

    completion: Completion = replace(
        old,
        token_ids=spread(old.token_ids, lambda: int(rng.integers(0, 99))),
        behavior_logprobs=spread(old.behavior_logprobs, lambda: float(rng.choice(GARBAGE))),
        loss_mask=spread([True] * len(old.token_ids), lambda: False),
        versions=tuple((places[start] if start else 0, version) for start, version in old.versions),
    )
    spans = tuple(Span(label=s.label, start=places[s.start], end=places[s.end - 1] + 1) for s in sample.spans)
    return replace(sample, completion=completion, spans=spans)


def places_of(gaps: Sequence[int]) -> list[int]:
    """Where the T tokens stand with the inserted ones between them."""
    return (np.cumsum(gaps)[:-1] + np.arange(len(gaps) - 1)).tolist()


def _scores(row: Row, name: str, inserted: bool) -> np.ndarray:
    """Random numbers of the row and the name; garbage at the inserted tokens."""
    rng = np.random.default_rng((row.seed, SCORES.index(name)))
    values = rng.random(row.num_tokens).astype(np.float32)
    values = values if name.startswith("entropy") else -3 * values
    if not inserted:
        return values
    spread = rng.choice(np.array(GARBAGE, np.float32), row.num_tokens + sum(row.gaps))
    spread[places_of(row.gaps)] = values
    return spread
