"""Advantages: numbers by hand, a scalar loop from the equations, and groups that have nothing to compare."""

from __future__ import annotations

import math

import numpy as np
import pytest
from credit_cases import rewarded
from hypothesis import given
from hypothesis import strategies as st

from configs.kinds.advantages import DrGrpoOptions, GrpoOptions, ReinforceOptions, RlooOptions
from trainer.advantages import dr_grpo, grpo, reinforce, rloo

REWARDS = np.array([1.0, 5.0, 0.0, 5.0, 1.0, 2.0])
GROUPS = np.array([0, 7, 0, 7, 0, 3])
"""Group 0 has rewards 1, 0, 1; group 7 has 5, 5; group 3 a single 2."""


def test_dr_grpo_by_hand() -> None:
    """Group 0: mean 2/3, so 1/3, -2/3, 1/3; equal rewards and single rows give 0."""
    found = dr_grpo(rewarded(REWARDS, GROUPS), DrGrpoOptions())
    assert found.tolist() == pytest.approx([1 / 3, 0, -2 / 3, 0, 1 / 3, 0])


def test_grpo_by_hand() -> None:
    """Variance (1/9 + 4/9 + 1/9) / 2 = 1/3, std 0.577350; 1/3 becomes 0.577350, -2/3 -1.154701."""
    found = grpo(rewarded(REWARDS, GROUPS), GrpoOptions(eps=1e-12))
    assert found.tolist() == pytest.approx([0.5773503, 0, -1.1547005, 0, 0.5773503, 0])


def test_grpo_eps_by_hand() -> None:
    """Rewards 0 and 2: std sqrt 2, so 1 / (sqrt 2 + 1) = 0.414214."""
    found = grpo(rewarded([0.0, 2.0], [4, 4]), GrpoOptions(eps=1.0))
    assert found.tolist() == pytest.approx([-0.4142136, 0.4142136])


def test_rloo_by_hand() -> None:
    """Group 0: 1 - (0 + 1)/2 = 1/2; 0 - (1 + 1)/2 = -1; a single row has no others and gets 0."""
    assert rloo(rewarded(REWARDS, GROUPS), RlooOptions()).tolist() == pytest.approx([0.5, 0, -1, 0, 0.5, 0])


def test_reinforce_is_the_reward() -> None:
    """No baseline, and a copy: later changes of the rewards must not reach it."""
    found = reinforce(rewarded(REWARDS, GROUPS), ReinforceOptions())
    assert found.tolist() == REWARDS.tolist() and found is not REWARDS


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


ROWS = st.lists(st.tuples(st.floats(-10, 10), st.integers(0, 3)), min_size=1, max_size=12)


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


@given(st.floats(-1e6, 1e6), st.integers(1, 9), st.sampled_from([0.0, 1e-6]))
def test_a_group_of_equal_rewards_teaches_nothing(reward: float, size: int, eps: float) -> None:
    """Exactly zero: 0.1 + 0.1 + 0.1 is not 3 x 0.1, but 1 / (std + eps) must not blow the rest up."""
    given = rewarded([reward] * size, [0] * size)
    for found in (
        dr_grpo(given, DrGrpoOptions()),
        grpo(given, GrpoOptions(eps=eps)),
        rloo(given, RlooOptions()),
    ):
        assert found.tolist() == [0.0] * size


@given(ROWS, st.permutations(range(12)))
def test_row_order_does_not_matter(rows: list[tuple[float, int]], order: list[int]) -> None:
    """The same row gets the same advantage wherever it stands (up to the rounding of a sum)."""
    rewards, groups = (np.array(column) for column in zip(*rows, strict=True))
    moved = np.array([place for place in order if place < len(rows)])
    for fn, options in ((dr_grpo, DrGrpoOptions()), (rloo, RlooOptions())):
        there = fn(rewarded(rewards[moved], groups[moved]), options)
        here = fn(rewarded(rewards, groups), options)
        assert there.tolist() == pytest.approx(here[moved].tolist(), abs=1e-12)
