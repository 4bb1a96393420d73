"""Reward shaping before the advantage. `trainer.credit.credit` applies the entries of `reward_shape`.

A reward shape is ``shape(rows, options) -> [N]``: the new rewards of `rows` (a `RewardedRows`), NaN for a row
that must have no reward.
"""

from __future__ import annotations

import numpy as np

from configs.kinds.reward_shapes import MaraOptions, OverlongOptions
from trainer.credit.advantage_inputs import RewardedRows
from trainer.reward_ties import reaches


def overlong(rows: RewardedRows, options: OverlongOptions) -> np.ndarray:
    """r' = r - penalty min(1, max(0, (n - max_tokens + cache_tokens) / cache_tokens)), n the row's tokens.

    Soft overlong punishment, DAPO, arXiv 2503.14476, eq. 13. n counts sampled tokens. With `filter`, a
    truncated completion has no reward instead (DAPO's overlong filtering).
    """
    over = (rows.num_tokens_N - options.max_tokens + options.cache_tokens) / options.cache_tokens
    rewards = rows.rewards_N - options.penalty * np.clip(over, 0.0, 1.0)
    return np.where(options.filter & (rows.finish_reason_N == "length"), np.nan, rewards)


def mara(rows: RewardedRows, options: MaraOptions) -> np.ndarray:
    """r' = r(z) + beta (log ref(z) - log ref(y)) if r >= threshold, else r

    with z the most likely such row of the group under the reference. MARA, arXiv 2510.20817: with a KL term
    of coefficient beta to the reference, the optimal policy is then uniform over the good completions. With
    the plain reward it keeps the reference's ratios. The paper was not available to us; the rule was checked
    by substitution (ref exp(r' / beta) is equal for all good rows).

    Raises:
        ValueError: a good row has no reference logprob.
    """
    rewards = rows.rewards_N.astype(np.float64)
    for group in np.unique(rows.group_N):
        good = np.flatnonzero((rows.group_N == group) & reaches(rows.rewards_N, options.threshold))
        if len(good):
            logprobs = rows.ref_logprob_N[good]
            if not np.isfinite(logprobs).all():
                raise ValueError(f"reward shape mara must have reference logprobs, got {logprobs.tolist()}")
            likeliest = logprobs == logprobs.max()
            # Equally likely rows (the same text twice): take the highest reward, whatever the row order.
            anchor = rows.rewards_N[good][likeliest].max()
            rewards[good] = anchor + options.beta * (logprobs.max() - logprobs)
    return rewards
