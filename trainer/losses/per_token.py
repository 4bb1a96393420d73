"""Losses per token, chosen by `loss.<origin>.kind`. `trainer.objective` calls, masks, weights and sums them.

A loss is ``per_token(inputs, options) -> [T]`` over the completion tokens of a microbatch laid end to end (a
`TokenLoss` if it also has something to log), plus an optional ``prepare(columns, options) -> columns`` that
sees all rows of all ranks before the update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.kinds.losses import (
    CeGppoOptions,
    CispoOptions,
    GppoOptions,
    GspoOptions,
    NllOptions,
    PpoClipOptions,
)
from trainer.losses.clamping import clamp_value


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLoss:
    """A loss per token [T], and what it did to them: boolean [T] by name, logged as share of the tokens."""

    loss: Tensor
    marks: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """Columns of T tokens. `policy_logprobs` and `entropy` carry gradients, nothing else does.

    `rows` is the row of the microbatch each token belongs to; all learned tokens of a row are here, and
    `positions` are their places in its completion. What the `prepare` of the loss (or, inside a shape, of the
    shape) returned is in `prepared`. Behaviour logprobs are NaN where the sampler saw another context.
    """

    policy_logprobs: Tensor
    entropy: Tensor
    proximal_logprobs: Tensor
    behavior_logprobs: Tensor
    advantages: Tensor
    rows: Tensor
    token_ids: Tensor
    positions: Tensor
    prepared: Mapping[str, Tensor]


def log_ratio(policy_logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """policy - old, its value clamped to +-20 so that one stray token cannot overflow float32.

    The gradient is that of policy - old everywhere: see `trainer.losses.clamping`.
    """
    return clamp_value(policy_logprobs - old_logprobs)


def ratio(policy_logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """r = exp(policy - old), its exponent clamped as in `log_ratio`; d r = r d log pi everywhere."""
    return log_ratio(policy_logprobs, old_logprobs).exp()


def old_logprobs(inputs: LossInputs, old: str) -> Tensor:
    """What a ratio is taken to: the policy before this step's updates, or the sampler.

    To the proximal policy r starts at 1 whoever sampled the token, so on tokens of older weights the gradient
    is that of A log pi under the wrong distribution. To the sampler r is the token's importance ratio. A
    sampler that saw another context (refined rows), or none (sft rows), gives no such ratio: a config that
    asks for it is refused, never answered with proximal.
    """
    assert old in ("proximal", "behavior"), old
    if old == "proximal":
        return inputs.proximal_logprobs
    assert not inputs.behavior_logprobs.isnan().any(), "learned tokens have behaviour logprobs"
    return inputs.behavior_logprobs


def clip_marks(r: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> dict[str, Tensor]:
    """Where a bound takes effect: clip_high (A > 0, r > 1 + high) and clip_low (A < 0, r < 1 - low)."""
    return {
        "clip_high": (advantages > 0) & (r > 1.0 + clip_high),
        "clip_low": (advantages < 0) & (r < 1.0 - clip_low),
    }


def hold_losses(found: TokenLoss, advantages: Tensor, dual_clip: float) -> TokenLoss:
    """Dual clip: where A < 0, min(loss, c |A|) with c = `dual_clip`; 0 leaves the loss as it is.

    arXiv 1912.09729. A token of negative advantage that has become much likelier has an unbounded loss
    -r A under PPO's min; beyond r = c it is held there and has no gradient (mark clip_dual).
    """
    if not dual_clip:
        return found
    most = dual_clip * advantages.abs()
    held = (advantages < 0) & (found.loss > most)
    marks = {**found.marks, "clip_dual": held}
    return TokenLoss(loss=torch.where(held, most, found.loss), marks=marks)


def ppo_clip(inputs: LossInputs, options: PpoClipOptions) -> TokenLoss:
    """-min(r A, clip(r, 1 - low, 1 + high) A) with r = policy / proximal, or policy / behavior. [T] -> [T]

    PPO, arXiv 1707.06347, eq. 7; separate bounds ("clip-higher") from DAPO, arXiv 2503.14476, eq. 8;
    `dual_clip` from arXiv 1912.09729.

    Gradient weights on the gradient of log pi: -r A, but 0 where A > 0 and r > 1 + high, where A < 0 and
    r < 1 - low, and where A < 0 and r > dual_clip.
    """
    r = ratio(inputs.policy_logprobs, old_logprobs(inputs, options.ratio_to))
    clipped = r.clamp(1.0 - options.clip_low, 1.0 + options.clip_high)
    loss = -torch.minimum(r * inputs.advantages, clipped * inputs.advantages)
    marks = clip_marks(r, inputs.advantages, options.clip_low, options.clip_high)
    return hold_losses(TokenLoss(loss=loss, marks=marks), inputs.advantages, options.dual_clip)


def mean_by_row(values: Tensor, rows: Tensor) -> Tensor:
    """The mean of `values` [T] over each token's own row, in float64. [T], [T] -> [T]"""
    if not len(rows):
        return values.double()
    sums = values.new_zeros(int(rows.max()) + 1, dtype=torch.float64)
    counts = torch.zeros_like(sums)
    sums.index_add_(0, rows, values.double())
    counts.index_add_(0, rows, torch.ones_like(values, dtype=torch.float64))
    return (sums / counts)[rows]


def gspo(inputs: LossInputs, options: GspoOptions) -> TokenLoss:
    """-min(s A, clip(s, 1 - low, 1 + high) A) with s = sg(exp(mean_t log r_t)) r_t / sg(r_t). [T] -> [T]

    GSPO, arXiv 2507.18071 (the ratio of the sequence, length-normalised), in the form of its GSPO-token;
    r as in `ppo_clip`, sg stops the gradient.

    Every token of a row has the row's ratio, so the row is clipped as a whole. With equal advantages, tokens
    and their gradients average to the sequence's own -min(s A, clip(s) A), whose gradient is
    -s A mean_t(grad log pi_t): `aggregate: sequence_mean` is the published objective.
    """
    old = old_logprobs(inputs, options.ratio_to)
    # The mean is of the log-ratios as they are: clamped one by one, a stray token would move it.
    level = mean_by_row((inputs.policy_logprobs - old).detach(), inputs.rows).to(old.dtype)
    drift = log_ratio(inputs.policy_logprobs, old)
    s = (drift - drift.detach() + clamp_value(level)).exp()
    clipped = s.clamp(1.0 - options.clip_low, 1.0 + options.clip_high)
    loss = -torch.minimum(s * inputs.advantages, clipped * inputs.advantages)
    marks = clip_marks(s, inputs.advantages, options.clip_low, options.clip_high)
    return TokenLoss(loss=loss, marks=marks)


def cispo(inputs: LossInputs, options: CispoOptions) -> TokenLoss:
    """-sg(clip(r, 1 - low, 1 + high)) A log pi, r as in `ppo_clip`; sg stops the gradient. [T] -> [T]

    CISPO, MiniMax-M1, arXiv 2506.13585, eq. 4 and 5. Gradient weight -clip(r) A: bounded, and never 0. The
    marks are the tokens whose weight is held, whatever the sign of A.
    """
    r = ratio(inputs.policy_logprobs, old_logprobs(inputs, options.ratio_to)).detach()
    held = r.clamp(1.0 - options.clip_low, 1.0 + options.clip_high)
    loss = -held * inputs.advantages * inputs.policy_logprobs
    marks = {"clip_high": r > 1.0 + options.clip_high, "clip_low": r < 1.0 - options.clip_low}
    return TokenLoss(loss=loss, marks=marks)


def ce_gppo(inputs: LossInputs, options: CeGppoOptions) -> TokenLoss:
    """-b r / sg(r) A, with b = beta_low (1 - low) if A < 0 and r < 1 - low, beta_high (1 + high) if A > 0 and
    r > 1 + high, else sg(r); then the dual clip. [T] -> [T]

    CE-GPPO, arXiv 2509.20712; r as in `ppo_clip`, sg stops the gradient. Gradient weight -b A: what PPO's
    clip would drop keeps a bounded gradient, scaled by its beta. Held by the dual clip, a token has none.
    """
    return _preserved(inputs, options, options.beta_low, options.beta_high)


def gppo(inputs: LossInputs, options: GppoOptions) -> TokenLoss:
    """-min(r A, clip(r, (1 - low) r / sg(r), (1 + high) r / sg(r)) A), then the dual clip. [T] -> [T]

    GPPO, arXiv 2508.07629; r as in `ppo_clip`, sg stops the gradient. The value is that of `ppo_clip`; where
    PPO's clip drops the gradient, its weight is -(1 + high) A (A > 0) or -(1 - low) A (A < 0).
    """
    return _preserved(inputs, options, 1.0, 1.0)


def _preserved(
    inputs: LossInputs, options: GppoOptions | CeGppoOptions, beta_low: float, beta_high: float
) -> TokenLoss:
    drift = log_ratio(inputs.policy_logprobs, old_logprobs(inputs, options.ratio_to))
    r = drift.detach().exp()
    marks = clip_marks(r, inputs.advantages, options.clip_low, options.clip_high)
    held = torch.where(marks["clip_low"], beta_low * (1.0 - options.clip_low), r)
    held = torch.where(marks["clip_high"], beta_high * (1.0 + options.clip_high), held)
    loss = -held * (drift - drift.detach()).exp() * inputs.advantages
    return hold_losses(TokenLoss(loss=loss, marks=marks), inputs.advantages, options.dual_clip)


def nll(inputs: LossInputs, options: NllOptions) -> Tensor:
    """-log pi(token): supervised fine-tuning and pretraining."""
    return -inputs.policy_logprobs
