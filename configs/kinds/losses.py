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
    """Factor of this origin's loss; not of KL anchors and the entropy bonus, which have their own `coef`."""
    aggregate: str = "token_mean"
    """token_mean, sequence_mean (mean of the sequences' means) or sequence_sum (over `sum_constant`)."""
    sum_constant: float = 0.0
    """For sequence_sum: the constant that divides each sequence's sum; 0 takes rollout.max_tokens."""


@dataclass
class PpoClipOptions:
    """-min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A); PPO, arXiv 1707.06347."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    ratio_to: str = "proximal"
    """What the ratio is taken to: proximal (the policy before this step's updates) or behavior (the sampler).

    Rows of older weights (replay, rollout.max_lag above 0) need behavior for a ratio that corrects for them.
    """
    dual_clip: float = 0.0
    """Where A < 0 the loss is held to dual_clip |A| (arXiv 1912.09729; verl's default is 3); 0 is off."""


@dataclass
class GspoOptions:
    """GSPO, arXiv 2507.18071: PPO's clip on the ratio of the whole sequence, normalised by its length.

    The bounds are those of the paper's section 5.1; its objective is `aggregate: sequence_mean`.
    """

    clip_low: float = 3e-4
    clip_high: float = 4e-4
    ratio_to: str = "proximal"
    """As in ppo_clip."""


@dataclass
class CispoOptions:
    """CISPO, MiniMax-M1, arXiv 2506.13585: a held ratio as the weight of A log pi, so no token is dropped.

    The paper sets no lower bound and gives no number for the upper one. The ratio is held to [0, 5] as in
    ScaleRL, arXiv 2510.13786, where 4, 5 and 8 did equally well.
    """

    clip_low: float = 1.0
    clip_high: float = 4.0
    ratio_to: str = "proximal"
    """As in ppo_clip."""


@dataclass
class GppoOptions:
    """GPPO, arXiv 2508.07629: the value of PPO's clip, with the bound as gradient weight beyond it.

    Bounds as in CE-GPPO; dual_clip as in the released scripts (3 in the released code).
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 10.0
    """As in ppo_clip."""
    ratio_to: str = "proximal"
    """As in ppo_clip."""


@dataclass
class CeGppoOptions:
    """CE-GPPO, arXiv 2509.20712: GPPO with the two sides' gradients scaled by beta_low and beta_high.

    Defaults are those of the paper's 1.5B run; its 7B run has beta_low 0.75.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    beta_low: float = 0.5
    """Of tokens with A < 0 below the bound: a larger one lowers entropy."""
    beta_high: float = 1.0
    """Of tokens with A > 0 above the bound: a larger one raises entropy."""
    dual_clip: float = 10.0
    """As in ppo_clip."""
    ratio_to: str = "proximal"
    """As in ppo_clip."""


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
    ratio_to: str = "proximal"
    """As in ppo_clip."""


@dataclass
class KlCovOptions:
    """KL-Cov, arXiv 2505.22617: a pull back to the old logprob on the tokens of highest covariance.

    beta is the paper's (verl's default is 0.1). The paper's 7B run has fraction 2e-3, its 32B run 2e-4.
    """

    fraction: float = 2e-4
    beta: float = 1.0
    ratio_to: str = "proximal"
    """As in ppo_clip, for the ratio and for the term."""


LOSSES: dict[str, Kind] = {
    "ppo_clip": Kind(PpoClipOptions, "trainer.losses.per_token:ppo_clip"),
    "gspo": Kind(GspoOptions, "trainer.losses.per_token:gspo"),
    "cispo": Kind(CispoOptions, "trainer.losses.per_token:cispo"),
    "gppo": Kind(GppoOptions, "trainer.losses.per_token:gppo"),
    "ce_gppo": Kind(CeGppoOptions, "trainer.losses.per_token:ce_gppo"),
    "nll": Kind(NllOptions, "trainer.losses.per_token:nll", supervised=True),
    "clip_cov": Kind(
        ClipCovOptions, "trainer.losses.covariance:clip_cov", "trainer.losses.covariance:select_in_band"
    ),
    "kl_cov": Kind(
        KlCovOptions,
        "trainer.losses.covariance:kl_cov",
        "trainer.losses.covariance:select_top",
    ),
}
