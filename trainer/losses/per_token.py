"""Losses per token, chosen by `loss.<origin>.kind`. `trainer.objective` calls, masks, weights and sums them.

A loss is ``per_token(inputs, options) -> [T]`` over a microbatch's completion tokens, concatenated row by row
(a `TokenLoss` if it also logs marks). An optional ``prepare(columns, options) -> columns`` gets the rows of
all ranks before the update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.kinds.losses import (
    AdvantageNllOptions,
    CeGppoOptions,
    CispoOptions,
    GppoOptions,
    GspoOptions,
    NllOptions,
    PpoClipOptions,
    ShapedOptions,
)
from trainer.losses.clamping import clamp_value


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLoss:
    """A loss per token [T], and marks: bool [T] by name, logged as the share of tokens that have them."""

    loss: Tensor
    marks: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """Columns of T loss tokens. Only `policy_logprobs` and `entropy` (nats) carry gradients.

    `rows` is each token's row in the microbatch and `positions` its position in the completion; a row's loss
    tokens are all present. `prepared` has the columns returned by the `prepare` of the loss (inside a
    transform: of that transform). Behavior logprobs are NaN where the sampler had another context.
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
    support: Tensor | None = None
    """[T, k + 1], with gradient: the policy's logprobs at k token ids, and of all other tokens together."""
    teacher: Tensor | None = None
    """[T, k + 1]: the teacher's at the same ids. Both are None but for rows that have a teacher."""


def log_ratio(policy_logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """policy - old, its value clamped to +-20 so that an outlier token cannot overflow float32. [T] -> [T]

    The gradient is that of policy - old everywhere; see `trainer.losses.clamping`.
    """
    return clamp_value(policy_logprobs - old_logprobs)


def ratio(policy_logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """r = exp(policy - old), exponent clamped as in `log_ratio`; d r = r d log pi everywhere. [T] -> [T]"""
    return log_ratio(policy_logprobs, old_logprobs).exp()


def old_logprobs(inputs: LossInputs, ratio_to: str) -> Tensor:
    """The denominator of the ratio [T]: logprobs of the policy before this step's updates, or of the sampler.

    With ``proximal`` r starts at 1 for every token, so on tokens of older weights the gradient is that of
    A log pi under the wrong distribution. With ``behavior`` r is the token's importance ratio. Rows whose
    sampler had another context (refined) or that were not sampled (sft) have no such ratio: a config that
    asks for it is refused, and the proximal logprobs are never used in its place.
    """
    assert ratio_to in ("proximal", "behavior"), ratio_to
    if ratio_to == "proximal":
        return inputs.proximal_logprobs
    assert not inputs.behavior_logprobs.isnan().any(), "learned tokens have behavior logprobs"
    return inputs.behavior_logprobs


def clip_marks(r: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> dict[str, Tensor]:
    """Where the clip is active, bool [T]: clip_high (A > 0, r > 1 + high), clip_low (A < 0, r < 1 - low)."""
    return {
        "clip_high": (advantages > 0) & (r > 1.0 + clip_high),
        "clip_low": (advantages < 0) & (r < 1.0 - clip_low),
    }


def apply_dual_clip(token_loss: TokenLoss, advantages: Tensor, dual_clip: float) -> TokenLoss:
    """Dual clip: where A < 0, min(loss, c |A|) with c = `dual_clip`; 0 leaves the loss unchanged.

    arXiv 1912.09729. Under PPO's min, a token with a negative advantage that has become much more likely has
    an unbounded loss -r A. Above r = c the loss is constant and has no gradient (mark clip_dual).
    """
    if not dual_clip:
        return token_loss
    bound = dual_clip * advantages.abs()
    # A strict comparison: exactly at the bound the token keeps its gradient.
    clipped = (advantages < 0) & (token_loss.loss > bound)
    marks = {**token_loss.marks, "clip_dual": clipped}
    return TokenLoss(loss=torch.where(clipped, bound, token_loss.loss), marks=marks)


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
    return apply_dual_clip(TokenLoss(loss=loss, marks=marks), inputs.advantages, options.dual_clip)


def mean_by_row(values: Tensor, rows: Tensor) -> Tensor:
    """The mean of `values` over the row of each token, in float64. [T], [T] -> [T]"""
    if not len(rows):
        return values.double()
    # float64: index_add sums thousands of tokens one by one, and float32 would lose digits of the mean.
    sums = values.new_zeros(int(rows.max()) + 1, dtype=torch.float64)
    counts = torch.zeros_like(sums)
    sums.index_add_(0, rows, values.double())
    counts.index_add_(0, rows, torch.ones_like(values, dtype=torch.float64))
    return (sums / counts)[rows]


def gspo(inputs: LossInputs, options: GspoOptions) -> TokenLoss:
    """-min(s A, clip(s, 1 - low, 1 + high) A) with s = sg(exp(mean_t log r_t)) r_t / sg(r_t). [T] -> [T]

    GSPO, arXiv 2507.18071 (the ratio of the sequence, length-normalised), in the form of its GSPO-token;
    r as in `ppo_clip`, sg stops the gradient.

    All tokens of a row share the row's ratio, so the row is clipped as a whole. With equal advantages the
    mean over a row's tokens is the sequence's -min(s A, clip(s) A), with the gradient
    -s A mean_t(grad log pi_t): `aggregate: sequence_mean` gives the published objective.
    """
    old = old_logprobs(inputs, options.ratio_to)
    # The mean is taken before the clamp: clamping each token first would change the sequence's ratio.
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
    marks are the tokens whose weight is clipped, whatever the sign of A.
    """
    r = ratio(inputs.policy_logprobs, old_logprobs(inputs, options.ratio_to)).detach()
    clipped = r.clamp(1.0 - options.clip_low, 1.0 + options.clip_high)
    loss = -clipped * inputs.advantages * inputs.policy_logprobs
    marks = {"clip_high": r > 1.0 + options.clip_high, "clip_low": r < 1.0 - options.clip_low}
    return TokenLoss(loss=loss, marks=marks)


def ce_gppo(inputs: LossInputs, options: CeGppoOptions) -> TokenLoss:
    """-b r / sg(r) A, with b = beta_low (1 - low) if A < 0 and r < 1 - low, beta_high (1 + high) if A > 0 and
    r > 1 + high, else sg(r); then the dual clip. [T] -> [T]

    CE-GPPO, arXiv 2509.20712; r as in `ppo_clip`, sg stops the gradient. Gradient weight -b A: a token that
    PPO's clip would drop keeps a bounded gradient, scaled by its beta. The dual clip still removes it.
    """
    return _preserved(inputs, options, options.beta_low, options.beta_high)


def gppo(inputs: LossInputs, options: GppoOptions) -> TokenLoss:
    """-min(r A, clip(r, (1 - low) r / sg(r), (1 + high) r / sg(r)) A), then the dual clip. [T] -> [T]

    GPPO, arXiv 2508.07629; r as in `ppo_clip`, sg stops the gradient. The value equals that of `ppo_clip`.
    Where PPO's clip drops the gradient, the gradient weight is -(1 + high) A (A > 0) or -(1 - low) A (A < 0).
    """
    return _preserved(inputs, options, 1.0, 1.0)


def _preserved(
    inputs: LossInputs, options: GppoOptions | CeGppoOptions, beta_low: float, beta_high: float
) -> TokenLoss:
    """PPO's clip with the gradient preserved beyond the bounds, scaled by `beta_low` and `beta_high`."""
    drift = log_ratio(inputs.policy_logprobs, old_logprobs(inputs, options.ratio_to))
    r = drift.detach().exp()
    marks = clip_marks(r, inputs.advantages, options.clip_low, options.clip_high)
    weight = torch.where(marks["clip_low"], beta_low * (1.0 - options.clip_low), r)
    weight = torch.where(marks["clip_high"], beta_high * (1.0 + options.clip_high), weight)
    # exp(drift - sg(drift)) is r / sg(r): its value is 1 and its gradient that of log pi.
    loss = -weight * (drift - drift.detach()).exp() * inputs.advantages
    return apply_dual_clip(TokenLoss(loss=loss, marks=marks), inputs.advantages, options.dual_clip)


def nll(inputs: LossInputs, options: NllOptions) -> Tensor:
    """-log pi(token): supervised fine-tuning and pretraining. [T] -> [T]"""
    return -inputs.policy_logprobs


def shaped(inputs: LossInputs, options: ShapedOptions) -> Tensor:
    """-p / (p + gamma) A with p = pi(token). [T] -> [T]

    Critique-GRPO, arXiv 2506.03106, on refined rows: p is under the row's own prompt, without the critique.
    Gradient weight -gamma p / (p + gamma)^2 A on the gradient of log pi: largest at p = gamma, -A / 4 there.
    """
    p = inputs.policy_logprobs.exp()
    return -p / (p + options.gamma) * inputs.advantages


def advantage_nll(inputs: LossInputs, options: AdvantageNllOptions) -> Tensor:
    """-A log pi(token). [T] -> [T]

    The second turn of RLTF-SD, arXiv 2602.02482, with A from the first turns' mean reward; REINFORCE on rows
    of the policy itself. Gradient weight -A. Where A < 0 it has no bound.
    """
    return -inputs.advantages * inputs.policy_logprobs
