"""The table of a comparison: each metric of each arm, and its difference to control, with intervals.

In: the results of finished runs. Out: `Row`s of numbers. Arms are compared over the seeds that both have; the
evaluation of a seed has the same prompts and sampling seeds in every arm. Called by `lab.compare_page`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lab.arms import CONTROL
from lab.bootstrap import (
    Fold,
    Interval,
    by_seed,
    entropy,
    interval_of,
    largest_share,
    paired_interval,
    ratio,
    seed_interval,
    t_interval,
)
from lab.results import CURVES, PromptResult, RunResult

Columns = Callable[[PromptResult], tuple[float, float]]
"""Numerator and denominator of one prompt; both are summed over prompts before they are divided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A quantity of the table: of the evaluation a ratio of `columns` or a fold of counts by `labels`, or the
    mean of a `curve` over a run's last steps.
    """

    name: str
    unit: str = ""
    columns: Columns | None = None
    fold: Fold = ratio
    labels: Callable[[PromptResult], Mapping[str, int]] | None = None
    curve: str = ""
    percent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One metric of one arm. Missing values are NaN or None; differences are to control."""

    metric: Metric
    arm: str
    seeds: tuple[int, ...]
    value: float
    interval: Interval | None
    shared_seeds: tuple[int, ...] = ()
    difference: float = math.nan
    bootstrap: Interval | None = None
    t: Interval | None = None


def metrics_of(pass_at: Sequence[int], curves: Sequence[str] = ()) -> tuple[Metric, ...]:
    """The metrics of the table, in order; `curves` are metrics of a step beside those of every table."""
    passes = tuple(
        Metric(name=f"pass@{k}", columns=lambda each, k=k: (each.pass_at(k), 1.0), percent=True)  # type: ignore[misc]
        for k in sorted({1, *pass_at})
    )
    return (
        Metric(name="reward", columns=lambda each: (each.reward_sum, each.num_rewarded)),
        *passes,
        Metric(name="token entropy", unit="nats per token", curve="token entropy"),
        Metric(
            name="answer entropy",
            unit="nats per prompt",
            columns=lambda each: (each.answer_entropy or 0.0, float(each.answer_entropy is not None)),
        ),
        Metric(
            name="different answers",
            unit="per prompt",
            columns=lambda each: (float(each.num_answers or 0), float(each.num_answers is not None)),
        ),
        Metric(name="format entropy", unit="nats", fold=entropy, labels=lambda each: each.formats),
        Metric(name="strategy entropy", unit="nats", fold=entropy, labels=lambda each: each.strategies),
        Metric(
            name="leading format share", fold=largest_share, labels=lambda each: each.formats, percent=True
        ),
        Metric(name="KL to base", unit="nats per token", curve="KL to base"),
        *(Metric(name=name, curve=name) for name in curves),
    )


def contrast(
    results: Sequence[RunResult],
    arms: Sequence[str],
    pass_at: Sequence[int],
    other_rewards: Sequence[str] = (),
) -> tuple[Row, ...]:
    """A row for each metric and arm that has results.

    The arms in `other_rewards` have other scorers than control, so there is no difference in reward.

    Raises:
        ValueError: the results do not have the same prompts.
    """
    check_paired(results)
    known = {(each.arm, each.seed): each for each in results}
    rows = []
    for metric in metrics_of(pass_at, sorted({name for each in results for name in each.last} - set(CURVES))):
        labels = _labels(metric, results)
        for arm in arms:
            seeds = tuple(sorted(seed for name, seed in known if name == arm))
            if seeds:
                mine = {seed: known[arm, seed] for seed in seeds}
                control = {seed: known[CONTROL, seed] for seed in seeds if (CONTROL, seed) in known}
                paired = arm != CONTROL and not (metric.name == "reward" and arm in other_rewards)
                rows.append(_row(metric, arm, mine, control if paired else {}, labels))
    return tuple(rows)


def check_paired(results: Sequence[RunResult]) -> None:
    """Check that results can be compared.

    Raises:
        ValueError: their data, model or held-out prompts differ, or the seeds of an arm differ in
            demonstrations or the user's own code.
    """
    for one in results[1:]:
        first = results[0]
        here, there = f"{one.arm} seed {one.seed}", f"{first.arm} seed {first.seed}"
        if one.source_sha256 != first.source_sha256:
            raise ValueError(
                f"results must be of one set of training prompts and one model, got others in {here} than in "
                f"{there}: data or model files changed between the runs; choose another --out"
            )
        demonstrations = {each.demonstrations_sha256 for each in results if each.arm == one.arm} - {None}
        if len(demonstrations) > 1:
            raise ValueError(
                f"results of {one.arm} must be of one set of demonstrations, got another in a seed: "
                "sft.data changed between the runs; choose another --out"
            )
        code = {each.code_sha256 for each in results if each.arm == one.arm} - {None}
        if len(code) > 1:
            raise ValueError(
                f"results of {one.arm} must be of the same code of your own, got other in a seed: a module "
                "under allow changed between the runs; choose another --out"
            )
        if [each.prompt_id for each in one.prompts] != [each.prompt_id for each in first.prompts]:
            raise ValueError(
                f"results must be evaluated on the same prompts, got others in {here} than in {there}: "
                "choose another --out"
            )


def _labels(metric: Metric, results: Sequence[RunResult]) -> list[str]:
    if metric.labels is None:
        return []
    return sorted({label for one in results for each in one.prompts for label in metric.labels(each)})


def _row(
    metric: Metric,
    arm: str,
    mine: Mapping[int, RunResult],
    control: Mapping[int, RunResult],
    labels: Sequence[str],
) -> Row:
    seeds, shared = tuple(mine), tuple(control)
    if metric.curve:
        return _seed_row(metric, arm, mine, control)
    own = _table(metric, list(mine.values()), labels)
    value = float(by_seed(own, metric.fold).mean())
    interval = interval_of(own, metric.fold) if math.isfinite(value) else None
    row = Row(metric=metric, arm=arm, seeds=seeds, value=value, interval=interval)
    if not shared:
        return row
    paired = _table(metric, [mine[seed] for seed in shared], labels)
    base = _table(metric, list(control.values()), labels)
    # Paired by seed: prompts and sampling seeds are the same, so what both arms share cancels out.
    differences = by_seed(paired, metric.fold) - by_seed(base, metric.fold)
    # One seed without the metric makes the mean undefined. Leaving it out would compare other seeds.
    if not np.isfinite(differences).all():
        return row
    return Row(
        metric=metric,
        arm=arm,
        seeds=seeds,
        value=value,
        interval=interval,
        shared_seeds=shared,
        difference=float(differences.mean()),
        bootstrap=paired_interval(paired, base, metric.fold),
        t=t_interval(differences.tolist()),
    )


def _seed_row(
    metric: Metric, arm: str, mine: Mapping[int, RunResult], control: Mapping[int, RunResult]
) -> Row:
    """A metric that exists once per run: only seeds can be resampled."""
    curve = metric.curve
    values = [one.last.get(curve, math.nan) for one in mine.values()]
    differences = [
        mine[seed].last.get(curve, math.nan) - one.last.get(curve, math.nan) for seed, one in control.items()
    ]
    known = bool(np.isfinite(values).all())
    compared = bool(differences) and bool(np.isfinite(differences).all())
    return Row(
        metric=metric,
        arm=arm,
        seeds=tuple(mine),
        value=float(np.mean(values)),
        interval=seed_interval(values) if known else None,
        shared_seeds=tuple(control) if compared else (),
        difference=float(np.mean(differences)) if compared else math.nan,
        bootstrap=seed_interval(differences) if compared else None,
        t=t_interval(differences) if compared else None,
    )


def _table(metric: Metric, results: Sequence[RunResult], labels: Sequence[str]) -> np.ndarray:
    """X [S, P, C] of `lab.bootstrap`; without labels of a counted metric one column of zeros, so NaN."""
    if metric.labels is not None:
        counted = metric.labels
        cells = [
            [[float(counted(each).get(label, 0)) for label in labels] or [0.0] for each in one.prompts]
            for one in results
        ]
    else:
        assert metric.columns is not None, "a metric has a curve, labels or columns"
        columns = metric.columns
        cells = [[list(columns(each)) for each in one.prompts] for one in results]
    return np.array(cells, np.float64)
