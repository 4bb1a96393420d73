"""Losses by name. A target is called as ``per_token(inputs: LossInputs, options) -> loss_T``.

It neither masks, averages nor all-reduces; `prepare`, where a loss has one, sees the columns of all rows on
all ranks first.

Every entry under `loss:` (keyed by origin) also takes the common keys of `LossCommon`.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.kinds.base import Kind


@dataclass
class LossCommon:
    """Keys every loss takes beside its own options."""

    kind: str = ""
    weight: float = 1.0
    aggregate: str = "token_mean"
    """token_mean, sequence_mean (mean of the sequences' means) or sequence_sum (over `sum_constant`)."""
    sum_constant: float = 0.0
    """For sequence_sum: the constant that divides each sequence's sum; 0 takes rollout.max_tokens."""


@dataclass
class PpoClipOptions:
    """-min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A)."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    old: str = "proximal"
    """What the ratio is taken to: proximal (the policy before this step's updates) or behavior (the sampler).

    Rows of older weights (replay, rollout.max_lag above 0) need behavior for a ratio that corrects for them.
    """


@dataclass
class NllOptions:
    """Minus the logprob of the token: supervised rows."""


LOSSES: dict[str, Kind] = {
    "ppo_clip": Kind(PpoClipOptions, "trainer.losses:ppo_clip"),
    "nll": Kind(NllOptions, "trainer.losses:nll"),
}
