"""A comparison as one Markdown and one HTML table, with curves; the page runs no script and fetches nothing.

In: a `Comparison`: what was asked, what has finished, what failed. Out: compare.md and compare.html, replaced
by one rename each. Called by `lab.compare` after every finished run, so that an interrupted comparison has
its results so far.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.arms import Arm
from lab.bootstrap import REPLICATES, Interval
from lab.contrast import Row, contrast
from lab.results import CURVES, LEADING, RunResult
from rollouts.files import write_bytes_atomic
from viewer.report import html_page
from viewer.svg import NUM_COLOURS, Chart, Line, line_chart
from viewer.text import MISSING, escape, format_number, format_share, one_line

_PANELS: Final = (
    ("reward", "Reward (mean per completion)", False),
    ("token entropy", "Token entropy at temperature 1 (nats per token)", False),
    ("format entropy", "Format entropy (nats)", False),
    (LEADING, "Share of the leading format", True),
    ("KL to base", "KL to base (k3 estimate, nats per token)", False),
)
_HEADINGS: Final = (
    *("metric", "arm", "seeds", "mean", "bootstrap 95 %"),
    *("difference to control", "bootstrap 95 %", "t over seeds 95 %"),
)
_FEW_SEEDS: Final = 6
_MAX_VALUE_CHARS: Final = 60
_MAX_COMMAND_CHARS: Final = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The state of a comparison. `failures` maps (arm, seed) to the reason."""

    command: Sequence[str]
    arms: Sequence[Arm]
    num_seeds: int
    pass_at: Sequence[int]
    results: Sequence[RunResult]
    failures: Mapping[tuple[str, int], str]

    @property
    def missing(self) -> list[tuple[str, int]]:
        """Runs that have neither finished nor failed, in their order."""
        known = {(each.arm, each.seed) for each in self.results} | set(self.failures)
        wanted = [(arm.name, seed) for seed in range(self.num_seeds) for arm in self.arms]
        return [run for run in wanted if run not in known]

    def rows(self) -> tuple[Row, ...]:
        """The table, without metrics that no arm has."""
        rows = contrast(self.results, [arm.name for arm in self.arms], self.pass_at, self.rescored)
        known = {row.metric.name for row in rows if not math.isnan(row.value)}
        return tuple(row for row in rows if row.metric.name in known)

    @property
    def rescored(self) -> list[str]:
        """The arms whose reward is another quantity than control's, so that a difference means nothing."""
        return [arm.name for arm in self.arms if arm.is_rescored]


def write_pages(folder: Path, comparison: Comparison) -> None:
    """Write compare.md and compare.html into `folder`."""
    rows = comparison.rows()
    write_bytes_atomic(folder / "compare.md", markdown(comparison, rows).encode("utf-8"))
    write_bytes_atomic(folder / "compare.html", page(comparison, rows).encode("utf-8"))


# -- text of both pages --------------------------------------------------------------------------------------


def _state(comparison: Comparison) -> list[str]:
    """Sentences on the runs that have finished, are missing, or failed."""
    done = len(comparison.results)
    total = comparison.num_seeds * len(comparison.arms)
    sentences = [
        f"{len(comparison.arms)} arms, {comparison.num_seeds} "
        f"{'seed' if comparison.num_seeds == 1 else 'seeds'}: {done} of {total} runs have finished."
    ]
    if comparison.missing:
        sentences.append("Still missing: " + ", ".join(_name(*run) for run in comparison.missing) + ".")
    sentences += [
        f"Failed: {_name(*run)}: {one_line(reason, 300)}" for run, reason in comparison.failures.items()
    ]
    return sentences


def _name(arm: str, seed: int) -> str:
    return f"{arm} seed {seed}"


def _remarks(comparison: Comparison, rows: Sequence[Row]) -> list[str]:
    """How to read the table."""
    prompts = len(comparison.results[0].prompts) if comparison.results else 0
    last = comparison.results[0].num_last if comparison.results else 0
    sentences = [
        "Means over seeds. Reward, pass@k, formats, and the entropies of answers, formats and strategies are "
        f"of the held-out evaluation after the last step ({prompts} prompts); token entropy (temperature 1), "
        f"KL to base and metrics named area/name are means over the last {last} training steps.",
        f"Bootstrap: percentile intervals of {REPLICATES:,} replicates with a fixed seed, resampling seeds "
        "and prompts (the same for both arms of a difference); token entropy and KL exist once per run, so "
        "there only seeds.",
    ]
    seeds = {len(row.seeds) for row in rows} | {len(row.shared_seeds) for row in rows if row.shared_seeds}
    if 1 in seeds:
        sentences.append(
            "With one seed the bootstrap resamples prompts only: it does not show how much seeds differ."
        )
    if any(1 < number < _FEW_SEEDS for number in seeds):
        sentences.append(
            "With so few seeds the bootstrap interval is too narrow: it underestimates the spread over "
            "seeds. Prefer the t interval over the seeds' paired differences (- if they are all equal), "
            "which takes the prompts as given."
        )
    if others := comparison.rescored:
        sentences.append(
            f"Scored by other scorers or models than control: {', '.join(others)}. Their reward is another "
            "quantity, and their formats, strategies and right answers are those of their own scorers."
        )
    if unknown := _never_recorded(comparison.results):
        sentences.append(
            f"Not recorded by any run: {', '.join(unknown)}. metrics.jsonl of a run has the names."
        )
    return sentences


def _never_recorded(results: Sequence[RunResult]) -> list[str]:
    """Metrics that were asked for and that no run has a value of, as of a name with a typing error."""
    values: dict[str, list[float]] = {}
    for result in results:
        for name, value in result.last.items():
            values.setdefault(name, []).append(value)
    return sorted(name for name in values.keys() - CURVES.keys() if not any(map(math.isfinite, values[name])))


def _cells(row: Row) -> tuple[str, ...]:
    show = format_share if row.metric.percent else format_number
    name = row.metric.name + (f" ({row.metric.unit})" if row.metric.unit else "")

    def signed(value: float) -> str:
        if not math.isfinite(value):
            return MISSING
        if row.metric.percent:
            return f"{100 * value:+.1f} points"
        return f"+{show(value)}" if value > 0 else show(value)

    def span(interval: Interval | None, sign: bool) -> str:
        if interval is None:
            return MISSING
        if sign and row.metric.percent:
            return f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}"
        return " to ".join((signed if sign else show)(value) for value in (interval.low, interval.high))

    return (
        *(name, row.arm, str(len(row.seeds)), show(row.value), span(row.interval, False)),
        *(signed(row.difference), span(row.bootstrap, True), span(row.t, True)),
    )


def change_text(pair: tuple[object, object]) -> str:
    """A setting of an arm, and control's."""
    before, after = (MISSING if value is None else one_line(str(value), _MAX_VALUE_CHARS) for value in pair)
    return f"{after} (control: {before})"


# -- Markdown ------------------------------------------------------------------------------------------------


def markdown(comparison: Comparison, rows: Sequence[Row]) -> str:
    """The table with what it takes to read it."""
    lines = ["# Comparison", "", f"    {one_line(shlex.join(comparison.command), _MAX_COMMAND_CHARS)}", ""]
    lines += [f"- {_plain(line)}" for line in _state(comparison)]
    lines += ["", "| arm | setting | value |", "|---|---|---|"]
    for arm in comparison.arms:
        for key, pair in arm.told_changes().items():
            lines.append(f"| {_plain(arm.name)} | {_plain(key)} | {_plain(change_text(pair))} |")
    lines += ["", "| " + " | ".join(_HEADINGS) + " |", "|" + "---|" * len(_HEADINGS)]
    lines += ["| " + " | ".join(_plain(cell) for cell in _cells(row)) + " |" for row in rows]
    lines += ["", *(f"{_plain(line)}\n" for line in _remarks(comparison, rows))]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text for one cell or line of Markdown."""
    return one_line(text, 1000).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


# -- HTML ----------------------------------------------------------------------------------------------------


def page(comparison: Comparison, rows: Sequence[Row]) -> str:
    """The page: state, settings of the arms, table, curves."""
    state = "".join(f"<p>{escape(line)}</p>" for line in _state(comparison))
    command = f"<pre>{escape(shlex.join(comparison.command))}</pre>"
    remarks = "".join(f"<li>{escape(line)}</li>" for line in _remarks(comparison, rows))
    body = (
        f"<h1>Comparison of {len(comparison.arms)} arms</h1>{state}{command}"
        f"<section><h2>What the arms change</h2>{_settings(comparison)}</section>"
        f"<section><h2>What came of it</h2>{_table(rows)}"
        f'<div class="notes"><b>How to read it</b><ul>{remarks}</ul></div></section>'
        f'<section><h2>On the way</h2><div class="charts">{_charts(comparison)}</div></section>'
    )
    return html_page("polyphony comparison", body)


def _settings(comparison: Comparison) -> str:
    lines = [
        (arm.name, key, change_text(pair))
        for arm in comparison.arms
        for key, pair in arm.told_changes().items()
    ]
    return _html_table(("arm", "setting", "value"), lines, 0)


def _table(rows: Sequence[Row]) -> str:
    lines: list[tuple[str, ...]] = []
    for at, row in enumerate(rows):
        name, *others = _cells(row)
        same = at > 0 and rows[at - 1].metric.name == row.metric.name
        lines.append(("" if same else name, *others))
    return _html_table(_HEADINGS, lines, 2)


def _html_table(headings: Sequence[str], lines: Sequence[Sequence[str]], num_texts: int) -> str:
    """A table; columns from `num_texts` on hold numbers (0: none does)."""

    def kind(at: int) -> str:
        return "number" if num_texts and at >= num_texts else ""

    head = "".join(
        f'<th scope="col" class="{kind(at)}">{escape(name)}</th>' for at, name in enumerate(headings)
    )
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{kind(at)}">{escape(cell)}</td>' for at, cell in enumerate(line))
        + "</tr>"
        for line in lines
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _charts(comparison: Comparison) -> str:
    """A figure per curve: the mean over an arm's seeds, and a band from the lowest to the highest of them."""
    # The first ones, so that an arm keeps its colour in all charts and control is always among them.
    shown = [arm.name for arm in comparison.arms][:NUM_COLOURS]
    left_out = [arm.name for arm in comparison.arms][NUM_COLOURS:]
    remark = f" Not drawn: {', '.join(left_out)}." if left_out else ""
    steps = tuple(sorted({step for one in comparison.results for step in one.steps}))
    figures = []
    for curve, title, percent in _PANELS:
        lines = tuple(
            line
            for colour, arm in enumerate(shown)
            if (line := _line(comparison, arm, curve, steps, colour)) is not None
        )
        caption = f"Mean over seeds of the training rows; the band is from the lowest to the highest.{remark}"
        chart = Chart(title=title, steps=steps, lines=lines, floor=0.0, percent=percent)
        drawing = line_chart(chart) if lines else '<div class="empty">not recorded</div>'
        figures.append(
            f"<figure><h3>{escape(title)}</h3>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"
        )
    return "".join(figures)


def _line(comparison: Comparison, arm: str, curve: str, steps: Sequence[int], colour: int) -> Line | None:
    """None if no run of the arm has recorded the curve."""
    known = [
        dict(zip(one.steps, one.curves[curve], strict=True)) for one in comparison.results if one.arm == arm
    ]
    columns = [
        [value for values in known if math.isfinite(value := values.get(step, math.nan))] for step in steps
    ]
    if not any(columns):
        return None
    return Line(
        arm,
        tuple(math.fsum(column) / len(column) if column else math.nan for column in columns),
        colour,
        low=tuple(min(column, default=math.nan) for column in columns),
        high=tuple(max(column, default=math.nan) for column in columns),
    )
