"""Estimators of KL(policy || reference) from the logprobs of sampled tokens (http://joschu.net/blog/kl-approx.html).

d = log policy - log reference, in nats, on tokens sampled from the policy. All are elementwise, [T] -> [T].
Used as loss terms, as reward terms and as metrics.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.losses.clamping import clamp_value


def k1(policy_T: Tensor, ref_T: Tensor) -> Tensor:
    """d: unbiased, may be negative. As a loss term its expected gradient is zero, so use it in the reward."""
    return policy_T - ref_T


def k2(policy_T: Tensor, ref_T: Tensor) -> Tensor:
    """d^2 / 2: biased, but its expected gradient is the gradient of the KL."""
    return 0.5 * (policy_T - ref_T) ** 2


def k3(policy_T: Tensor, ref_T: Tensor) -> Tensor:
    """exp(-d) - 1 + d: unbiased and never negative. -d is clamped to 20 so that one token cannot overflow.

    Only the value is clamped: below d = -20 the gradient is 1 - exp(20), not 0.
    """
    # expm1 is accurate near d = 0, where exp(-d) - 1 would cancel in float32.
    log_ratio = clamp_value(ref_T - policy_T, low=-torch.inf)
    return torch.expm1(log_ratio) - log_ratio


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
