"""Transforms that correct for the difference between the sampler and the policy before the update.

They compare the policy before this step's updates (proximal) with the sampler (behavior). At max_lag 0 the
two differ only numerically, because engine and learner compute differently; with lag also by the updates in
between. Only advantages are changed. That is exact for losses proportional to A, while other terms (kl_cov's
penalty, a KL anchor, the entropy bonus) are not corrected. Dropped tokens still count in the number of tokens
that a loss is divided by.
"""

from __future__ import annotations

import torch
from torch import Tensor

from configs.kinds.token_advantages import IcepopOptions, RejectionOptions, TisOptions
from trainer.losses.clamping import clamp_value
from trainer.losses.per_token import LossInputs, mean_by_row
from trainer.token_advantages.transforms import TokenTransform


def sampler_drift(inputs: LossInputs) -> Tensor:
    """log proximal - log behavior per token [T], not clamped."""
    assert not inputs.behavior_logprobs.isnan().any(), "learned policy tokens have behavior logprobs"
    return inputs.proximal_logprobs - inputs.behavior_logprobs


def importance_ratio(log_ratio: Tensor) -> Tensor:
    """exp of a log-ratio per token or row, clamped to +-20 so that an outlier cannot overflow. [T] -> [T]

    Take a row's mean or sum before the clamp: clamping its tokens first would change the result.
    """
    return clamp_value(log_ratio).exp()


def tis(inputs: LossInputs, options: TisOptions) -> TokenTransform:
    """A' = min(proximal / behavior, cap) A, the ratio of the token or (`level: sequence`) of all the row's
    learned tokens multiplied. [T] -> [T]

    Truncated importance sampling with the truncation of IMPALA, arXiv 1802.01561, between learner and sampler
    as in verl's rollout correction. Mark `truncated`: tokens whose ratio is above the cap.
    """
    drift = sampler_drift(inputs)
    if options.level == "sequence":
        drift = sum_by_row(drift, inputs.rows).to(drift.dtype)
    weight = importance_ratio(drift)
    return TokenTransform(
        advantages=weight.clamp(max=options.cap) * inputs.advantages,
        marks={"truncated": weight > options.cap},
    )


def sum_by_row(values: Tensor, rows: Tensor) -> Tensor:
    """The sum of `values` over the row of each token, in float64. [T], [T] -> [T]"""
    counts = torch.bincount(rows)[rows]
    return mean_by_row(values, rows) * counts


def icepop(inputs: LossInputs, options: IcepopOptions) -> TokenTransform:
    """A' = k A where low <= k <= high, else 0; k = proximal / behavior, and 1 for k A if not `weigh`.
    [T] -> [T]

    IcePop, Ring-1T, arXiv 2510.18855. Mark `dropped`: tokens whose advantage is set to 0.
    """
    k = importance_ratio(sampler_drift(inputs))
    outside = (k < options.low) | (k > options.high)
    kept = k * inputs.advantages if options.weigh else inputs.advantages
    return TokenTransform(
        advantages=torch.where(outside, torch.zeros_like(kept), kept), marks={"dropped": outside}
    )


def rejection(inputs: LossInputs, options: RejectionOptions) -> TokenTransform:
    """A' = A where low <= exp(mean_t log(proximal / behavior)) <= high over the row, else 0. [T] -> [T]

    The sequence-level rejection of verl's rollout correction (`seq_mean_k1`), which bounds the inverse,
    exp(mean_t log(behavior / proximal)); no paper. Mark `dropped`: the tokens of rejected rows.
    """
    level = importance_ratio(mean_by_row(sampler_drift(inputs), inputs.rows))
    outside = (level < options.low) | (level > options.high)
    none = torch.zeros_like(inputs.advantages)
    return TokenTransform(
        advantages=torch.where(outside, none, inputs.advantages), marks={"dropped": outside}
    )
