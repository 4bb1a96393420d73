"""Advantage estimators: a step's rewards to one number per row. Chosen by `advantage.kind`, used by the loop.

Every estimator takes ``rewards_N`` (float64, no nulls) and ``group_N`` (the group number of each row) and
returns float64 [N]. A group whose rewards are all equal, or that has a single row, gets zeros from every
group baseline.
"""

from __future__ import annotations

import numpy as np

from configs.kinds.advantages import DrGrpoOptions, GrpoOptions, ReinforceOptions, RlooOptions


def _group_sums(values_N: np.ndarray, group_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per row: the sum of `values_N` over the row's group, and the group's size."""
    _, inverse = np.unique(group_N, return_inverse=True)
    return np.bincount(inverse, values_N)[inverse], np.bincount(inverse)[inverse].astype(np.float64)


def _uneven(rewards_N: np.ndarray, group_N: np.ndarray) -> np.ndarray:
    """Per row: whether its group's rewards differ. What rounding leaves of equal ones is no advantage."""
    _, first, inverse = np.unique(group_N, return_index=True, return_inverse=True)
    return np.bincount(inverse, rewards_N != rewards_N[first][inverse])[inverse] > 0


def dr_grpo(rewards_N: np.ndarray, group_N: np.ndarray, options: DrGrpoOptions) -> np.ndarray:
    """A = r - mean(r). Dr.GRPO, arXiv 2503.20783, eq. 3 (no division by the standard deviation)."""
    sums, sizes = _group_sums(rewards_N, group_N)
    return np.where(_uneven(rewards_N, group_N), rewards_N - sums / sizes, 0.0)


def grpo(rewards_N: np.ndarray, group_N: np.ndarray, options: GrpoOptions) -> np.ndarray:
    """A = (r - mean(r)) / (std(r) + eps), std over n - 1. GRPO, arXiv 2402.03300, section 4.1.2."""
    centred = dr_grpo(rewards_N, group_N, DrGrpoOptions())
    squares, sizes = _group_sums(centred**2, group_N)
    divisor = np.sqrt(squares / np.maximum(sizes - 1, 1)) + options.eps
    return np.divide(centred, divisor, out=np.zeros(len(centred)), where=divisor > 0)


def rloo(rewards_N: np.ndarray, group_N: np.ndarray, options: RlooOptions) -> np.ndarray:
    """A = r - mean of the other rows of the group. Leave-one-out, arXiv 2402.14740, eq. 8."""
    sums, sizes = _group_sums(rewards_N, group_N)
    others = np.maximum(sizes - 1, 1)
    return np.where(_uneven(rewards_N, group_N), rewards_N - (sums - rewards_N) / others, 0.0)


def reinforce(rewards_N: np.ndarray, group_N: np.ndarray, options: ReinforceOptions) -> np.ndarray:
    """A = r: no baseline."""
    return rewards_N.astype(np.float64)
