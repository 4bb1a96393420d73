"""Token-advantage transforms by name. A target is ``fn(inputs: LossInputs, options) -> advantages_T``.

They act on every learned token of origin policy before its loss, in the order of the config. One with a
`prepare` sees all of an update's tokens first. See `trainer.token_advantages.transforms`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from configs.errors import Broken
from configs.fields import (
    NOT_EMPTY,
    NOT_NEGATIVE,
    SHARE,
    SHARE_ABOVE_ZERO,
    SHARE_BELOW_ONE,
    Rule,
    at_least,
    one_of,
    option,
)
from configs.kinds.base import Kind, Options, RunView
from configs.kinds.losses import RatioOptions
from configs.origins import POLICY

_KAPPA: Final = Rule(lambda value: value > 1, "must be above 1: no advantage may change its sign")
_TAIL: Final = Rule(lambda value: 0 < value <= 0.5, "must be above 0 and at most 0.5")


@dataclass
class PositiveReweightOptions(Options):
    """Positive-advantage reweighting, arXiv 2511.05993: a factor on tokens with A > 0.

    The paper moves the factor by 0.05 against an entropy threshold; 0.5 is ours, within the range it sweeps.
    """

    weight: float = option(0.5, NOT_NEGATIVE)
    """Below 1 raises entropy, above 1 lowers it."""


@dataclass
class RepoOptions(Options):
    """REPO, arXiv 2603.11682: A - beta log pi. The default is ours, a tenth of a reward at log pi = -10."""

    beta: float = option(0.01, NOT_NEGATIVE)
    """Advantage added per nat of -log pi."""


@dataclass
class RepoROptions(Options):
    """REPO-R, arXiv 2603.11682: A - zeta |A| log pi. The default is ours; the paper doubles and halves it."""

    zeta: float = option(0.01, NOT_NEGATIVE)
    """Multiple of |A| added per nat of -log pi."""


@dataclass
class EntropyAdvantageOptions(Options):
    """Entropy-shaped advantage, arXiv 2506.14758: A + min(alpha H, |A| / kappa). Its defaults for GRPO."""

    alpha: float = option(0.4, NOT_NEGATIVE)
    """The paper takes 0.1 with PPO."""
    kappa: float = option(2.0, _KAPPA)
    """The addition is at most |A| / kappa."""


@dataclass
class TopEntropyOptions(Options):
    """Forking tokens ("80/20"), arXiv 2506.01939: gradient only on the tokens of highest entropy."""

    fraction: float = option(0.2, SHARE_ABOVE_ZERO)
    """Share of the update's tokens that keep their gradient."""


@dataclass
class HicraOptions(Options):
    """HICRA, arXiv 2509.03646: A + alpha |A| on planning tokens, those inside a strategic n-gram."""

    path: str = option("", NOT_EMPTY)
    """The n-grams: a file of `polyphony mine`; relative to the folder you start in."""
    alpha: float = option(0.2, SHARE_BELOW_ONE)
    """Multiple of |A| added on planning tokens."""
    mask: str = option("mined", one_of("mined", "random"))
    """mined, or random: as many tokens of every row, drawn at random, which is the control."""

    def files(self) -> tuple[str, ...]:
        return (self.path,)


@dataclass
class StareOptions(Options):
    """STARE, arXiv 2606.19236, as released: weights on the tokens of highest surprisal, by sign of A.

    The defaults are its variant O1. Ours, with four quadrants, is entropy_quadrants.
    """

    amplify: float = option(1.1, at_least(1))
    """Weight of the chosen tokens with A > 0 (its W; 1.05 for models of 14B and 32B)."""
    damp: float = option(1.0, SHARE)
    """Weight of the chosen tokens with A < 0 (its M): 1 is variant O1, 0.9 is variant C2."""
    share: float = option(0.1, SHARE_ABOVE_ZERO)
    """Share of the tokens of each sign that are chosen."""
    gate: float = option(1.0, SHARE)
    """Scales how far both weights are from 1; 0 is off. The released gate is a `threshold` controller."""


@dataclass
class EntropyQuadrantsOptions(Options):
    """After the analysis of STARE, arXiv 2606.19236: |A| increased where it raises entropy, else reduced.

    Weights, quantiles and defaults are ours; the released rule is stare.
    """

    strength: float = option(0.5, SHARE)
    """0 changes nothing, 1 doubles what is raised and drops what is shrunk. A `threshold` controller is the
    paper's gate."""
    fraction: float = option(0.2, _TAIL)
    """Share of the tokens at either end of the surprisal."""


class SamplerCorrection(Options):
    """Options of a transform that may weigh tokens by proximal / behavior, which must happen only once."""

    def weighs(self) -> bool:
        """Whether it does with these options."""
        return True

    def check_run(self, key: str, run: RunView) -> Iterator[Broken]:
        if not self.weighs():
            return
        own_name = key.rpartition(".")[2]
        kind = run.token_advantages[own_name].kind_name
        policy = run.losses.get(POLICY)
        options = policy.options if policy is not None else None
        if isinstance(options, RatioOptions) and options.ratio_to == "behavior":
            rule = f"must not be {kind} with ratio_to: behavior, whose ratio corrects for the sampler already"
            yield f"{key}.kind", rule
        for name, entry in run.token_advantages.items():
            if name == own_name:
                break
            if isinstance(entry.options, SamplerCorrection) and entry.options.weighs():
                yield (
                    f"{key}.kind",
                    f"must not be {kind}: token_advantage.{name} weighs by proximal / behavior already",
                )
                break


@dataclass
class TisOptions(SamplerCorrection):
    """Truncated importance sampling: A times min(proximal / behavior, cap). verl's cap."""

    level: str = option("token", one_of("token", "sequence"))
    """token, or sequence: the product over the row, which is unbiased up to the cap and varies much more."""
    cap: float = option(2.0, at_least(1))
    """Largest ratio that is applied."""


@dataclass
class IcepopOptions(SamplerCorrection):
    """IcePop, arXiv 2510.18855: tokens whose proximal / behavior is out of bounds have no gradient."""

    low: float = option(0.5, SHARE)
    """Lowest ratio of a token that keeps its gradient."""
    high: float = option(5.0, at_least(1))
    """Highest ratio of a token that keeps its gradient."""
    weigh: bool = True
    """Whether kept tokens are weighted by their ratio, as published, or only the others are dropped."""

    def weighs(self) -> bool:
        return self.weigh


@dataclass
class RejectionOptions(Options):
    """Rows whose mean log(proximal / behavior), as exp, is out of bounds have no gradient.

    verl's numbers, which bound the inverse there.
    """

    low: float = option(0.999, SHARE)
    """Lowest ratio of a row that keeps its gradient."""
    high: float = option(1.001, at_least(1))
    """Highest ratio of a row that keeps its gradient."""


TOKEN_ADVANTAGES: dict[str, Kind] = {
    "positive_reweight": Kind(
        PositiveReweightOptions, "trainer.token_advantages.transforms:positive_reweight"
    ),
    "repo": Kind(RepoOptions, "trainer.token_advantages.transforms:repo"),
    "repo_r": Kind(RepoROptions, "trainer.token_advantages.transforms:repo_r"),
    "entropy_advantage": Kind(
        EntropyAdvantageOptions, "trainer.token_advantages.entropy_transforms:entropy_advantage"
    ),
    "top_entropy": Kind(
        TopEntropyOptions,
        "trainer.token_advantages.entropy_transforms:top_entropy",
        "trainer.token_advantages.entropy_transforms:select_entropy",
        masks=True,
    ),
    "hicra": Kind(
        HicraOptions,
        "trainer.token_advantages.planning:hicra",
        prepare="trainer.token_advantages.planning:mark_planning",
        start="trainer.token_advantages.planning:locate_grams",
    ),
    "stare": Kind(
        StareOptions,
        "trainer.token_advantages.entropy_transforms:stare",
        "trainer.token_advantages.entropy_transforms:choose_surprising",
    ),
    "entropy_quadrants": Kind(
        EntropyQuadrantsOptions,
        "trainer.token_advantages.entropy_transforms:entropy_quadrants",
        "trainer.token_advantages.entropy_transforms:find_quantiles",
    ),
    "tis": Kind(TisOptions, "trainer.token_advantages.off_policy:tis", masks=True),
    "icepop": Kind(IcepopOptions, "trainer.token_advantages.off_policy:icepop", masks=True),
    "rejection": Kind(RejectionOptions, "trainer.token_advantages.off_policy:rejection", masks=True),
}
