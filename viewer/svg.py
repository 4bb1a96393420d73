"""Line charts and stacked areas as inline SVG: numbers in, markup out, no library and no script.

In: a `Chart` (steps, lines, scale). Out: one `<svg>` string whose colours are CSS classes (`stroke0`,
`fill0`, ... see `viewer.style`), so a page can have a light and a dark palette. Every string that enters is
escaped here. The legend is at the right edge, beside the last value of each line where there is room.
Called by `viewer.panels`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from viewer.text import escape, format_number, format_share, one_line

WIDTH, HEIGHT = 620.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 464.0, 14.0, 228.0
"""The plot's edges in user units; the legend takes what is right of RIGHT."""
MAX_POINTS = 240
"""More steps than this are averaged in equal buckets: the plot has about that many pixels."""
NUM_COLOURS = 7
REST = NUM_COLOURS
"""The colour index for "all the others": grey."""
_LEGEND_GAP = 15.0
_TINY = 1e-290
"""Smaller numbers are drawn as 0: the differences between them vanish in floating point."""
_LOG_FLOOR_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Line:
    """One named curve: a value per step of its chart, NaN where it has none; `colour` in [0, NUM_COLOURS].

    `low` and `high`, if given, are the edges of a band around it, in line charts.
    """

    name: str
    values: tuple[float, ...]
    colour: int
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What to draw. The y axis reaches `floor` and `ceiling`; `rule` is a labelled horizontal line."""

    title: str
    steps: tuple[int, ...]
    lines: tuple[Line, ...]
    floor: float = math.nan
    ceiling: float = math.nan
    log: bool = False
    percent: bool = False
    markers: bool = False
    rule: tuple[str, float] = ("", math.nan)


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from values in [low, high] to the pixels [start, end]."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of `value`; on a log axis values at or below 0 are drawn at its low end."""
        if self.log:
            value, low, high = (math.log10(max(number, self.low)) for number in (value, self.low, self.high))
        else:
            low, high = self.low, self.high
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def nice_ticks(low: float, high: float, target: int = 5) -> tuple[float, ...]:
    """About `target` multiples of 1, 2 or 5 times a power of ten that cover [low, high]; needs low < high."""
    assert low < high, f"an axis needs low < high, got {low} and {high}"
    # The 1e-9 below absorb rounding: 0.3 / 0.1 is just under 3, and would cost a tick.
    raw = (high - low) / target
    power = 10.0 ** math.floor(math.log10(raw))
    size = power * next(factor for factor in (1.0, 2.0, 5.0, 10.0) if raw <= factor * power * (1 + 1e-9))
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    # Rounded to the digits of the step: 3 * 0.1 would be labelled 0.30000000000000004.
    return tuple(round(index * size, 12 - math.floor(math.log10(size))) for index in range(first, last + 1))


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Powers of ten that cover [low, high], at least two and at most about seven; needs 0 < low <= high."""
    assert 0 < low <= high, f"a log axis needs 0 < low <= high, got {low} and {high}"
    first = math.floor(math.log10(low) + 1e-9)
    last = max(math.ceil(math.log10(high) - 1e-9), first + 1)
    stride = max(1, math.ceil((last - first) / 6))
    last = first + math.ceil((last - first) / stride) * stride
    return tuple(10.0**exponent for exponent in range(first, last + 1, stride))


def thin(
    steps: tuple[int, ...], curves: Sequence[tuple[float, ...]]
) -> tuple[tuple[int, ...], list[tuple[float, ...]], int]:
    """(steps, curves, bucket size): means over equal buckets of steps once there are more than MAX_POINTS.

    A bucket carries the step of its middle element. Averaging keeps shares that sum to 1 summing to 1.
    """
    size = math.ceil(len(steps) / MAX_POINTS)
    if size <= 1:
        return steps, list(curves), 1
    starts = range(0, len(steps), size)
    kept = tuple(steps[min(start + size // 2, len(steps) - 1)] for start in starts)
    return kept, [tuple(_mean(curve[start : start + size]) for start in starts) for curve in curves], size


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def line_chart(chart: Chart) -> str:
    """`chart` as lines, broken where a value is missing; a lone point is a dot."""
    steps, curves, _ = thin(chart.steps, [line.values for line in chart.lines])
    edges = [thin(chart.steps, [line.low, line.high])[1] if line.low else [] for line in chart.lines]
    x = _step_axis(steps)
    # The axis must cover the bands too, or they leave the chart.
    drawn = [*curves, *(curve for pair in edges for curve in pair)]
    y, ticks = _value_axis(chart, [value for curve in drawn for value in curve])
    parts = [_frame(chart, x, y, ticks, steps)]
    for line, pair in zip(chart.lines, edges, strict=True):
        parts.extend(_spread_band(steps, pair[0], pair[1], line.colour, x, y) if pair else ())
    ends: list[float] = []
    for line, curve in zip(chart.lines, curves, strict=True):
        pixels = [
            (x.at(step), y.at(value)) if math.isfinite(value) else None
            for step, value in zip(steps, curve, strict=True)
        ]
        parts.append(_stroke(pixels, line.colour, chart.markers))
        # The name of a line stands at the height of its last value.
        ends.append(next((point[1] for point in reversed(pixels) if point is not None), BOTTOM))
    parts.append(_legend(chart, ends))
    parts.append(_hover(chart, steps, curves, x))
    return _svg(chart, "".join(parts))


def area_chart(chart: Chart) -> str:
    """`chart` as bands stacked in the order of its lines, the first at the bottom; missing values count as 0.

    Steps at which no line has a value are a gap. One step alone is drawn as a bar.
    """
    steps, curves, _ = thin(chart.steps, [line.values for line in chart.lines])
    x = _step_axis(steps)
    stacks = [_stack(column) for column in zip(*curves, strict=True)]
    y, ticks = _value_axis(chart, [stack[-1] for stack in stacks if stack])
    parts = [_frame(chart, x, y, ticks, steps)]
    middles = [BOTTOM] * len(chart.lines)
    # A gap must look like one: a band drawn across it would show shares that nothing measured.
    for run in _runs(stacks):
        for index, line in enumerate(chart.lines):
            parts.append(
                _band(
                    [(x.at(steps[at]), y.at(stacks[at][index]), y.at(stacks[at][index + 1])) for at in run],
                    line,
                )
            )
            middles[index] = (y.at(stacks[run[-1]][index]) + y.at(stacks[run[-1]][index + 1])) / 2
    parts.append(_legend(chart, middles))
    parts.append(_hover(chart, steps, curves, x))
    return _svg(chart, "".join(parts))


def _stack(column: Sequence[float]) -> tuple[float, ...]:
    """Running sums from 0 over `column` (one longer than it); empty when nothing in it is finite."""
    if not any(math.isfinite(value) for value in column):
        return ()
    sums = [0.0]
    for value in column:
        sums.append(sums[-1] + (max(value, 0.0) if math.isfinite(value) else 0.0))
    return tuple(sums)


def _runs(stacks: Sequence[tuple[float, ...]]) -> list[list[int]]:
    """Stretches of neighbouring positions that have a stack."""
    runs: list[list[int]] = []
    for at, stack in enumerate(stacks):
        if stack:
            if at == 0 or not stacks[at - 1]:
                runs.append([])
            runs[-1].append(at)
    return runs


def _step_axis(steps: Sequence[int]) -> Axis:
    assert steps, "a chart needs at least one step"
    low, high = min(steps), max(steps)
    # One step alone would give an axis of length 0.
    pad = 0.5 if low == high else 0.0
    return Axis(low - pad, high + pad, LEFT, RIGHT)


def _value_axis(chart: Chart, values: Iterable[float]) -> tuple[Axis, tuple[float, ...]]:
    reach = [value for value in (*values, chart.floor, chart.ceiling, chart.rule[1]) if math.isfinite(value)]
    if chart.log:
        positive = [value for value in reach if value > 0] or [1.0]
        low = min(positive) * (
            _LOG_FLOOR_SHARE if min(reach, default=1.0) <= 0 else 1.0
        )  # room for zeros below
        ticks = log_ticks(low, max(positive))
    else:
        low, high = min(reach, default=0.0), max(reach, default=1.0)
        size = max(abs(low), abs(high))
        if high - low <= 1e-5 * size or size < _TINY:  # flat: the axis needs some height
            pad = abs(high) * 0.1 if size >= _TINY else 1.0
            low, high = (low, low + pad) if low == chart.floor else (low - pad, high + pad)
        ticks = nice_ticks(low, high)
    return Axis(ticks[0], ticks[-1], BOTTOM, TOP, chart.log), ticks


def _show(chart: Chart) -> Callable[[float], str]:
    return format_share if chart.percent else format_number


def _frame(chart: Chart, x: Axis, y: Axis, ticks: Sequence[float], steps: Sequence[int]) -> str:
    show = _show(chart)
    parts = []
    for tick in ticks:
        at = y.at(tick)
        label = f"{tick:g}" if chart.log or not chart.percent else show(tick)
        parts.append(f'<line class="grid" x1="{LEFT:g}" x2="{RIGHT:g}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 7:g}" y="{at + 4:.1f}" text-anchor="end">'
            f"{_thousands(label)}</text>"
        )
    for tick in _step_ticks(steps):
        at = x.at(tick)
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{BOTTOM:g}" y2="{BOTTOM + 4:g}"/>')
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{BOTTOM + 18:g}" text-anchor="middle">{tick:,}</text>'
        )
    parts.append(f'<line class="axis" x1="{LEFT:g}" x2="{RIGHT:g}" y1="{BOTTOM:g}" y2="{BOTTOM:g}"/>')
    parts.append(
        f'<text class="tick" x="{(LEFT + RIGHT) / 2:g}" y="{BOTTOM + 36:g}" text-anchor="middle">step</text>'
    )
    name, value = chart.rule
    if math.isfinite(value):
        at = y.at(value)
        parts.append(f'<line class="rule" x1="{LEFT:g}" x2="{RIGHT:g}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT + 6:g}" y="{at - 5:.1f}">{escape(name)} {show(value)}</text>'
        )
    return "".join(parts)


def _thousands(label: str) -> str:
    return f"{int(label):,}" if label.lstrip("-").isdigit() else label


def _step_ticks(steps: Sequence[int]) -> list[int]:
    low, high = min(steps), max(steps)
    if low == high:
        return [low]
    # Ticks between two steps, such as 2.5, would name a step that does not exist.
    ticks = (tick for tick in nice_ticks(low, high, 6) if low <= tick <= high)
    return sorted({int(tick) for tick in ticks if tick == int(tick)})


def _stroke(pixels: Sequence[tuple[float, float] | None], colour: int, markers: bool) -> str:
    """A path through `pixels` that lifts at None; dots at lone points, and everywhere with `markers`."""
    commands: list[str] = []
    dots: list[str] = []
    for index, point in enumerate(pixels):
        if point is None:
            continue
        starts = index == 0 or pixels[index - 1] is None
        ends = index + 1 == len(pixels) or pixels[index + 1] is None
        commands.append(f"{'M' if starts else 'L'}{point[0]:.1f} {point[1]:.1f}")
        if markers or (starts and ends):
            dots.append(f'<circle class="fill{colour}" cx="{point[0]:.1f}" cy="{point[1]:.1f}" r="3.2"/>')
    path = f'<path class="line stroke{colour}" d="{"".join(commands)}"/>' if commands else ""
    return path + "".join(dots)


def _spread_band(
    steps: Sequence[int], low: Sequence[float], high: Sequence[float], colour: int, x: Axis, y: Axis
) -> list[str]:
    """The area between two curves, a path per stretch in which both have a value."""
    stacks = [(a, b) if math.isfinite(a) and math.isfinite(b) else () for a, b in zip(low, high, strict=True)]
    parts = []
    for run in _runs(stacks):
        upper = [f"{x.at(steps[at]):.1f} {y.at(high[at]):.2f}" for at in run]
        lower = [f"{x.at(steps[at]):.1f} {y.at(low[at]):.2f}" for at in reversed(run)]
        parts.append(f'<path class="spread fill{colour}" d="M{"L".join(upper + lower)}Z"/>')
    return parts


def _band(edges: Sequence[tuple[float, float, float]], line: Line) -> str:
    """The area between two stacked curves: `edges` are (x, lower, upper) pixels; one alone is a bar."""
    # An outline of one point has no area.
    if len(edges) == 1:
        x, lower, upper = edges[0]
        left, right = max(x - 6, LEFT), min(x + 6, RIGHT)
        edges = [(left, lower, upper), (right, lower, upper)]
    upper_edge = [f"{x:.1f} {upper:.2f}" for x, _, upper in edges]
    lower_edge = [f"{x:.1f} {lower:.2f}" for x, lower, _ in reversed(edges)]
    outline = "L".join(upper_edge + lower_edge)
    return f'<path class="band fill{line.colour}" data-name="{escape(line.name)}" d="M{outline}Z"/>'


def _legend(chart: Chart, heights: Sequence[float]) -> str:
    """Name and last value of every line, each as near its `heights` pixel as the others allow."""
    show = _show(chart)
    parts = []
    for line, height in zip(chart.lines, spread(heights, _LEGEND_GAP, TOP + 4, BOTTOM - 2), strict=True):
        last = next((value for value in reversed(line.values) if math.isfinite(value)), math.nan)
        x = RIGHT + 10
        parts.append(
            f'<rect class="fill{line.colour}" x="{x:g}" y="{height - 5:.1f}" width="10" height="10" rx="2"/>'
        )
        parts.append(
            f'<text class="name" x="{x + 15:g}" y="{height + 4:.1f}">{escape(one_line(line.name, 14))}'
            f'<tspan class="tick" dx="5">{show(last)}</tspan></text>'
        )
    return "".join(parts)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near `wanted`, in their order, `gap` apart and within [low, high] while that has room."""
    # Of equal heights the later line stands above: in a stack it is drawn above as well.
    order = sorted(range(len(wanted)), key=lambda index: (wanted[index], -index))
    placed = list(wanted)
    edge = low
    for index in order:  # push down what collides
        placed[index] = max(wanted[index], edge)
        edge = placed[index] + gap
    edge = high
    for index in reversed(order):  # and lift what fell out at the bottom
        placed[index] = min(placed[index], edge)
        edge = placed[index] - gap
    return placed


def _hover(chart: Chart, steps: Sequence[int], curves: Sequence[tuple[float, ...]], x: Axis) -> str:
    """A strip per step with a native tooltip: the step and every value at it."""
    show = _show(chart)
    parts = []
    for at, step in enumerate(steps):
        # A strip reaches half-way to its neighbours, so that each point under the pointer has a step.
        left = (x.at(steps[at - 1]) + x.at(step)) / 2 if at else LEFT
        right = (x.at(step) + x.at(steps[at + 1])) / 2 if at + 1 < len(steps) else RIGHT
        values = "\n".join(
            f"{line.name}: {show(curve[at])}" for line, curve in zip(chart.lines, curves, strict=True)
        )
        parts.append(
            f'<rect class="hover" x="{left:.1f}" y="{TOP:g}" width="{right - left:.1f}" '
            f'height="{BOTTOM - TOP:g}"><title>step {step:,}\n{escape(values)}</title></rect>'
        )
    return "".join(parts)


def _svg(chart: Chart, body: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(chart.title)}">{body}</svg>'
    )
