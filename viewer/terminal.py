"""One line per training step, for a log file or for a person watching.

In: the metrics of a step (`area/name` to float) and short messages.
Out: lines on a stream; without a terminal no escape codes and every value named, with one aligned, coloured
columns. Called by `polyphony train`. Never raises on odd text: a run must not die because of what it printed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text

from viewer.text import MISSING, clean, format_number, format_share, one_line

__all__ = ["StepReporter", "clean", "leading_format"]

_SHARE_PREFIX = "format/share/"
_TAG_WIDTH = 12
_WAIT_SHARE = 0.1
_LATENCY = "/latency_p99_s"
_HEADER_EVERY = 20
"""Rows between two repeats of the column names on a terminal."""


@dataclass(frozen=True, slots=True)
class _Column:
    """One value of a step. If the terminal is narrow, columns of the highest `rank` are left out first."""

    name: str
    heading: str
    width: int
    rank: int
    style: str
    show: Callable[[Mapping[str, float]], str]


def leading_format(metrics: Mapping[str, float]) -> tuple[str, float]:
    """The tag with the largest `format/share/<tag>` and that share; ("", nan) when no share was recorded.

    Equal shares go to the first tag in alphabetical order.
    """
    shares = {
        key.removeprefix(_SHARE_PREFIX): value
        for key, value in metrics.items()
        if key.startswith(_SHARE_PREFIX)
    }
    # Negative, so that one sort puts the largest share first and equal ones in alphabetical order.
    finite = sorted((-value, tag) for tag, value in shares.items() if math.isfinite(value))
    return (finite[0][1], -finite[0][0]) if finite else ("", math.nan)


def held_up_by(metrics: Mapping[str, float]) -> str:
    """ "waits 3.2 s for judge" if the step waited for scores for a tenth of its time; otherwise "".

    The scorer is the one whose groups took longest, the wait for a free place included.
    """
    waited, whole = (metrics.get(f"time/{name}_s", math.nan) for name in ("score", "step"))
    if not waited > _WAIT_SHARE * whole:  # false for NaN too
        return ""
    latest = {
        name.removeprefix("health/").removesuffix(_LATENCY): seconds
        + metrics.get(f"{name.removesuffix(_LATENCY)}/queue_s", 0.0)
        for name, seconds in metrics.items()
        if name.startswith("health/") and name.endswith(_LATENCY) and math.isfinite(seconds)
    }
    slowest = max(sorted(latest), key=latest.__getitem__, default="")
    return f"waits {format_number(waited)} s for {one_line(slowest, 40) if slowest else 'scores'}"


def _number(key: str) -> Callable[[Mapping[str, float]], str]:
    return lambda metrics: format_number(metrics.get(key, math.nan))


def _lead(metrics: Mapping[str, float]) -> str:
    tag, share = leading_format(metrics)
    return f"{one_line(tag, _TAG_WIDTH)} {format_share(share)}" if tag else MISSING


_COLUMNS = (
    _Column("reward", "reward", 7, 0, "bold green", _number("reward/mean")),
    _Column("entropy", "H token", 7, 1, "cyan", _number("entropy/token_mean")),
    _Column("format_entropy", "H format", 8, 2, "cyan", _number("entropy/format")),
    _Column("lead", "leading", _TAG_WIDTH + 5, 3, "yellow", _lead),
    _Column("kl_base", "KL base", 7, 4, "magenta", _number("kl/k3_policy_vs_base")),
    _Column("grad", "grad", 7, 7, "", _number("grad/norm")),
    _Column("mismatch", "mismatch", 8, 8, "", _number("mismatch/mean_abs_behavior_vs_proximal")),
    _Column("tok/s", "tok/s", 8, 6, "dim", _number("throughput/tokens_per_s")),
    _Column("s", "s", 6, 5, "dim", _number("time/step_s")),
)


class StepReporter:
    """Prints a run of `num_steps` steps on `stream`; a terminal gets colours, anything else plain text.

    `prefix` begins every line: which of several runs it is.
    """

    def __init__(self, num_steps: int, stream: TextIO, prefix: str = "") -> None:
        if num_steps < 0:
            raise ValueError(f"num_steps must be 0 or more, got {num_steps}")
        self._num_steps, self._prefix = num_steps, prefix
        self._stream = stream
        self._num_rows = 0
        self._is_terminal = stream.isatty()
        self._console = (
            Console(file=stream, markup=False, emoji=False, highlight=False) if self._is_terminal else None
        )

    def header(self, *, run_dir: Path, model: str, num_parameters: int = 0) -> None:
        """Print where the run writes and which model it trains; the size is left out if 0."""
        size = f" ({format_size(num_parameters)} parameters)" if num_parameters else ""
        place, name = one_line(str(run_dir), 120), one_line(model, 80)
        self._line(f"run {place} | model {name}{size} | {self._num_steps} steps", "bold")

    def note(self, text: str) -> None:
        """Print a message, which may have several lines and contain model output."""
        for line in clean(text).splitlines() or [""]:
            self._line(line, "dim")

    def phase(self, step: int, name: str) -> None:
        """Print nothing: the lines of the steps are enough."""

    def step(self, metrics: Mapping[str, float]) -> None:
        """One line for the step numbered `metrics["step"]` (without that key: the next one). Absent values
        show as `-`.
        """
        self._num_rows += 1
        number = metrics.get("step", float(self._num_rows))
        shown = f"{number:.0f}" if math.isfinite(number) else MISSING
        width = len(str(self._num_steps))
        place = f"{shown:>{width}}/{self._num_steps}"
        if self._console is None:
            pairs = (f"{column.name} {column.show(metrics):<{column.width}}" for column in _COLUMNS)
            self._line(f"step {place}  {'  '.join(pairs)}  {held_up_by(metrics)}".rstrip(), "")
        else:
            self._row(self._console, place, metrics)

    def _row(self, console: Console, place: str, metrics: Mapping[str, float]) -> None:
        columns = _fitting(console.width - len(self._prefix) - len(place) - 1)
        # Repeated, because the first one has scrolled away by then.
        if (self._num_rows - 1) % _HEADER_EVERY == 0:
            headings = "".join(f"  {column.heading:>{column.width}}" for column in columns)
            self._line(f"{'step':>{len(place)}}{headings}", "bold underline")
        row = Text().append(self._encodable(self._prefix), style="dim").append(place, style="bold")
        for column in columns:
            row.append(self._encodable(f"  {column.show(metrics):>{column.width}}"), style=column.style)
        if waits := held_up_by(metrics):
            row.append(self._encodable(f"  {waits}"), style="bold red")
        console.print(row, soft_wrap=True)

    def _line(self, text: str, style: str) -> None:
        text = self._prefix + text
        if self._console is None:
            self._stream.write(self._encodable(text) + "\n")
            # A log that is followed, or read after a crash, must not lack the last lines.
            self._stream.flush()
        else:
            self._console.print(Text(self._encodable(text), style=style), soft_wrap=True)

    def _encodable(self, text: str) -> str:
        """`text` with question marks for characters that the stream cannot encode, as under LANG=C."""
        encoding = self._stream.encoding or "utf-8"
        # A run of days must not end because a format tag has a letter that the terminal lacks.
        return text.encode(encoding, "replace").decode(encoding)


def _fitting(width: int) -> tuple[_Column, ...]:
    """The columns that fit in `width` characters, in their order; the reward always stays."""
    kept = sorted(_COLUMNS, key=lambda column: column.rank)
    while len(kept) > 1 and sum(column.width + 2 for column in kept) > width:
        kept.pop()
    return tuple(column for column in _COLUMNS if column in kept)


def format_size(num_parameters: int) -> str:
    """A parameter count in thousands, millions or billions: 810 K, 4.8 M, 7.6 B."""
    for limit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if num_parameters >= limit:
            return f"{num_parameters / limit:.3g} {letter}"
    return str(num_parameters)
