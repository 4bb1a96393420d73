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


@dataclass
class ClipCovOptions:
    """Clip-Cov, arXiv 2505.22617: no gradient on a few tokens of high covariance of logprob and advantage.

    Defaults are those of the paper's runs (PRIME-RL/Entropy-Mechanism-of-RL, recipe/dapo/7b_clip_cov.sh).
    """

    fraction: float = 2e-4
    """Share of the update's tokens to take out."""
    lower: float = 1.0
    upper: float = 5.0
    """Tokens are taken out between these covariances; both depend on the model and the reward's scale."""
    clip_low: float = 1.0
    clip_high: float = 1.0
    """The ratio's own clip: [0, 2] in the runs, on purpose; the paper's other methods have 0.2."""
    old: str = "proximal"
    """As in ppo_clip."""


@dataclass
class KlCovOptions:
    """KL-Cov, arXiv 2505.22617: a pull back to the old logprob on the tokens of highest covariance.

    beta is the paper's (verl's default is 0.1). The paper's 7B run has fraction 2e-3, its 32B run 2e-4.
    """

    fraction: float = 2e-4
    beta: float = 1.0
    old: str = "proximal"
    """As in ppo_clip, for the ratio and for the term."""


LOSSES: dict[str, Kind] = {
    "ppo_clip": Kind(PpoClipOptions, "trainer.losses:ppo_clip"),
    "nll": Kind(NllOptions, "trainer.losses:nll"),
    "clip_cov": Kind(ClipCovOptions, "trainer.covariance:clip_cov", "trainer.covariance:select_in_band"),
    "kl_cov": Kind(KlCovOptions, "trainer.covariance:kl_cov", "trainer.covariance:select_top"),
}
