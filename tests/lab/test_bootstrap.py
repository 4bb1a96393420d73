"""Intervals: numbers worked out by hand, and how often an interval holds the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lab.bootstrap import (
    Interval,
    by_seed,
    entropy,
    interval_of,
    largest_share,
    paired_interval,
    ratio,
    seed_interval,
    t_interval,
    t_quantile,
    value_of,
)


def _means(values: np.ndarray) -> np.ndarray:
    """X [S, P, 2] of which the ratio is the mean of `values` [S, P]."""
    return np.stack([values, np.ones_like(values)], axis=-1)


def _ends(interval: Interval | None) -> tuple[float, float]:
    assert interval is not None
    return interval.low, interval.high


def test_folds_are_of_sums_over_prompts() -> None:
    """Two prompts of one seed with counts (3, 1) and (1, 3): by prompt each is 3/4 one label, pooled 4 and 4:
    entropy log 2 and largest share 1/2. Rewards 3 of 4 and 1 of 1: 4/5, not the mean of 3/4 and 1."""
    counts = np.array([[[3.0, 1.0], [1.0, 3.0]]])
    assert value_of(counts, entropy) == pytest.approx(math.log(2))
    assert value_of(counts, largest_share) == 0.5
    assert value_of(np.array([[[3.0, 4.0], [1.0, 1.0]]]), ratio) == pytest.approx(0.8)
    assert float(entropy(np.array([4.0, 0.0]))) == 0.0
    assert math.isnan(float(entropy(np.zeros(2)))) and math.isnan(float(ratio(np.zeros(2))))
    assert math.isnan(float(largest_share(np.zeros(3))))


def test_a_pooled_quantity_is_the_mean_of_the_seeds_own() -> None:
    """Seed 0 writes only the first format, seed 1 only the second: each has entropy 0 and a leading share of
    1, and so has their mean. Pooled over seeds it would be log 2 and 1/2: elections would hide each other."""
    counts = np.array([[[4.0, 0.0]], [[0.0, 4.0]]])
    assert by_seed(counts, entropy).tolist() == [0.0, 0.0]
    assert value_of(counts, entropy) == 0.0 and value_of(counts, largest_share) == 1.0


def test_two_prompts_give_the_binomial_percentiles() -> None:
    """One seed, prompts 0 and 1: a replicate is 0 (1/4), 1/2 (1/2) or 1 (1/4): the 95 % interval is [0, 1].
    With four equal prompts there is nothing to vary."""
    assert interval_of(_means(np.array([[0.0, 1.0]])), ratio) == Interval(0.0, 1.0)
    assert _ends(interval_of(_means(np.full((1, 4), 0.3)), ratio)) == pytest.approx((0.3, 0.3))


def test_seeds_and_prompts_are_both_resampled() -> None:
    """Seeds at 0 and 1 with equal prompts: [0, 1] comes from the seeds alone. Eight seeds, (0, 1, ... 7)/7:
    their variance is (64 - 1) / 12 / 49, that of the mean of 8 draws an eighth of it, and the normal
    approximation gives 1/2 +- 1.96 x 0.1157."""
    seeds = np.repeat(np.array([[0.0], [1.0]]), 5, axis=1)
    assert interval_of(_means(seeds), ratio) == Interval(0.0, 1.0)
    values = np.arange(8) / 7
    found = seed_interval(values.tolist(), replicates=20_000)
    assert found is not None
    half = 1.959964 * math.sqrt(63 / 12 / 49 / 8)
    assert found.low == pytest.approx(0.5 - half, abs=0.01) and found.high == pytest.approx(
        0.5 + half, abs=0.01
    )


def test_what_both_arms_share_cancels() -> None:
    """An arm that is control plus 0.1 everywhere differs by exactly that, though both vary."""
    rng = np.random.default_rng(0)
    control = rng.uniform(0, 1, (3, 20))
    found = paired_interval(_means(control + 0.1), _means(control), ratio)
    assert found is not None
    assert found.low == pytest.approx(0.1) and found.high == pytest.approx(0.1)
    alone = interval_of(_means(control), ratio)
    assert alone is not None and alone.high - alone.low > 0.05
    with pytest.raises(ValueError, match="same seeds and prompts"):
        paired_interval(_means(control), _means(control[:2]), ratio)


def test_t_over_differences_by_hand() -> None:
    """1, 2, 3: mean 2, sd 1, t(2) = 4.3027: 2 +- 4.3027 / sqrt(3) = 2 +- 2.4842. Two values 0 and 1: t(1) is
    12.7062, sd is 0.7071: 0.5 +- 6.3531. One value has none."""
    three, two = t_interval([1.0, 2.0, 3.0]), t_interval([0.0, 1.0])
    assert _ends(three) == pytest.approx((2 - 2.4842, 2 + 2.4842), abs=1e-4)
    assert _ends(two) == pytest.approx((0.5 - 6.3531, 0.5 + 6.3531), abs=1e-4)
    assert t_interval([1.0]) is None and seed_interval([1.0]) is None
    assert t_interval([1.0, math.nan]) is None
    assert t_interval([0.25, 0.25]) is None and t_interval([0.0, 0.0, 0.0]) is None, "no spread was seen"


def test_differences_of_rounding_have_no_interval() -> None:
    """Equal totals that were added in another order differ by 1e-16, which is no spread."""
    assert t_interval([0.0, 1.1e-16]) is None and t_interval([0.0, 1e-6]) is not None


def test_t_quantiles_are_those_of_the_tables() -> None:
    """Published values: 2.0423 (30), 2.0211 (40), 2.0003 (60), 1.9799 (120)."""
    for freedom, expected in ((1, 12.7062), (30, 2.0423), (40, 2.0211), (60, 2.0003), (120, 1.9799)):
        assert t_quantile(freedom) == pytest.approx(expected, abs=2e-4)
    with pytest.raises(ValueError, match="degrees of freedom"):
        t_quantile(0)


def test_the_same_question_has_the_same_answer() -> None:
    """A fixed generator: a table written again does not change."""
    table = _means(np.random.default_rng(1).uniform(0, 1, (3, 10)))
    assert interval_of(table, ratio) == interval_of(table, ratio)


def test_no_value_is_no_interval() -> None:
    """Nothing was counted in any replicate: there is no interval, and no number either."""
    assert interval_of(np.zeros((2, 3, 1)), entropy) is None


def _coverage(num_seeds: int, num_prompts: int, trials: int) -> tuple[float, float, float]:
    """How often three intervals hold the true difference, 0: the crossed bootstrap, the same with prompts
    alone (all seeds taken as given), and t over seeds. Differences have an effect of the seed (sd 1), of the
    prompt (sd 1) and of both (sd 1); prompts are drawn anew in every trial, too."""
    rng = np.random.default_rng(7)
    crossed = prompts_only = t = 0
    for _ in range(trials):
        base = rng.normal(size=(num_seeds, num_prompts))
        effect = rng.normal(size=(num_seeds, 1)) + rng.normal(size=(1, num_prompts))
        arm = base + effect + rng.normal(size=(num_seeds, num_prompts))
        both = paired_interval(_means(arm), _means(base), ratio, replicates=300)
        fixed = paired_interval(_means(arm.mean(0)[None]), _means(base.mean(0)[None]), ratio, replicates=300)
        spread = t_interval((arm - base).mean(axis=1).tolist())
        for found in (both, fixed, spread):
            assert found is not None
        crossed += both.low <= 0 <= both.high  # type: ignore[union-attr]
        prompts_only += fixed.low <= 0 <= fixed.high  # type: ignore[union-attr]
        t += spread.low <= 0 <= spread.high  # type: ignore[union-attr]
    return crossed / trials, prompts_only / trials, t / trials


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """With 15 seeds and 40 prompts about 95 %: sd of the mean is sqrt(1/15 + 1/40 + 1/600) = 0.306.
    Resampling prompts alone sees sqrt(1/40 + 1/600) = 0.163 of it: +- 0.32 holds 70 %. t over seeds takes the
    prompts as given: sqrt(1/15 + 1/600) = 0.261, so about 92 %."""
    crossed, prompts_only, t = _coverage(15, 40, 200)
    assert 0.90 <= crossed <= 0.98, crossed
    assert prompts_only <= 0.80, prompts_only
    assert 0.83 <= t <= 0.95, t


def test_three_seeds_are_too_few_for_a_bootstrap() -> None:
    """What the page warns of: with 3 seeds the percentile interval holds the truth clearly less than 95 % of
    the time, t over seeds does not (of 200 prompts, so that prompts matter little)."""
    crossed, _, t = _coverage(3, 200, 200)
    assert crossed <= 0.88, crossed
    assert t >= 0.90, t
