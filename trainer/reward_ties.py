"""Comparison of rewards with a tolerance for rounding errors.

A reward is computed from sums and products of scores, so equally good answers may get 0.1 + 0.2 and 0.3, or
the same number in float32 and float64. Used wherever rewards are compared with each other or a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np

RELATIVE: Final = 1e-6
"""Relative to the larger magnitude: about eight rounding errors of float32, common in reward functions."""
ABSOLUTE: Final = 1e-9
"""For rewards near 0, where terms cancelled: 0.1 + 0.2 - 0.3 is 5.6e-17, not 0."""

Number = TypeVar("Number", float, np.ndarray)


def tolerance(one: Number, other: Number) -> Number:
    """The largest difference at which two rewards count as equal."""
    return ABSOLUTE + RELATIVE * np.maximum(np.abs(one), np.abs(other))  # type: ignore[no-any-return]


def rewards_differ(lowest: Number, highest: Number) -> Number:
    """Whether the lowest and highest reward of a group differ; elementwise, as bool.

    False for groups without a reward (`lowest` inf, `highest` -inf) and where either is NaN.
    """
    return highest - lowest > tolerance(lowest, highest)


def reaches(rewards: Number, threshold: float) -> Number:
    """rewards >= threshold, elementwise, also if a reward is below it only by rounding. False for NaN."""
    return rewards >= threshold - tolerance(threshold, threshold)


def first_best(rewards: Sequence[float | None]) -> int:
    """The place of the highest reward: the first of those that differ by rounding. 0 if all are null."""
    known = [reward for reward in rewards if reward is not None]
    if not known:
        return 0
    return next(
        at for at, each in enumerate(rewards) if each is not None and not rewards_differ(each, max(known))
    )


def exceeds(rewards: Number, threshold: float) -> Number:
    """rewards > threshold, elementwise, but not if a reward is above it only by rounding. False for NaN."""
    return rewards > threshold + tolerance(threshold, threshold)
