"""Which charts the report shows, and how a run's metrics become one of them.

In: `RunData`. Out: one HTML `<figure>` per panel, or "" for an optional panel whose metrics the run never
recorded. A new chart is one line in `PANELS`. Called by `viewer.report`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from viewer.run_data import Curve, RunData, mean
from viewer.svg import MAX_POINTS, NUM_COLOURS, REST, Chart, Line, area_chart, line_chart
from viewer.text import escape


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One chart: `metrics` are (name, label) pairs, `prefix` adds every metric starting with it.

    `caption` says how to read it. An optional panel is left out when nothing of it was recorded.
    """

    section: str
    title: str
    caption: str = ""
    metrics: tuple[tuple[str, str], ...] = ()
    prefix: str = ""
    suffix: str = ""
    """With `prefix`: only metrics that end with it."""
    skip: tuple[str, ...] = ()
    total: str = ""
    """Areas: the metric the bands should add up to (their difference is drawn as "other"); "1" for shares."""
    area: bool = False
    evals: bool = False
    floor: float = math.nan
    ceiling: float = math.nan
    log: bool = False
    percent: bool = False
    tolerance: bool = False
    optional: bool = False


LEARNED, NARROWED, MOVED, SOUND, COST = (
    "Did it learn?",
    "Did it narrow?",
    "How far did it move?",
    "Is it sound?",
    "What did it cost?",
)
SECTIONS = (LEARNED, NARROWED, MOVED, SOUND, COST)
_FORMAT_PREFIXES = ("format/share/", "format/reward/", "eval/format_share/")
PANELS = (
    Panel(
        section=LEARNED,
        title="Reward and scores (mean per completion)",
        caption="The combined reward, and each scorer's own mean.",
        metrics=(("reward/mean", "reward"),),
        prefix="score/",
        floor=0.0,
    ),
    Panel(
        section=LEARNED,
        title="Held-out pass@k (share of prompts)",
        caption="pass@1 up and pass@k down means: surer, with fewer ways to be right.",
        prefix="eval/pass@",
        evals=True,
        floor=0.0,
        ceiling=1.0,
        percent=True,
    ),
    Panel(
        section=NARROWED,
        title="Formats (share of completions)",
        caption="One band per format; they add up to 100%.",
        prefix="format/share/",
        total="1",
        area=True,
        floor=0.0,
        ceiling=1.0,
        percent=True,
    ),
    Panel(
        section=NARROWED,
        title="Reward by format (mean per completion)",
        caption="Was the format that won also the better one?",
        prefix="format/reward/",
        floor=0.0,
        optional=True,
    ),
    Panel(
        section=NARROWED,
        title="Token entropy (nats per token)",
        caption="At the sampling temperature, and at temperature 1.",
        metrics=(("entropy/token_mean", "sampling T"), ("entropy/token_mean_t1", "T = 1")),
        floor=0.0,
    ),
    Panel(
        section=NARROWED,
        title="Entropy of formats and answers (nats)",
        caption="exp(entropy) is the effective number of formats, or of answers.",
        metrics=(
            ("entropy/format", "format"),
            ("entropy/answer", "answer"),
        ),
        floor=0.0,
    ),
    Panel(
        section=NARROWED,
        title="Token entropy, each completion counted once (nats per token)",
        metrics=(("entropy/sequence_mean", "mean of completions"),),
        floor=0.0,
        optional=True,
    ),
    Panel(
        section=NARROWED,
        title="Held-out formats (share of completions)",
        prefix="eval/format_share/",
        total="1",
        area=True,
        evals=True,
        floor=0.0,
        ceiling=1.0,
        percent=True,
        optional=True,
    ),
    Panel(
        section=MOVED,
        title="KL divergence of the policy (k3 estimate, nats per token)",
        caption="Base is the model of step 0; the reference is the anchor of the penalty and may be reset.",
        metrics=(("kl/k3_policy_vs_base", "to base"), ("kl/k3_policy_vs_ref", "to reference")),
        floor=0.0,
    ),
    Panel(
        section=MOVED,
        title="Demonstrations under the policy (nats per token)",
        metrics=(("sft/nll", "minus their logprob"), ("sft/token_entropy", "entropy")),
        floor=0.0,
        optional=True,
    ),
    Panel(
        section=MOVED,
        title="Length (mean tokens per completion)",
        metrics=(("length/mean_tokens", "mean length"),),
        floor=0.0,
    ),
    Panel(
        section=MOVED,
        title="Gradient norm (before clipping)",
        metrics=(("grad/norm", "norm"),),
        floor=0.0,
        optional=True,
    ),
    Panel(
        section=SOUND,
        title="Engine against learner (absolute logprob gap, nats, log scale)",
        caption="The probe gap must stay under the tolerance; its power is the gap of one stale step. "
        "Zeros lie on the lower edge.",
        metrics=(
            ("sync/probe_gap", "probe gap"),
            ("sync/probe_power", "probe power"),
            ("mismatch/mean_abs_behavior_vs_proximal", "training rows"),
        ),
        log=True,
        tolerance=True,
    ),
    Panel(
        section=SOUND,
        title="Reward less held-out score (rise over the window, in standard deviations)",
        caption="Above 0 the reward rises and the score of a scorer that is not in it does not.",
        prefix="held_out/",
        suffix="/gap",
        optional=True,
    ),
    Panel(
        section=SOUND,
        title="Completions and groups without a learning signal (share)",
        caption="Groups whose rewards are all equal, completions without a reward, completions cut off.",
        metrics=(
            ("group/zero_std_share", "equal rewards"),
            ("reward/null_share", "no reward"),
            ("length/truncated_share", "cut off"),
        ),
        floor=0.0,
        percent=True,
    ),
    Panel(
        section=COST,
        title="Time of a step by phase (seconds)",
        caption="Other is the rest of the step's wall time. Phases that overlap can add up to more than it.",
        prefix="time/",
        skip=("time/step_s",),
        total="time/step_s",
        area=True,
        floor=0.0,
    ),
    Panel(
        section=COST,
        title="Time that scorers take for a group (99th percentile, seconds)",
        caption="From the start of scoring to the answer, without the wait for a free place.",
        prefix="health/",
        suffix="/latency_p99_s",
        floor=0.0,
        optional=True,
    ),
    Panel(
        section=COST,
        title="Throughput (tokens per second)",
        metrics=(("throughput/tokens_per_s", "tokens/s"),),
        floor=0.0,
        optional=True,
    ),
)


def draw_panel(panel: Panel, run: RunData) -> str:
    """The `<figure>` of `panel`: its chart, or the sentence that its metrics were not recorded."""
    steps = run.eval_steps if panel.evals else run.steps
    curves = run.evals if panel.evals else run.curves
    found = {
        key: label
        for key, label in _named(panel, curves)
        if any(math.isfinite(value) for value in curves[key])
    }
    absent = [key for key, _ in panel.metrics if key not in found]
    if not found:
        names = ", ".join(absent) or f"{panel.prefix}*"
        source = "in eval/" if panel.evals else "in the metrics"
        return "" if panel.optional else _figure(panel, "", f"Not recorded {source} of this run: {names}.")
    lines, remarks = _lines(panel, found, curves, _format_tags(run))
    chart = Chart(
        title=panel.title,
        steps=steps,
        lines=lines,
        floor=panel.floor,
        ceiling=panel.ceiling,
        log=panel.log,
        percent=panel.percent,
        markers=panel.evals,
        rule=("tolerance", run.probe_tolerance) if panel.tolerance else ("", math.nan),
    )
    if absent:
        remarks.append(f"Not recorded: {', '.join(absent)}.")
    bucket = math.ceil(len(steps) / MAX_POINTS)
    if bucket > 1:
        remarks.append(f"Each point is the mean of {bucket} steps.")
    return _figure(panel, area_chart(chart) if panel.area else line_chart(chart), " ".join(remarks))


def _named(panel: Panel, curves: Mapping[str, Curve]) -> list[tuple[str, str]]:
    listed = [pair for pair in panel.metrics if pair[0] in curves]
    known = {key for key, _ in listed} | set(panel.skip)
    matching = [key for key in curves if _is_of(panel, key) and key not in known]
    return listed + [(key, _label(panel, key)) for key in matching]


def _is_of(panel: Panel, key: str) -> bool:
    return bool(panel.prefix) and key.startswith(panel.prefix) and key.endswith(panel.suffix)


def _label(panel: Panel, key: str) -> str:
    rest = key.removeprefix(panel.prefix).removesuffix(panel.suffix)
    if panel.prefix == "time/":
        return rest.removesuffix("_s").replace("_", " ")
    return rest if panel.prefix != "eval/pass@" else f"pass@{rest}"


def _lines(
    panel: Panel, found: Mapping[str, str], curves: Mapping[str, Curve], tags: list[str]
) -> tuple[tuple[Line, ...], list[str]]:
    """The lines to draw, and remarks about those left out. A format has the same colour in all charts."""
    keys = sorted(found, key=_natural) if panel.prefix and not panel.metrics else list(found)
    remarks: list[str] = []
    # More colours than this cannot be told apart.
    if len(keys) > NUM_COLOURS:
        by_size = sorted(keys, key=lambda key: -abs(mean(curves[key])))
        kept = set(by_size[:NUM_COLOURS]) if panel.area else set(keys[:NUM_COLOURS])
        dropped = [key for key in keys if key not in kept]
        keys = [key for key in keys if key in kept]
        remarks.append(
            f"{'Under other' if panel.area else 'Not drawn'}: {', '.join(found[key] for key in dropped)}."
        )
    else:
        dropped = []
    # A reader compares the charts of formats by colour.
    by_tag = panel.prefix in _FORMAT_PREFIXES and len(tags) <= NUM_COLOURS
    colours = [tags.index(found[key]) for key in keys] if by_tag else list(range(len(keys)))
    lines = [Line(found[key], curves[key], colour) for key, colour in zip(keys, colours, strict=True)]
    if panel.area:
        lines = _absent_is_none(lines)
        # The largest band at the bottom, where its edge is level and so the easiest to read.
        lines.sort(key=lambda line: -mean(line.values))
        rest = _rest(panel, lines, [curves[key] for key in dropped], curves)
        if rest is not None:
            lines.append(rest)
    return tuple(lines), remarks


def _absent_is_none(lines: list[Line]) -> list[Line]:
    """Fill missing values of bands: in a step where other bands have one, a missing band has share 0."""
    seen = [any(math.isfinite(line.values[at]) for line in lines) for at in range(len(lines[0].values))]
    return [
        replace(
            line,
            values=tuple(
                0.0 if known and not math.isfinite(value) else value
                for value, known in zip(line.values, seen, strict=True)
            ),
        )
        for line in lines
    ]


def _format_tags(run: RunData) -> list[str]:
    """Every format the run names anywhere, in alphabetical order."""
    keys = (*run.curves, *run.evals)
    return sorted(
        {key.removeprefix(start) for key in keys for start in _FORMAT_PREFIXES if key.startswith(start)}
    )


def _natural(key: str) -> tuple[int, str]:
    """pass@4 before pass@16; other names alphabetically."""
    digits = key.rpartition("@")[2]
    return (int(digits), key) if digits.isdecimal() and len(digits) < 10 else (0, key)


def _rest(panel: Panel, lines: list[Line], dropped: list[Curve], curves: Mapping[str, Curve]) -> Line | None:
    """The difference of the bands to their total, as a band; None if it is under half a percent."""
    num_steps = len(lines[0].values)
    totals = (1.0,) * num_steps if panel.total == "1" else curves.get(panel.total, (math.nan,) * num_steps)
    values: list[float] = []
    for at in range(num_steps):
        drawn = [line.values[at] for line in lines if math.isfinite(line.values[at])]
        folded = math.fsum(curve[at] for curve in dropped if math.isfinite(curve[at]))
        # Phases that overlap may sum to more than the step, so the rest can be negative: it is then 0.
        missing = totals[at] - math.fsum(drawn) if math.isfinite(totals[at]) else folded
        values.append(max(missing, folded, 0.0) if drawn else math.nan)
    largest = max((value for value in values if math.isfinite(value)), default=0.0)
    scale = max((value for value in totals if math.isfinite(value)), default=0.0)
    return Line("other", tuple(values), REST) if largest > 0.005 * scale else None


def _figure(panel: Panel, svg: str, remark: str) -> str:
    caption = " ".join(
        part for part in (escape(panel.caption), f"<em>{escape(remark)}</em>" if remark else "") if part
    )
    body = svg or '<div class="empty">no data</div>'
    return f"<figure><h3>{escape(panel.title)}</h3>{body}<figcaption>{caption}</figcaption></figure>"
