"""Advantage estimators: one number per row from a step's rewards. Chosen by `advantage.kind`.

Every estimator takes the step's `RewardedRows` and returns float64 [N]. Means and standard deviations are
over the row's group unless said otherwise. A group whose rewards are all equal (`trainer.reward_ties`), or
that has a single row, gets zeros from every estimator with a group baseline.
"""

from __future__ import annotations

import math

import numpy as np

from configs.kinds.advantages import (
    DrGrpoOptions,
    GrpoOptions,
    PassAtKOptions,
    QuantileOptions,
    ReinforceOptions,
    ReinforcePpOptions,
    RlooOptions,
    WReinforceOptions,
)
from trainer.credit.advantage_inputs import RewardedRows, group_bounds, group_sums
from trainer.reward_ties import reaches, rewards_differ


def _rewards_vary(rows: RewardedRows) -> np.ndarray:
    """bool [N]: whether the rewards of the row's group differ by more than rounding."""
    lowest, highest = group_bounds(rows.rewards_N, rows.group_N)
    return rewards_differ(lowest, highest)


def dr_grpo(rows: RewardedRows, options: DrGrpoOptions) -> np.ndarray:
    """A = r - mean(r). Dr.GRPO, arXiv 2503.20783, eq. 3 (no division by the standard deviation)."""
    sums, sizes = group_sums(rows.rewards_N, rows.group_N)
    # Exact zeros: r - mean(r) of equal rewards may be 1e-17, which 1 / (std + eps) would enlarge.
    return np.where(_rewards_vary(rows), rows.rewards_N - sums / sizes, 0.0)


def grpo(rows: RewardedRows, options: GrpoOptions) -> np.ndarray:
    """A = (r - mean(r)) / (std(r) + eps), std over n - 1. GRPO, arXiv 2402.03300, section 4.1.2."""
    centred = dr_grpo(rows, DrGrpoOptions())
    squares, sizes = group_sums(centred**2, rows.group_N)
    divisor = np.sqrt(squares / np.maximum(sizes - 1, 1)) + options.eps
    return np.divide(centred, divisor, out=np.zeros(len(centred)), where=divisor > 0)


def rloo(rows: RewardedRows, options: RlooOptions) -> np.ndarray:
    """A = r - mean of the other rows of the group. Leave-one-out, arXiv 2402.14740, eq. 8."""
    sums, sizes = group_sums(rows.rewards_N, rows.group_N)
    others = np.maximum(sizes - 1, 1)
    return np.where(_rewards_vary(rows), rows.rewards_N - (sums - rows.rewards_N) / others, 0.0)


def reinforce(rows: RewardedRows, options: ReinforceOptions) -> np.ndarray:
    """A = r: no baseline."""
    return rows.rewards_N.astype(np.float64)


def reinforce_pp(rows: RewardedRows, options: ReinforcePpOptions) -> np.ndarray:
    """A = (c - mean(c)) / (std(c) + eps) over the step, with c = r - mean(r) over the group

    or, with baseline none, c = r. REINFORCE++-baseline and REINFORCE++, arXiv 2501.03262; std over n - 1.
    Each row counts once, whatever its length. Replayed rows are normalised separately.
    """
    values = dr_grpo(rows, DrGrpoOptions()) if options.baseline == "group" else rows.rewards_N
    advantages = np.zeros(len(rows))
    for part in rows.parts():
        if rewards_differ(values[part].min(), values[part].max()):
            centred = values[part] - values[part].mean()
            std = np.sqrt((centred**2).sum() / (len(part) - 1))
            advantages[part] = centred / (std + options.eps)
    return advantages


def pass_at_k(rows: RewardedRows, options: PassAtKOptions) -> np.ndarray:
    """A = (1 - p) / s if r >= threshold, else (1 - p - C(f - 1, k - 1) / C(n - 1, k - 1)) / s

    with n rows in the group, f of them wrong, p = 1 - C(f, k) / C(n, k) and s = sqrt(p (1 - p)) + eps. Pass@k
    training, arXiv 2508.10751, in its analytic form. Zeros where p is 0 or 1 (all wrong, or fewer than k
    wrong) and where n < k.
    """
    is_right = reaches(rows.rewards_N, options.threshold)
    wrong, sizes = group_sums((~is_right).astype(np.float64), rows.group_N)
    advantages = np.zeros(len(rows))
    for row, (n, f) in enumerate(zip(sizes.astype(int).tolist(), wrong.astype(int).tolist(), strict=True)):
        p = 1.0 - math.comb(f, options.k) / math.comb(n, options.k) if n >= options.k else 0.0
        if not 0.0 < p < 1.0:
            continue
        s = math.sqrt(p * (1.0 - p)) + options.eps
        lost = 0.0 if is_right[row] else math.comb(f - 1, options.k - 1) / math.comb(n - 1, options.k - 1)
        advantages[row] = (1.0 - p - lost) / s
    return advantages


def w_reinforce(rows: RewardedRows, options: WReinforceOptions) -> np.ndarray:
    """A = positive if r >= threshold, else -1. W-REINFORCE, arXiv 2506.01347; with positive 0 it is NSR."""
    return np.where(reaches(rows.rewards_N, options.threshold), options.positive, -1.0)


def quantile(rows: RewardedRows, options: QuantileOptions) -> np.ndarray:
    """A = (r - q) / (std(r) + eps) with q the K-quantile of the group's rewards

    Quantile advantage estimation, arXiv 2509.22611. q is the smallest reward that a share K of the rows do
    not exceed (eq. 4). For rewards of 0 and 1 this gives the paper's two regimes: q is 0 while the share of
    correct rows is at most 1 - K, else 1. The released code interpolates between rewards instead, which
    differs at the edge: 0, 0, 0, 1, 1, 1, 1, 1 at K = 0.4 give q = 0.8 there and 1 here. The divisor is
    GRPO's, with n - 1.
    """
    advantages = np.zeros(len(rows))
    for group in np.unique(rows.group_N):
        members = rows.group_N == group
        rewards = np.sort(rows.rewards_N[members])
        if rewards_differ(rewards[0], rewards[-1]):
            # Rounding may put K n slightly above the exact whole number.
            rank = max(math.ceil(options.quantile * len(rewards) - 1e-9), 1)
            std = np.sqrt(((rewards - rewards.mean()) ** 2).sum() / (len(rewards) - 1))
            advantages[members] = (rows.rewards_N[members] - rewards[rank - 1]) / (std + options.eps)
    return advantages
