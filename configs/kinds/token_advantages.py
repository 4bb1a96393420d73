"""Changes of the advantage by name. A target is ``shape(inputs: LossInputs, options) -> advantages_T``.

They act on every learned token of origin policy before its loss, in the order of the config. One with a
`prepare` sees all of an update's tokens first. See `trainer.token_advantages.transforms`.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.kinds.base import Kind


@dataclass
class PositiveReweightOptions:
    """Positive-advantage reweighting, arXiv 2511.05993: a factor on tokens with A > 0.

    The paper moves the factor by 0.05 against an entropy threshold; 0.5 is ours, within the range it sweeps.
    """

    weight: float = 0.5
    """Below 1 raises entropy, above 1 lowers it."""


@dataclass
class RepoOptions:
    """REPO, arXiv 2603.11682: A - beta log pi. The default is ours, a tenth of a reward at log pi = -10."""

    beta: float = 0.01


@dataclass
class RepoROptions:
    """REPO-R, arXiv 2603.11682: A - zeta |A| log pi. The default is ours; the paper doubles and halves it."""

    zeta: float = 0.01


@dataclass
class EntropyAdvantageOptions:
    """Entropy-shaped advantage, arXiv 2506.14758: A + min(alpha H, |A| / kappa). Its defaults for GRPO."""

    alpha: float = 0.4
    """The paper takes 0.1 with PPO."""
    kappa: float = 2.0


@dataclass
class TopEntropyOptions:
    """Forking tokens ("80/20"), arXiv 2506.01939: gradient only on the tokens of highest entropy."""

    fraction: float = 0.2


@dataclass
class HicraOptions:
    """HICRA, arXiv 2509.03646: A + alpha |A| on planning tokens, those inside a strategic n-gram."""

    path: str = ""
    """The n-grams: a file of `polyphony mine`; relative to the folder you start in."""
    alpha: float = 0.2
    mask: str = "mined"
    """mined, or random: as many tokens of every row, drawn at random, which is the control."""


@dataclass
class StareOptions:
    """After STARE, arXiv 2606.19236: |A| raised where it raises entropy, shrunk where it lowers it.

    Weights, quantiles and defaults are ours; the released rule is another one, see docs/methods/stare.md.
    """

    strength: float = 0.5
    """0 changes nothing, 1 doubles what is raised and drops what is shrunk. A `threshold` controller is the
    paper's gate."""
    fraction: float = 0.2
    """Share of the tokens at either end of the surprisal."""


@dataclass
class TisOptions:
    """Truncated importance sampling: A times min(proximal / behavior, cap). verl's cap."""

    level: str = "token"
    """token, or sequence: the product over the row, which is unbiased up to the cap and varies much more."""
    cap: float = 2.0


@dataclass
class IcepopOptions:
    """IcePop, arXiv 2510.18855: tokens whose proximal / behavior is out of bounds have no gradient."""

    low: float = 0.5
    high: float = 5.0
    weigh: bool = True
    """Whether kept tokens are weighted by their ratio, as published, or only the others are dropped."""


@dataclass
class RejectionOptions:
    """Rows whose mean log(proximal / behavior), as exp, is out of bounds have no gradient.

    verl's numbers, which bound the inverse there.
    """

    low: float = 0.999
    high: float = 1.001


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
        "trainer.token_advantages.entropy_transforms:find_quantiles",
    ),
    "tis": Kind(TisOptions, "trainer.token_advantages.off_policy:tis"),
    "icepop": Kind(IcepopOptions, "trainer.token_advantages.off_policy:icepop"),
    "rejection": Kind(RejectionOptions, "trainer.token_advantages.off_policy:rejection"),
}
