"""Shapes that follow the entropy of a token's distribution, or its surprisal. Called by `transforms`.

Entropies and logprobs are at the sampling temperature, in nats, and have no gradient here. What is selected
is selected over the whole update (see `trainer.losses.batch_statistics`), so microbatches and ranks do not
change it.
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

    Entropy-shaped advantage, arXiv 2506.14758. With kappa above 1 no advantage changes its sign, and one of 0
    stays 0.
    """
    bonus = options.alpha * inputs.entropy.detach()
    return inputs.advantages + torch.minimum(bonus, inputs.advantages.abs() / options.kappa)


def top_entropy(inputs: LossInputs, options: TopEntropyOptions) -> TokenTransform:
    """A' = A on the share fraction of the update's tokens with the highest entropy, else 0. [T] -> [T]

    Forking tokens ("80/20"), arXiv 2506.01939. `select_entropy` selected before the update; the number of
    tokens that the loss is divided by stays that of all, as in the paper.
    """
    kept = inputs.prepared["kept"].bool()
    none = torch.zeros_like(inputs.advantages)
    return TokenTransform(advantages=torch.where(kept, inputs.advantages, none), marks={"kept": kept})


def select_entropy(columns: Mapping[str, np.ndarray], options: TopEntropyOptions) -> Prepared:
    """The ceil(fraction n) tokens of highest entropy before this step's updates; ties go to the first.

    The number is that of the tokens at or above the quantile 1 - fraction. The stat is the lowest entropy
    that was kept, in nats.
    """
    entropy = columns["entropy"].astype(np.float64)
    count = num_top(options.fraction, len(entropy))
    ranked = np.argsort(-entropy, kind="stable")[:count]
    kept = np.zeros(len(entropy), np.bool_)
    kept[ranked] = True
    stats = {"lowest_entropy": float(entropy[ranked].min())} if count else {}
    return Prepared(columns={"kept": kept}, stats=stats)


def num_top(fraction: float, count: int) -> int:
    """ceil(fraction x count), forgiving the rounding of the product: 0.2 x 15 is 3."""
    return math.ceil(fraction * count - 1e-9)


def stare(inputs: LossInputs, options: StareOptions) -> TokenTransform:
    """A' = (1 + strength) A where A > 0 and S > upper or A < 0 and S < lower, (1 - strength) A where
    A > 0 and S < lower or A < 0 and S > upper, else A. [T] -> [T]

    After STARE, arXiv 2606.19236, whose released rule is another one (docs/methods/stare.md): these weights
    are derived by us.
    S = -log pi is the token's surprisal; lower and upper are its quantiles over the update, see
    `find_quantiles`. To first order a step on one token changes the entropy of its distribution by
    A (pi (S - H) + c), c the same for all tokens: where A (S - H) is positive, |A| is raised.
    """
    high, low = inputs.prepared["high"].bool(), inputs.prepared["low"].bool()
    up, down = inputs.advantages > 0, inputs.advantages < 0
    raised, shrunk = (up & high) | (down & low), (up & low) | (down & high)
    weight = 1.0 + options.strength * (raised.to(inputs.advantages) - shrunk.to(inputs.advantages))
    return TokenTransform(advantages=weight * inputs.advantages, marks={"raised": raised, "shrunk": shrunk})


def find_quantiles(columns: Mapping[str, np.ndarray], options: StareOptions) -> Prepared:
    """Which tokens are above the quantile 1 - fraction of S, and which below the quantile `fraction`.

    S is under the weights that the update starts from. A token at a quantile is in neither, so that when all
    are alike nothing is changed. An infinite S counts as the largest of all.
    """
    surprisal = np.minimum(-columns["policy_logprobs"].astype(np.float64), np.finfo(np.float32).max)
    if not len(surprisal):
        return Prepared(columns={name: np.zeros(0, np.bool_) for name in ("high", "low")})
    lower, upper = np.quantile(surprisal, [options.fraction, 1.0 - options.fraction])
    return Prepared(
        columns={"high": surprisal > upper, "low": surprisal < lower},
        stats={"surprisal_lower": float(lower), "surprisal_upper": float(upper)},
    )
