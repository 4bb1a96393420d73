"""Losses by name. A target is called as ``per_token(inputs: LossInputs, options) -> loss_T``.

It neither masks, averages nor all-reduces; `prepare`, where a loss has one, sees the columns of all rows on
all ranks first.

Every entry under `loss:` (keyed by origin) also takes the common keys of `LossCommon`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from configs.errors import Broken
from configs.fields import NOT_NEGATIVE, POSITIVE, SHARE, SHARE_ABOVE_ZERO, Rule, one_of, option
from configs.kinds.base import Common, Kind, Options, RunView
from configs.origins import ORIGINS, POLICY, origins_where

_RATIO_TO: Final = one_of("proximal", "behavior")
_TEACHERS: Final = one_of("ema", "live", "base")
_CAP: Final = Rule(lambda value: value == 0 or value >= 1, "must be 0 (off) or at least 1")
_DUAL_CLIP: Final = Rule(lambda value: value == 0 or value > 1, "must be 0 (off) or above 1")


@dataclass
class LossCommon(Common):
    """Keys every loss takes beside its own options."""

    # unlike a scorer, a loss may not be climbed
    weight: float = option(1.0, NOT_NEGATIVE)
    """Factor of this origin's loss; not of KL anchors and the entropy bonus, which have their own `coef`."""
    aggregate: str = option("token_mean", one_of("token_mean", "sequence_mean", "sequence_sum"))
    """token_mean, sequence_mean (mean of the sequences' means) or sequence_sum (over `sum_constant`)."""
    sum_constant: float = option(0.0, NOT_NEGATIVE)
    """For sequence_sum: the constant that divides each sequence's sum; 0 takes rollout.max_tokens."""


class RatioOptions(Options):
    """Options of a loss with a ratio to another policy, `ratio_to`."""

    ratio_to: str

    def check_run(self, key: str, run: RunView) -> Iterator[Broken]:
        origin = key.rpartition(".")[2]
        loss, num_updates = run.losses[origin], run.config.learner.updates_per_step
        other_context = origins_where(lambda spec: spec.sampled != "same_context")
        if self.ratio_to == "behavior" and origin in other_context:
            yield f"{key}.ratio_to", "must be proximal: the sampler of these rows saw another context"
        # With one update per step the policy is still the proximal one, and every ratio is 1.
        if self.ratio_to == "proximal" and loss.kind.needs_ratios and num_updates == 1:
            needs = f"{loss.kind_name} needs learner.updates_per_step above 1 or ratio_to: behavior"
            yield f"{key}.kind", f"must have ratios other than 1: {needs}; otherwise use ppo_clip"


@dataclass
class PpoClipOptions(RatioOptions):
    """-min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A); PPO, arXiv 1707.06347."""

    clip_low: float = option(0.2, POSITIVE)
    """The ratio is clipped below 1 - clip_low."""
    clip_high: float = option(0.2, POSITIVE)
    """The ratio is clipped above 1 + clip_high."""
    ratio_to: str = option("proximal", _RATIO_TO)
    """What the ratio is taken to: proximal (the policy before this step's updates) or behavior (the sampler).

    Rows of older weights (replay, rollout.max_lag above 0) need behavior for a ratio that corrects for them.
    """
    dual_clip: float = option(0.0, _DUAL_CLIP)
    """Where A < 0 the loss is at most dual_clip |A| (arXiv 1912.09729; verl's default is 3); 0 is off."""


@dataclass
class GspoOptions(RatioOptions):
    """GSPO, arXiv 2507.18071: PPO's clip on the ratio of the whole sequence, normalised by its length.

    The bounds are those of the paper's section 5.1; its objective is `aggregate: sequence_mean`.
    """

    clip_low: float = option(3e-4, POSITIVE)
    """The sequence's ratio is clipped below 1 - clip_low."""
    clip_high: float = option(4e-4, POSITIVE)
    """The sequence's ratio is clipped above 1 + clip_high."""
    ratio_to: str = option("proximal", _RATIO_TO)
    """As in ppo_clip."""


@dataclass
class CispoOptions(RatioOptions):
    """CISPO, MiniMax-M1, arXiv 2506.13585: a held ratio as the weight of A log pi, so no token is dropped.

    The paper sets no lower bound and gives no number for the upper one. The ratio is held to [0, 5] as in
    ScaleRL, arXiv 2510.13786, where 4, 5 and 8 did equally well.
    """

    clip_low: float = option(1.0, POSITIVE)
    """The ratio is held above 1 - clip_low."""
    clip_high: float = option(4.0, POSITIVE)
    """The ratio is held below 1 + clip_high."""
    ratio_to: str = option("proximal", _RATIO_TO)
    """As in ppo_clip."""


@dataclass
class GppoOptions(RatioOptions):
    """GPPO, arXiv 2508.07629: the value of PPO's clip, with the bound as gradient weight beyond it.

    Bounds as in CE-GPPO; dual_clip as in the released scripts (3 in the released code).
    """

    clip_low: float = option(0.2, POSITIVE)
    """As in ppo_clip."""
    clip_high: float = option(0.2, POSITIVE)
    """As in ppo_clip."""
    dual_clip: float = option(10.0, _DUAL_CLIP)
    """As in ppo_clip."""
    ratio_to: str = option("proximal", _RATIO_TO)
    """As in ppo_clip."""


@dataclass
class CeGppoOptions(RatioOptions):
    """CE-GPPO, arXiv 2509.20712: GPPO with the two sides' gradients scaled by beta_low and beta_high.

    Defaults are those of the paper's 1.5B run; its 7B run has beta_low 0.75.
    """

    clip_low: float = option(0.2, POSITIVE)
    """As in ppo_clip."""
    clip_high: float = option(0.2, POSITIVE)
    """As in ppo_clip."""
    beta_low: float = option(0.5, NOT_NEGATIVE)
    """Of tokens with A < 0 below the bound: a larger one lowers entropy."""
    beta_high: float = option(1.0, NOT_NEGATIVE)
    """Of tokens with A > 0 above the bound: a larger one raises entropy."""
    dual_clip: float = option(10.0, _DUAL_CLIP)
    """As in ppo_clip."""
    ratio_to: str = option("proximal", _RATIO_TO)
    """As in ppo_clip."""


@dataclass
class NllOptions(Options):
    """Minus the logprob of the token: supervised rows."""


@dataclass
class ShapedOptions(Options):
    """-p / (p + gamma) A with p the policy's probability of the token, Critique-GRPO, arXiv 2506.03106.

    No ratio to a sampler, so it can train rows that were sampled under another context.
    """

    gamma: float = option(0.1, POSITIVE)
    """The probability at which a token's gradient is largest; those of likelier tokens are damped."""


@dataclass
class AdvantageNllOptions(Options):
    """-A log p: the logprob weighted by the advantage, without a ratio to a sampler (RLTF-SD, REINFORCE)."""


@dataclass
class SdpoLossOptions(Options):
    """Divergence between the policy and a teacher that reads more, SDPO, arXiv 2601.20802: rows of a refiner
    `sdpo`.

    Defaults are those of the authors' code.
    """

    alpha: float = option(0.5, SHARE)
    """0 is KL(teacher || policy), 1 is KL(policy || teacher), between them the generalised Jensen-Shannon
    divergence, which is not continuous there: it goes to 0 at both ends."""
    top_k: int = option(100, POSITIVE)
    """The divergence is over the policy's most likely tokens before the step, so many of them. As many as the
    vocabulary has are all of it."""
    tail: bool = True
    """Whether all other tokens together are one more; without, the top_k are renormalised."""
    ratio_cap: float = option(2.0, _CAP)
    """The loss of a token is multiplied by min(policy / proximal, ratio_cap), held constant; 0 is off."""
    tis_cap: float = option(2.0, _CAP)
    """The same with min(proximal / behavior, tis_cap); 0 is off."""
    teacher: str = option("ema", _TEACHERS)
    """Whose weights the teacher has: ema (a moving average of the policy's), live (the policy before the
    step) or base (the model of step 0)."""
    teacher_rate: float = option(0.05, SHARE)
    """For ema: after each step the teacher moves so far towards the policy."""

    def check_run(self, key: str, run: RunView) -> Iterator[Broken]:
        origin = key.rpartition(".")[2]
        if origin in ORIGINS and not ORIGINS[origin].taught:
            able = " or ".join(f"loss.{name}" for name in origins_where(lambda spec: spec.taught))
            yield f"{key}.kind", f"must be of {able}: other rows have no teacher"


@dataclass
class ClipCovOptions(RatioOptions):
    """Clip-Cov, arXiv 2505.22617: no gradient on a few tokens of high covariance of logprob and advantage.

    Defaults are those of the paper's runs (PRIME-RL/Entropy-Mechanism-of-RL, recipe/dapo/7b_clip_cov.sh).
    """

    fraction: float = option(2e-4, SHARE_ABOVE_ZERO)
    """Share of the update's tokens that get no gradient."""
    lower: float = 1.0
    """Lowest covariance of a token that may be selected; see `upper`."""
    upper: float = 5.0
    """Tokens are selected between these covariances; both depend on the model and the reward's scale."""
    clip_low: float = option(1.0, POSITIVE)
    """As in ppo_clip; see `clip_high`."""
    clip_high: float = option(1.0, POSITIVE)
    """The ratio's own clip: [0, 2] in the runs, on purpose; the paper's other methods have 0.2."""
    ratio_to: str = option("proximal", _RATIO_TO)
    """As in ppo_clip."""

    def check(self) -> Iterator[Broken]:
        if not self.lower < self.upper:
            yield "lower", f"must be below upper ({self.upper:g})"


@dataclass
class KlCovOptions(RatioOptions):
    """KL-Cov, arXiv 2505.22617: a penalty towards the old logprob on tokens of highest covariance.

    beta is the paper's (verl's default is 0.1). The paper's 7B run has fraction 2e-3, its 32B run 2e-4.
    """

    fraction: float = option(2e-4, SHARE_ABOVE_ZERO)
    """Share of the update's tokens that get the penalty."""
    beta: float = option(1.0, POSITIVE)
    """Factor of the penalty |log ratio|."""
    ratio_to: str = option("proximal", _RATIO_TO)
    """As in ppo_clip, for the ratio and for the term."""

    def check_run(self, key: str, run: RunView) -> Iterator[Broken]:
        yield from super().check_run(key, run)
        rollout, learner = run.config.rollout, run.config.learner
        # Rows of this step, sampled by the weights that are updated: the KL term and its gradient are zero.
        is_own = self.ratio_to == "proximal" or (key == f"loss.{POLICY}" and rollout.max_lag == 0)
        if learner.updates_per_step == 1 and is_own:
            yield f"{key}.kind", "must not be kl_cov: it has zero gradient when each step makes one update"


LOSSES: dict[str, Kind] = {
    "ppo_clip": Kind(PpoClipOptions, "trainer.losses.per_token:ppo_clip"),
    "gspo": Kind(GspoOptions, "trainer.losses.per_token:gspo", needs_ratios=True),
    "cispo": Kind(CispoOptions, "trainer.losses.per_token:cispo", needs_ratios=True),
    "gppo": Kind(GppoOptions, "trainer.losses.per_token:gppo", needs_ratios=True),
    "ce_gppo": Kind(CeGppoOptions, "trainer.losses.per_token:ce_gppo", needs_ratios=True),
    "nll": Kind(NllOptions, "trainer.losses.per_token:nll", supervised=True),
    "shaped": Kind(ShapedOptions, "trainer.losses.per_token:shaped"),
    "advantage_nll": Kind(AdvantageNllOptions, "trainer.losses.per_token:advantage_nll"),
    "sdpo": Kind(SdpoLossOptions, "trainer.losses.distillation:sdpo", taught=True, in_proportion=False),
    "clip_cov": Kind(
        ClipCovOptions, "trainer.losses.covariance:clip_cov", "trainer.losses.covariance:select_in_band"
    ),
    "kl_cov": Kind(
        KlCovOptions,
        "trainer.losses.covariance:kl_cov",
        "trainer.losses.covariance:select_top",
        in_proportion=False,
    ),
}
