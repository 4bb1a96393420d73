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

from configs.kinds.losses import NllOptions, PpoClipOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLoss:
    """A loss per token [T], and what it did to them: boolean [T] by name, logged as share of the tokens."""

    loss: Tensor
    marks: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """Columns of T tokens. `policy_logprobs` and `entropy` carry gradients, nothing else does.

    `rows` is the row of the microbatch each token belongs to; `prepared` holds what the loss's `prepare`
    returned. Behaviour logprobs are NaN where the sampler saw another context.
    """

    policy_logprobs: Tensor
    entropy: Tensor
    proximal_logprobs: Tensor
    behavior_logprobs: Tensor
    advantages: Tensor
    rows: Tensor
    prepared: Mapping[str, Tensor]


def ratio(policy_logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """exp(policy - old), the log-ratio held to +-20 so that one stray token cannot overflow float32."""
    return (policy_logprobs - old_logprobs).clamp(-20.0, 20.0).exp()


def ppo_clip(inputs: LossInputs, options: PpoClipOptions) -> Tensor:
    """-min(r A, clip(r, 1 - low, 1 + high) A) with r = policy / proximal, or policy / behavior.

    PPO, arXiv 1707.06347, eq. 7; separate bounds ("clip-higher") from DAPO, arXiv 2503.14476, eq. 8.

    With `old: proximal` r starts at 1 whoever sampled the token, so on tokens of older weights the gradient
    is that of A log pi under the wrong distribution. With `old: behavior` r is the token's importance ratio,
    and the bounds hold the policy near the sampler. A sampler that saw another context (refined rows), or
    none (sft rows), gives no such ratio: a config that asks for it is refused, never answered with proximal.
    """
    assert options.old in ("proximal", "behavior"), options.old
    old = inputs.behavior_logprobs if options.old == "behavior" else inputs.proximal_logprobs
    assert options.old == "proximal" or not old.isnan().any(), "learned tokens have behaviour logprobs"
    r = ratio(inputs.policy_logprobs, old)
    clipped = r.clamp(1.0 - options.clip_low, 1.0 + options.clip_high)
    return -torch.minimum(r * inputs.advantages, clipped * inputs.advantages)


def nll(inputs: LossInputs, options: NllOptions) -> Tensor:
    """-log pi(token): supervised fine-tuning and pretraining."""
    return -inputs.policy_logprobs
