"""Clamping that keeps the gradient. Used by losses and KL terms, whose exponents must not overflow."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20: exp(20) = 4.9e8 leaves room for sums in float32."""


def clamp_value(values: Tensor, low: float = -MAX_LOG_RATIO, high: float = MAX_LOG_RATIO) -> Tensor:
    """`values` clamped to [low, high], with the gradient of `values` itself: 1 beyond the bounds too.

    `Tensor.clamp` has gradient 0 there, so a token beyond the bounds would silently drop out of the loss.
    Values that are not finite are clamped too (NaN stays NaN) and have no gradient.
    """
    # inf - inf is NaN, which would spread to the whole loss, so such values get no straight-through term.
    straight_through = torch.where(values.isfinite(), values - values.detach(), 0.0)
    return values.detach().clamp(low, high) + straight_through
