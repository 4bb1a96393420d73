"""Advantages: numbers by hand, scalar loops from the equations, and groups without variance."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import credit_cases
import numpy as np
import pytest
import reference_credit as papers
from credit_cases import rewarded
from hypothesis import given
from hypothesis import strategies as st

from configs.bound import bind
from configs.errors import ConfigError
from configs.kinds.advantages import (
    ADVANTAGES,
    DrGrpoOptions,
    GrpoOptions,
    PassAtKOptions,
    QuantileOptions,
    ReinforcePpOptions,
    RlooOptions,
    WReinforceOptions,
)
from configs.kinds.base import load_target
from configs.load import load_config
from trainer.credit.advantages import dr_grpo, grpo, pass_at_k, quantile, reinforce_pp, rloo, w_reinforce

ROWS = st.lists(st.tuples(st.floats(-10, 10), st.integers(0, 3)), min_size=1, max_size=12)
RIGHT = st.lists(st.booleans(), min_size=1, max_size=7)
KINDS: list[tuple[Callable[..., np.ndarray], object]] = [
    (load_target(kind.target), kind.options()) for kind in ADVANTAGES.values()
]


@pytest.mark.parametrize("name", credit_cases.ADVANTAGE_CHECKS)
def test_by_hand(name: str) -> None:
    for check in credit_cases.ADVANTAGE_CHECKS[name]:
        check()


def scalar_advantages(rewards: list[float], groups: list[int]) -> dict[str, list[float]]:
    """Each equation for each row, by loops over the row's group."""
    found: dict[str, list[float]] = {"dr_grpo": [], "grpo": [], "rloo": []}
    for reward, group in zip(rewards, groups, strict=True):
        mine = [r for r, g in zip(rewards, groups, strict=True) if g == group]
        n = len(mine)
        mean = math.fsum(mine) / n
        std = math.sqrt(math.fsum((r - mean) ** 2 for r in mine) / (n - 1)) if n > 1 else 0.0
        found["dr_grpo"].append(reward - mean)
        found["grpo"].append((reward - mean) / (std + 1e-6))
        found["rloo"].append(reward - (math.fsum(mine) - reward) / (n - 1) if n > 1 else 0.0)
    return found


@given(ROWS)
def test_against_the_scalar_loop(rows: list[tuple[float, int]]) -> None:
    """Any sizes of groups, in any order, rows of a group not side by side."""
    rewards, groups = (list(column) for column in zip(*rows, strict=True))
    wanted = scalar_advantages(rewards, groups)
    given = rewarded(rewards, groups)
    assert dr_grpo(given, DrGrpoOptions()).tolist() == pytest.approx(wanted["dr_grpo"], abs=1e-9)
    assert rloo(given, RlooOptions()).tolist() == pytest.approx(wanted["rloo"], abs=1e-9)
    # Rounding of the mean over eps = 1e-6 is all that can differ in a group of equal rewards.
    assert grpo(given, GrpoOptions()).tolist() == pytest.approx(wanted["grpo"], abs=1e-7)


@given(st.lists(st.lists(st.integers(-4, 4), min_size=1, max_size=5), min_size=1, max_size=4), st.booleans())
def test_reinforce_pp_against_the_scalar_loop(groups: list[list[int]], baseline: bool) -> None:
    """Integer rewards, so that equal ones stay equal in any order of a sum; eps above rounding errors."""
    numbers = [number for number, group in enumerate(groups) for _ in group]
    given = rewarded([float(r) for group in groups for r in group], numbers)
    options = ReinforcePpOptions(baseline="group" if baseline else "none", eps=1e-3)
    wanted = papers.reinforce_pp(groups, baseline, 1e-3)
    flat = [value for group in wanted for value in group]
    assert reinforce_pp(given, options).tolist() == pytest.approx(flat, abs=1e-9)


@given(ROWS, st.booleans())
def test_reinforce_pp_leaves_replayed_rows_out_of_the_step(
    rows: list[tuple[float, int]], group: bool
) -> None:
    """The same numbers with replayed groups as without; replayed groups are normalised as a step of their
    own.
    """
    rewards, groups = (list(column) for column in zip(*rows, strict=True))
    options = ReinforcePpOptions(baseline="group" if group else "none")
    alone = reinforce_pp(rewarded(rewards, groups), options).tolist()
    other = [7.0, 1.0, 2.5]
    both = rewarded(other + rewards, [99] * 3 + groups, origins=["replay"] * 3 + ["policy"] * len(rewards))
    found = reinforce_pp(both, options).tolist()
    assert found[3:] == alone
    assert found[:3] == reinforce_pp(rewarded(other, [0] * 3), options).tolist()


@given(RIGHT, st.integers(1, 5))
def test_pass_at_k_is_the_mean_over_subsets(right: list[bool], k: int) -> None:
    """The mean over a row's k-subsets of the best reward in each, over sqrt(p (1 - p))."""
    found = pass_at_k(
        rewarded([float(each) for each in right], [3] * len(right)), PassAtKOptions(k=k, eps=0.0)
    )
    rate = papers.pass_rate(right, k) if len(right) >= k else Fraction(0)
    if not 0 < rate < 1:
        assert found.tolist() == [0.0] * len(right)
        return
    wanted = [
        float(papers.pass_at_k(right, me, k)) / math.sqrt(rate * (1 - rate)) for me in range(len(right))
    ]
    assert found.tolist() == pytest.approx(wanted)
    assert found.sum() == pytest.approx(0.0, abs=1e-9)


@given(RIGHT)
def test_pass_at_one_is_grpo(right: list[bool]) -> None:
    """k = 1 centres rewards of 0 and 1 and divides by their standard deviation over n."""
    given = rewarded([float(each) for each in right], [0] * len(right))
    found = pass_at_k(given, PassAtKOptions(k=1, eps=0.0))
    ratio = math.sqrt(len(right) / max(1, len(right) - 1))
    assert found.tolist() == pytest.approx((grpo(given, GrpoOptions(eps=1e-12)) * ratio).tolist(), abs=1e-9)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8), st.integers(0, 10))
def test_quantile_against_the_scalar_loop(rewards: list[int], tenths: int) -> None:
    values = [float(reward) for reward in rewards]
    baseline = papers.quantile(values, Fraction(tenths, 10))
    wanted = [(value - baseline) / (papers.std(values) + 1e-6) for value in values]
    if len(set(values)) == 1:
        wanted = [0.0] * len(values)
    options = QuantileOptions(quantile=tenths / 10)
    assert quantile(rewarded(values, [5] * len(values)), options).tolist() == pytest.approx(wanted)


@given(st.integers(0, 10), st.integers(1, 10), st.integers(1, 9))
def test_quantile_has_the_two_regimes(right: int, size: int, tenths: int) -> None:
    """While at most 1 - K are correct, only they have an advantage, and it is positive; else only the wrong
    ones.
    """
    right = min(right, size)
    given = rewarded([1.0] * right + [0.0] * (size - right), [0] * size)
    found = quantile(given, QuantileOptions(quantile=tenths / 10))
    hard = Fraction(right, size) <= 1 - Fraction(tenths, 10)
    wanted = [float(hard)] * right + [float(hard) - 1] * (size - right)
    assert np.sign(found).tolist() == (wanted if 0 < right < size else [0.0] * size)


@given(st.floats(-1e6, 1e6), st.integers(1, 9), st.sampled_from([0.0, 1e-6]))
def test_a_group_of_equal_rewards_has_no_advantage(reward: float, size: int, eps: float) -> None:
    """Exactly zero: 0.1 + 0.1 + 0.1 is not 3 x 0.1, and 1 / (std + eps) must not enlarge the difference."""
    given = rewarded([reward] * size, [0] * size)
    for found in (
        dr_grpo(given, DrGrpoOptions()),
        grpo(given, GrpoOptions(eps=eps)),
        rloo(given, RlooOptions()),
        reinforce_pp(given, ReinforcePpOptions(eps=eps)),
        reinforce_pp(given, ReinforcePpOptions(baseline="none", eps=eps)),
        pass_at_k(given, PassAtKOptions(k=2, eps=eps)),
        quantile(given, QuantileOptions(eps=eps)),
    ):
        assert found.tolist() == [0.0] * size


def test_w_reinforce_learns_when_all_agree() -> None:
    """It has no baseline: an all-wrong group has negative advantages, an all-correct group positive ones."""
    found = w_reinforce(rewarded([0.0, 0.0, 1.0], [0, 0, 1]), WReinforceOptions())
    assert found.tolist() == [-1.0, -1.0, 0.1]


@given(ROWS, st.permutations(range(12)))
def test_row_order_does_not_matter(rows: list[tuple[float, int]], order: list[int]) -> None:
    """The same row gets the same advantage at any place (up to the rounding of a sum); never NaN.

    Rewards are rounded to tenths: a spread of 1e-15 over eps is rounding alone.
    """
    rewards, groups = (np.array(column) for column in zip(*rows, strict=True))
    rewards = rewards.round(1)
    moved = np.array([place for place in order if place < len(rows)])
    for fn, options in KINDS:
        there = fn(rewarded(rewards[moved], groups[moved]), options)
        here = fn(rewarded(rewards, groups), options)
        assert np.isfinite(here).all()
        assert there.tolist() == pytest.approx(here[moved].tolist(), abs=1e-8), fn


def test_from_a_config() -> None:
    """Each kind by its name, and its defaults."""
    for name, kind in ADVANTAGES.items():
        entry = bind(load_config("debug", [f"advantage={{kind: {name}}}"])).advantage
        assert (entry.options, entry.kind) == (kind.options(), kind)


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["advantage={kind: pass_at_k, k: 9}"], r"advantage\.k.*must not be above rollout\.group_size \(8\)"),
        (["advantage={kind: pass_at_k, k: 0}"], "must be above 0"),
        (["advantage={kind: quantile, quantile: 1.1}"], "must be between 0 and 1"),
        (["advantage={kind: w_reinforce, positive: -1}"], "must not be negative"),
        (["advantage={kind: reinforce_pp, baseline: mean}"], "must be one of group, none"),
        (["advantage={kind: reinforce_pp}", "rollout.group_size=1"], "must be at least 2"),
        (["advantage={kind: quantile}", "rollout.group_size=1"], "must be at least 2"),
        (
            ["advantage={kind: w_reinforce}", "kl={coef: 0.1, estimator: k1, place: reward}"],
            "must be loss: advantage w_reinforce sees only which rewards are a success",
        ),
        (["advantage={kind: pass_at_k}", "reward_shape.x={kind: mara}"], "must not be mara"),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        load_config("debug", overrides)


def test_what_can_work_without_siblings() -> None:
    load_config("debug", ["advantage={kind: reinforce_pp, baseline: none}", "rollout.group_size=1"])
    load_config("debug", ["advantage={kind: w_reinforce}", "rollout.group_size=1"])
