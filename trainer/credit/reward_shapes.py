"""Reward shaping before the advantage. `trainer.credit.credit` applies the entries of `reward_shape`.

A reward shape is ``shape(rows, options) -> [N]``: the new rewards of `rows` (a `RewardedRows`), NaN for a row
that must have no reward.
"""

from __future__ import annotations

import numpy as np

from configs.kinds.reward_shapes import (
    CosineLengthOptions,
    MaraOptions,
    OverlongOptions,
    RelativeLengthOptions,
)
from configs.origins import origins_where
from trainer.credit.advantage_inputs import RewardedRows, group_bounds
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


def cosine_length(rows: RewardedRows, options: CosineLengthOptions) -> np.ndarray:
    """r' = r + long + (short - long) (1 + cos(pi min(1, n / max_tokens))) / 2, n the row's tokens

    with short and long as `right_short` and `right_long` for a right answer, `wrong_short` and `wrong_long`
    for a wrong one. The cosine length reward of arXiv 2502.03373, as in Open-R1, whose cosine rises again
    beyond its maximum length; here n / max_tokens stops at 1. A row whose answer nobody checked keeps r.
    """
    progress = np.minimum(1.0, rows.num_tokens_N / options.max_tokens)
    short_share = (1.0 + np.cos(np.pi * progress)) / 2.0
    right = options.right_long + (options.right_short - options.right_long) * short_share
    wrong = options.wrong_long + (options.wrong_short - options.wrong_long) * short_share
    is_right, is_wrong = _verdicts(rows)
    return rows.rewards_N + np.where(is_right, right, 0.0) + np.where(is_wrong, wrong, 0.0)


def relative_length(rows: RewardedRows, options: RelativeLengthOptions) -> np.ndarray:
    """r' = r + coef x if the answer is right, r + coef min(0, x) if it is wrong,
    x = 1/2 - (n - lo) / (hi - lo)

    with lo and hi the fewest and most tokens of the group's own samples; x = 0 if they are equal. The length
    reward of Kimi k1.5, arXiv 2501.12599, section 2.3.3. A row whose answer nobody checked keeps r.
    """
    tokens = rows.num_tokens_N.astype(np.float64)
    joined = np.isin(rows.origin_N, origins_where(lambda spec: bool(spec.group_of)))
    low, high = group_bounds(np.where(joined, np.nan, tokens), rows.group_N)
    known = high > low
    place = (tokens - low) / np.where(known, high - low, 1.0)
    # A refined row may be longer or shorter than every sample.
    x = np.where(known, 0.5 - np.clip(place, 0.0, 1.0), 0.0)
    is_right, is_wrong = _verdicts(rows)
    return rows.rewards_N + options.coef * (
        np.where(is_right, x, 0.0) + np.where(is_wrong, np.minimum(x, 0.0), 0.0)
    )


def _verdicts(rows: RewardedRows) -> tuple[np.ndarray, np.ndarray]:
    """Which answers are right and which are wrong, bool [N] each; neither where no scorer checked."""
    right = np.array([answer_ok is True for answer_ok in rows.answer_ok_N], np.bool_)
    wrong = np.array([answer_ok is False for answer_ok in rows.answer_ok_N], np.bool_)
    return right, wrong
