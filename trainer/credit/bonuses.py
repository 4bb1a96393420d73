"""Exploration bonuses for rare answers. `trainer.credit.credit` adds up the entries of `bonus`.

A bonus is ``bonus(rows, options) -> [N]`` for the policy rows of a step (a `RewardedRows`), in units of the
advantage. It is added at the tokens outside each row's answer. All are from outcome-based exploration,
arXiv 2509.06941. A group whose answers are all correct gets no bonus. N counts the samples of earlier steps;
rows of the same step do not count for each other. Rows without an extracted answer count as one answer.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from configs.kinds.bonuses import BatchOptions, UcbConOptions, UcbMeanOptions, UcbOptions
from trainer.credit.advantage_inputs import RewardedRows, group_sums


def ucb(rows: RewardedRows, options: UcbOptions) -> np.ndarray:
    """b = coef min(1, sqrt(1 / N)), N the earlier samples of the prompt with the row's answer; 1 at N = 0.

    UCB, arXiv 2509.06941.
    """
    return options.coef * _explored(rows, _ucb(rows))


def ucb_mean(rows: RewardedRows, options: UcbMeanOptions) -> np.ndarray:
    """b = coef (u - mean of the siblings' u) with u = min(1, sqrt(1 / N)); 0 without siblings.

    UCB-Mean, arXiv 2509.06941.
    """
    u = _ucb(rows)
    sums, sizes = group_sums(u, rows.group_N)
    # A row without siblings is compared with itself, which gives it no bonus.
    others = np.where(sizes > 1, (sums - u) / np.maximum(sizes - 1, 1), u)
    return options.coef * _explored(rows, u - others)


def ucb_con(rows: RewardedRows, options: UcbConOptions) -> np.ndarray:
    """b = coef (min(1, sqrt(1 / N)) - constant).

    UCB-Con, arXiv 2509.06941: above (1 / constant)^2 visits, which are 4, it is negative.
    """
    return options.coef * _explored(rows, _ucb(rows) - options.constant)


def batch(rows: RewardedRows, options: BatchOptions) -> np.ndarray:
    """b = -coef (siblings with the row's answer) / n, n the rows of the group.

    Batch exploration, arXiv 2509.06941.
    """
    keys = list(zip(rows.group_N.tolist(), rows.answer_N, strict=True))
    counts = Counter(keys)
    siblings = np.array([counts[key] - 1 for key in keys], np.float64)
    _, sizes = group_sums(siblings, rows.group_N)
    return options.coef * _explored(rows, -siblings / sizes)


def _ucb(rows: RewardedRows) -> np.ndarray:
    """min(1, sqrt(1 / N)); 1 where N is 0."""
    return 1.0 / np.sqrt(np.maximum(rows.visits_N, 1))


def _explored(rows: RewardedRows, bonus_N: np.ndarray) -> np.ndarray:
    """`bonus_N`, but 0 where all answers of the group are correct: exploring cannot improve it."""
    not_right = np.array([answer_ok is not True for answer_ok in rows.answer_ok_N], np.float64)
    wrong, _ = group_sums(not_right, rows.group_N)
    return np.where(wrong > 0, bonus_N, 0.0)
