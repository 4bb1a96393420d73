"""Changes of the advantage by name. A target is ``shape(inputs: LossInputs, options) -> advantages_T``.

They act on every learned token of origin policy before its loss, in the order of the config.
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


SHAPES: dict[str, Kind] = {
    "positive_reweight": Kind(PositiveReweightOptions, "trainer.shapes:positive_reweight"),
    "repo": Kind(RepoOptions, "trainer.shapes:repo"),
    "repo_r": Kind(RepoROptions, "trainer.shapes:repo_r"),
}
