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

from configs.kinds.token_advantages import EntropyAdvantageOptions, StareOptions, TopEntropyOptions
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
    """A' = (1 + strength) A where A > 0 and S > upper or A < 0 and S < lower, (1 - strength) A where
    A > 0 and S < lower or A < 0 and S > upper, else A. [T] -> [T]

    After STARE, arXiv 2606.19236. The released code uses another rule (docs/methods/stare.md); these weights
    are our own derivation. S = -log pi is the token's surprisal; lower and upper are its quantiles over the
    update, see `find_quantiles`. To first order, a gradient step on one token changes the entropy of its
    distribution by A (pi (S - H) + c) with c equal for all tokens: |A| is raised where A (S - H) is positive.
    """
    high, low = inputs.prepared["high"].bool(), inputs.prepared["low"].bool()
    up, down = inputs.advantages > 0, inputs.advantages < 0
    raised, shrunk = (up & high) | (down & low), (up & low) | (down & high)
    weight = 1.0 + options.strength * (raised.to(inputs.advantages) - shrunk.to(inputs.advantages))
    return TokenTransform(advantages=weight * inputs.advantages, marks={"raised": raised, "shrunk": shrunk})


def find_quantiles(columns: Mapping[str, np.ndarray], options: StareOptions) -> Prepared:
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
