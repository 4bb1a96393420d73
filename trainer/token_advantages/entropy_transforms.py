"""Transforms that use a token's entropy or surprisal. Applied by `trainer.token_advantages.transforms`.

Entropies and logprobs are at the sampling temperature, in nats, without gradient. Tokens are selected over
the whole update (`trainer.losses.batch_statistics`), so the selection does not depend on microbatches or
ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from configs.kinds.token_advantages import (
    EntropyAdvantageOptions,
    EntropyQuadrantsOptions,
    StareOptions,
    TopEntropyOptions,
)
from trainer.losses.batch_statistics import Prepared
from trainer.losses.per_token import LossInputs
from trainer.token_advantages.transforms import TokenTransform


def entropy_advantage(inputs: LossInputs, options: EntropyAdvantageOptions) -> Tensor:
    """A' = A + min(alpha sg(H), |A| / kappa), H the token's entropy now. [T] -> [T]

    Entropy-shaped advantage, arXiv 2506.14758. With kappa above 1 no advantage changes its sign, and an
    advantage of 0 stays 0.
    """
    bonus = options.alpha * inputs.entropy.detach()
    return inputs.advantages + torch.minimum(bonus, inputs.advantages.abs() / options.kappa)


def top_entropy(inputs: LossInputs, options: TopEntropyOptions) -> TokenTransform:
    """A' = A on the share fraction of the update's tokens with the highest entropy, else 0. [T] -> [T]

    Forking tokens ("80/20"), arXiv 2506.01939. `select_entropy` selects the tokens before the update. The
    loss is still divided by the number of all tokens, as in the paper.
    """
    kept = inputs.prepared["kept"].bool()
    none = torch.zeros_like(inputs.advantages)
    return TokenTransform(advantages=torch.where(kept, inputs.advantages, none), marks={"kept": kept})


def select_entropy(columns: Mapping[str, np.ndarray], options: TopEntropyOptions) -> Prepared:
    """The ceil(fraction n) tokens with the highest entropy before this step's updates; ties go to the first.

    This is the number of tokens at or above the quantile 1 - fraction. The stat `lowest_entropy` is the
    lowest selected entropy in nats.
    """
    entropy = columns["entropy"].astype(np.float64)
    count = num_top(options.fraction, len(entropy))
    # A stable sort breaks ties by the order of the table, which is the same on every rank.
    ranked = np.argsort(-entropy, kind="stable")[:count]
    kept = np.zeros(len(entropy), np.bool_)
    kept[ranked] = True
    stats = {"lowest_entropy": float(entropy[ranked].min())} if count else {}
    return Prepared(columns={"kept": kept}, stats=stats)


def num_top(fraction: float, count: int) -> int:
    """ceil(fraction x count), with a tolerance for rounding errors of the product: 0.2 x 15 gives 3."""
    return math.ceil(fraction * count - 1e-9)


def stare(inputs: LossInputs, options: StareOptions) -> TokenTransform:
    """A' = (1 + gate (amplify - 1)) A on the chosen tokens with A > 0, (1 - gate (1 - damp)) A on those with
    A < 0, else A. [T] -> [T]

    STARE, arXiv 2606.19236, from the released code. `choose_surprising` chooses the tokens before the update.
    The code multiplies the clipped loss, which is proportional to A for a factor above 0.
    """
    positive, negative = inputs.prepared["positive"].bool(), inputs.prepared["negative"].bool()
    amplified = 1.0 + options.gate * (options.amplify - 1.0)
    damped = 1.0 - options.gate * (1.0 - options.damp)
    advantages = torch.where(positive, amplified * inputs.advantages, inputs.advantages)
    advantages = torch.where(negative, damped * inputs.advantages, advantages)
    return TokenTransform(advantages=advantages, marks={"amplified": positive, "damped": negative})


def choose_surprising(columns: Mapping[str, np.ndarray], options: StareOptions) -> Prepared:
    """Of the tokens with A > 0, and of those with A < 0, the ceil(share n) with the highest S = -log pi.

    S is computed with the weights at the start of the update; ties go to the first token. The released code
    ranks the tokens of each microbatch, so that its choice depends on how a batch is cut; here it is the
    update's. The stats are the lowest chosen S of either sign, in nats.
    """
    surprisal = -columns["policy_logprobs"].astype(np.float64)
    chosen, stats = {}, {}
    for name, sign in (("positive", 1.0), ("negative", -1.0)):
        candidates = np.flatnonzero(sign * columns["advantage"] > 0)
        order = np.argsort(-surprisal[candidates], kind="stable")
        highest = candidates[order[: num_top(options.share, len(candidates))]]
        chosen[name] = np.zeros(len(surprisal), np.bool_)
        chosen[name][highest] = True
        if len(highest):
            lowest = min(float(surprisal[highest].min()), float(np.finfo(np.float32).max))
            stats[f"surprisal_{name}"] = lowest
    return Prepared(columns=chosen, stats=stats)


def entropy_quadrants(inputs: LossInputs, options: EntropyQuadrantsOptions) -> TokenTransform:
    """A' = (1 + strength) A where A > 0 and S > upper or A < 0 and S < lower, (1 - strength) A where
    A > 0 and S < lower or A < 0 and S > upper, else A. [T] -> [T]

    After STARE, arXiv 2606.19236, whose released rule is `stare`; these weights are our own derivation.
    S = -log pi is the token's surprisal; lower and upper are its quantiles over the update, see
    `find_quantiles`. To first order, a gradient step on one token changes the entropy of its distribution by
    A (pi (S - H) + c) with c equal for all tokens: |A| is raised where A (S - H) is positive.
    """
    high, low = inputs.prepared["high"].bool(), inputs.prepared["low"].bool()
    up, down = inputs.advantages > 0, inputs.advantages < 0
    raised, shrunk = (up & high) | (down & low), (up & low) | (down & high)
    weight = 1.0 + options.strength * (raised.to(inputs.advantages) - shrunk.to(inputs.advantages))
    return TokenTransform(advantages=weight * inputs.advantages, marks={"raised": raised, "shrunk": shrunk})


def find_quantiles(columns: Mapping[str, np.ndarray], options: EntropyQuadrantsOptions) -> Prepared:
    """Which tokens are above the quantile 1 - fraction of S, and which are below the quantile `fraction`.

    S is computed with the weights at the start of the update. A token exactly at a quantile is in neither
    set, so nothing changes when all tokens are equal. The stats are the two quantiles in nats.
    """
    # An infinite S becomes the largest finite number: a quantile between inf and a number would be NaN.
    surprisal = np.minimum(-columns["policy_logprobs"].astype(np.float64), np.finfo(np.float32).max)
    if not len(surprisal):
        return Prepared(columns={name: np.zeros(0, np.bool_) for name in ("high", "low")})
    lower, upper = np.quantile(surprisal, [options.fraction, 1.0 - options.fraction])
    return Prepared(
        columns={"high": surprisal > upper, "low": surprisal < lower},
        stats={"surprisal_lower": float(lower), "surprisal_upper": float(upper)},
    )
