"""Checks of `trainer.reward_ties`, by function."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from trainer.reward_ties import exceeds, first_best, reaches, rewards_differ, tolerance

Check = Callable[[], None]


def check_tolerance() -> None:
    """1e-9, and 1e-6 of the larger magnitude, whatever its sign and side."""
    assert tolerance(0.0, 0.0) == 1e-9
    assert tolerance(-3.0, 2.0) == tolerance(2.0, -3.0) == pytest.approx(3e-6, rel=1e-3)


def check_rewards_differ() -> None:
    """From low to high: equal, rounding, 1e-5 of 1, 1e-5 of 100, both signs, none at all, unknown."""
    low = np.array([1.0, 0.3, 1.0, 100.0, -1.0, np.inf, np.nan])
    high = np.array([1.0, 0.1 + 0.2, 1.00001, 100.00001, 1.0, -np.inf, np.nan])
    assert rewards_differ(low, high).tolist() == [False, False, True, False, True, False, False]
    assert not rewards_differ(0.0, 0.1 + 0.2 - 0.3) and rewards_differ(0.0, 1e-8)


def check_thresholds() -> None:
    """Around 1 and 0: clearly below, below by rounding, at, above by rounding, clearly above, unknown."""
    near_one = np.array([0.99999, 1 - 1e-8, 1.0, 1 + 1e-8, 1.00001, np.nan])
    assert reaches(near_one, 1.0).tolist() == [False, True, True, True, True, False]
    assert exceeds(near_one, 1.0).tolist() == [False, False, False, False, True, False]
    near_zero = np.array([-1e-8, -1e-10, 0.0, 1e-10, 1e-8])
    assert reaches(near_zero, 0.0).tolist() == [False, True, True, True, True]
    assert exceeds(near_zero, 0.0).tolist() == [False, False, False, False, True]
    assert reaches(-2.0 - 1e-7, -2.0) and not reaches(-2.0 - 1e-4, -2.0) and exceeds(-1.0, -2.0)


def check_first_best() -> None:
    """The highest, the first of two that differ by rounding, nulls left out; 0 if there is none."""
    assert first_best([0.0, 0.1 + 0.2, 0.3]) == first_best([None, 0.3, 0.1 + 0.2]) == 1
    assert first_best([0.1, 0.2, None, 1.0, 0.9]) == 3 and first_best([-2.0, -1.0]) == 1
    assert first_best([None, None]) == first_best([]) == 0


TIES_CHECKS: dict[str, tuple[Check, ...]] = {
    "tolerance": (check_tolerance,),
    "rewards_differ": (check_rewards_differ,),
    "first_best": (check_first_best,),
    "reaches": (check_thresholds,),
    "exceeds": (check_thresholds,),
}
"""By function of `trainer.reward_ties`: what must fail when anything in it is changed."""
