"""When rewards count as equal: the one place that decides it, with a tolerance for rounding.

A reward is a sum and product of scores, so equal answers may get 0.1 + 0.2 and 0.3, or the same number in
float32 and in float64. Used wherever rewards are compared with each other or with a threshold.
"""

from __future__ import annotations

from typing import Final, TypeVar

import numpy as np

RELATIVE: Final = 1e-6
"""Of the larger magnitude: about eight roundings of float32, in which reward functions often compute."""
ABSOLUTE: Final = 1e-9
"""What is left when terms cancel: 0.1 + 0.2 - 0.3 is 5.6e-17, not 0."""

Number = TypeVar("Number", float, np.ndarray)


def tolerance(one: Number, other: Number) -> Number:
    """How far apart two rewards may be and still count as equal."""
    return ABSOLUTE + RELATIVE * np.maximum(np.abs(one), np.abs(other))  # type: ignore[no-any-return]


def rewards_differ(lowest: Number, highest: Number) -> Number:
    """Whether rewards from `lowest` to `highest` are more than one reward; elementwise, as bool.

    False where there is none (`lowest` inf and `highest` -inf) and where either is NaN.
    """
    return highest - lowest > tolerance(lowest, highest)


def reaches(rewards: Number, threshold: float) -> Number:
    """rewards >= threshold, elementwise: one that misses it by rounding reaches it. False for NaN."""
    return rewards >= threshold - tolerance(threshold, threshold)


def exceeds(rewards: Number, threshold: float) -> Number:
    """rewards > threshold, elementwise: one that is above it by rounding alone does not exceed it."""
    return rewards > threshold + tolerance(threshold, threshold)
