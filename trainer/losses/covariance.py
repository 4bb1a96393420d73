"""Clip-Cov and KL-Cov: losses that limit the tokens whose logprob and advantage covary most.

The few tokens with the highest covariance cause most of the loss of entropy. They are selected over all loss
tokens of the update on all ranks, not per microbatch; see `trainer.losses.batch_statistics`.
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

    Clip-Cov, arXiv 2505.22617. [T] -> [T]. `select_in_band` selects the tokens before the update.
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

    KL-Cov, arXiv 2505.22617. [T] -> [T]. `select_top` selects the tokens before the update. The gradient of
    the KL term is 0 at r = 1, so it has no effect in the first update after the old logprobs were computed.
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

    A token whose logprob or advantage is not finite is excluded from both means and has Cov 0.
    """
    logprobs = columns["policy_logprobs"].astype(np.float64)
    advantages = columns["advantage"].astype(np.float64)
    known = np.isfinite(logprobs) & np.isfinite(advantages)
    covariance = np.zeros(len(known))
    if known.any():
        covariance[known] = _centred(logprobs[known]) * _centred(advantages[known])
    return covariance


def _centred(values: np.ndarray) -> np.ndarray:
    # fsum rounds once, so the mean has the same bits on every rank and the selections agree.
    return values - math.fsum(values) / len(values)


def num_selected(fraction: float, draws: np.ndarray) -> int:
    """floor(fraction n + u), where u in [0, 1) is the sum of the tokens' draws modulo 1.

    The expected number is exactly fraction x n. A minimum of one token would instead select ten times the
    fraction in an update of 500 tokens at 2e-4. u is independent of each single draw, so it does not
    influence which tokens are selected.
    """
    return min(len(draws), math.floor(fraction * len(draws) + math.fsum(draws) % 1.0))


def select_in_band(columns: Mapping[str, np.ndarray], options: ClipCovOptions) -> Prepared:
    """Clip-Cov: select a share `fraction` of all tokens, uniformly among those with lower < Cov < upper.

    Tokens that the ratio clip already excludes are not selected. The tokens with the smallest draws are.
    """
    covariance = covariances(columns)
    clipped = _is_clipped(columns, options)
    band = np.flatnonzero((covariance > options.lower) & (covariance < options.upper) & ~clipped)
    # The draws are uniform, so the smallest ones are a uniform choice, the same on every rank.
    ranked = band[np.argsort(columns["draw"][band], kind="stable")]
    return _selection(ranked[: num_selected(options.fraction, columns["draw"])], covariance)


def select_top(columns: Mapping[str, np.ndarray], options: KlCovOptions) -> Prepared:
    """KL-Cov: select the share `fraction` of all tokens with the highest Cov, as far as Cov is above 0."""
    covariance = covariances(columns)
    # A stable sort breaks ties by (sample_id, position), the order of the table.
    ranked = np.argsort(-covariance, kind="stable")[: num_selected(options.fraction, columns["draw"])]
    return _selection(ranked[covariance[ranked] > 0], covariance)


def _is_clipped(columns: Mapping[str, np.ndarray], options: ClipCovOptions) -> np.ndarray:
    """bool [T]: where `clip_cov` has no gradient at the start of the update."""
    old = columns[f"{options.ratio_to}_logprobs"].astype(np.float64)
    with np.errstate(invalid="ignore"):  # -inf - -inf; such tokens have Cov 0 and are not selected
        r = np.exp((columns["policy_logprobs"].astype(np.float64) - old).clip(-20.0, 20.0))
    advantages = columns["advantage"]
    too_high = (advantages > 0) & (r > 1.0 + options.clip_high)
    too_low = (advantages < 0) & (r < 1.0 - options.clip_low)
    clipped: np.ndarray = too_high | too_low
    return clipped


def _selection(places: np.ndarray, covariance: np.ndarray) -> Prepared:
    """The mask of the tokens at `places`, and quantiles of the covariance as stats."""
    selected = np.zeros(len(covariance), np.bool_)
    selected[places] = True
    if not len(covariance):
        return Prepared(columns={"selected": selected})
    values = np.quantile(covariance, list(QUANTILES.values()))
    stats = {f"cov_{name}": float(value) for name, value in zip(QUANTILES, values, strict=True)}
    return Prepared(columns={"selected": selected}, stats=stats)
