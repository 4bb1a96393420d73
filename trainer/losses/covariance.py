"""Clip-Cov and KL-Cov: tokens whose logprob and advantage move together are held back. Losses of the update.

The few tokens of highest covariance account for most of the fall of entropy. They are found over all learned
tokens of the update on all ranks, not per microbatch: see `trainer.losses.batch_statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from configs.kinds.losses import ClipCovOptions, KlCovOptions
from trainer.losses.batch_statistics import Prepared
from trainer.losses.per_token import LossInputs, TokenLoss, clip_marks, log_ratio, old_logprobs, ratio

QUANTILES = {"q50": 0.5, "q80": 0.8, "q98": 0.98, "q99.8": 0.998}


def clip_cov(inputs: LossInputs, options: ClipCovOptions) -> TokenLoss:
    """-min(r A, clip(r, 1 - low, 1 + high) A), and 0 without gradient on the selected tokens.

    Clip-Cov, arXiv 2505.22617; shapes [T]. `select_in_band` selected before the update.
    """
    old = old_logprobs(inputs, options.ratio_to)
    r, advantages = ratio(inputs.policy_logprobs, old), inputs.advantages
    low, high = 1.0 - options.clip_low, 1.0 + options.clip_high
    selected = inputs.prepared["selected"].bool()
    clipped = -torch.minimum(r * advantages, r.clamp(low, high) * advantages)
    marks = clip_marks(r, advantages, options.clip_low, options.clip_high) | {"cov": selected}
    return TokenLoss(loss=torch.where(selected, torch.zeros_like(clipped), clipped), marks=marks)


def kl_cov(inputs: LossInputs, options: KlCovOptions) -> TokenLoss:
    """-r A, and + beta |log pi - log pi_old| on the selected tokens; r is not clipped.

    KL-Cov, arXiv 2505.22617; shapes [T]. `select_top` selected before the update. The term's
    gradient at r = 1 is 0: it holds nothing back in the first update after the old logprobs were taken.
    """
    old = old_logprobs(inputs, options.ratio_to)
    selected = inputs.prepared["selected"].bool()
    drift = log_ratio(inputs.policy_logprobs, old).abs()
    loss = -ratio(inputs.policy_logprobs, old) * inputs.advantages
    return TokenLoss(
        loss=loss + options.beta * torch.where(selected, drift, torch.zeros_like(drift)),
        marks={"cov": selected},
    )


def covariances(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Cov_i = (log pi_i - mean log pi)(A_i - mean A) over the table's tokens, [T] of float64.

    Sums are exact, so every rank finds the same bits. A token of infinite or undefined logprob or advantage
    enters no mean and has Cov 0.
    """
    logprobs = columns["policy_logprobs"].astype(np.float64)
    advantages = columns["advantage"].astype(np.float64)
    known = np.isfinite(logprobs) & np.isfinite(advantages)
    found = np.zeros(len(known))
    if known.any():
        found[known] = _centred(logprobs[known]) * _centred(advantages[known])
    return found


def _centred(values: np.ndarray) -> np.ndarray:
    return values - math.fsum(values) / len(values)


def num_selected(fraction: float, draws: np.ndarray) -> int:
    """floor(fraction n + u), where u in [0, 1) is the sum of the tokens' draws modulo 1.

    On average exactly fraction n: no least of one token, which would be ten times the fraction in an update
    of 500 tokens at 2e-4. The sum depends on no token's own draw, so who is picked does not depend on u.
    """
    return min(len(draws), math.floor(fraction * len(draws) + math.fsum(draws) % 1.0))


def select_in_band(columns: Mapping[str, np.ndarray], options: ClipCovOptions) -> Prepared:
    """Clip-Cov's choice: a share `fraction` of all tokens, uniformly among those with lower < Cov < upper.

    Tokens that the ratio's clip has stopped already are not taken. The tokens with the smallest draws are.
    """
    found = covariances(columns)
    stopped = _is_clipped(columns, options)
    band = np.flatnonzero((found > options.lower) & (found < options.upper) & ~stopped)
    ranked = band[np.argsort(columns["draw"][band], kind="stable")]
    return _chosen(ranked[: num_selected(options.fraction, columns["draw"])], found)


def select_top(columns: Mapping[str, np.ndarray], options: KlCovOptions) -> Prepared:
    """KL-Cov's choice: the share `fraction` of all tokens with the highest Cov, of those with Cov above 0."""
    found = covariances(columns)
    ranked = np.argsort(-found, kind="stable")[: num_selected(options.fraction, columns["draw"])]
    return _chosen(ranked[found[ranked] > 0], found)


def _is_clipped(columns: Mapping[str, np.ndarray], options: ClipCovOptions) -> np.ndarray:
    """Where `clip_cov` has no gradient as the update starts."""
    old = columns[f"{options.ratio_to}_logprobs"].astype(np.float64)
    with np.errstate(invalid="ignore"):
        r = np.exp((columns["policy_logprobs"].astype(np.float64) - old).clip(-20.0, 20.0))
    advantages = columns["advantage"]
    too_high = (advantages > 0) & (r > 1.0 + options.clip_high)
    too_low = (advantages < 0) & (r < 1.0 - options.clip_low)
    stopped: np.ndarray = too_high | too_low
    return stopped


def _chosen(places: np.ndarray, covariance: np.ndarray) -> Prepared:
    selected = np.zeros(len(covariance), np.bool_)
    selected[places] = True
    if not len(covariance):
        return Prepared(columns={"selected": selected})
    values = np.quantile(covariance, list(QUANTILES.values()))
    stats = {f"cov_{name}": float(value) for name, value in zip(QUANTILES, values, strict=True)}
    return Prepared(columns={"selected": selected}, stats=stats)
