"""Advantage estimators by name. A target is ``fn(rows: RewardedRows, options) -> advantages_N``."""

from __future__ import annotations

from dataclasses import dataclass

from configs.kinds.base import Kind


@dataclass
class GrpoOptions:
    """(r - mean) / (std + eps) over the group, std with the n - 1 divisor."""

    eps: float = 1.0e-6


@dataclass
class DrGrpoOptions:
    """r - mean over the group."""


@dataclass
class RlooOptions:
    """r - mean of the other rows of the group."""


@dataclass
class ReinforceOptions:
    """The reward itself: no baseline."""


@dataclass
class ReinforcePpOptions:
    """REINFORCE++, arXiv 2501.03262: rewards normalised over the whole step, not within the group."""

    baseline: str = "group"
    """group (REINFORCE++-baseline: the group's mean comes off first) or none (the step's numbers alone)."""
    eps: float = 1.0e-8


@dataclass
class PassAtKOptions:
    """Pass@k training, arXiv 2508.10751: every subset of k rows of the group shares its best reward."""

    k: int = 4
    """Ours: half of the default group, as no number was retrieved. A group of fewer rows gets zeros."""
    threshold: float = 0.5
    """A reward from here on is a success. Rewards of 0 and 1 need no other; of others the rest is lost."""
    eps: float = 1.0e-6


@dataclass
class WReinforceOptions:
    """W-REINFORCE, arXiv 2506.01347: right rows weigh `positive`, wrong ones 1."""

    positive: float = 0.1
    """The paper's lambda; 0 is NSR, which learns from wrong rows alone."""
    threshold: float = 0.5
    """As in pass_at_k."""


@dataclass
class QuantileOptions:
    """Quantile advantage estimation (QAE), arXiv 2509.22611: the group's quantile instead of its mean."""

    quantile: float = 0.4
    """The paper's K, recalled and not retrieved. Groups right in more than 1 - K of their rows teach by
    failures alone, all others by successes alone."""
    eps: float = 1.0e-6


ADVANTAGES: dict[str, Kind] = {
    "grpo": Kind(GrpoOptions, "trainer.credit.advantages:grpo"),
    "dr_grpo": Kind(DrGrpoOptions, "trainer.credit.advantages:dr_grpo"),
    "rloo": Kind(RlooOptions, "trainer.credit.advantages:rloo"),
    "reinforce": Kind(ReinforceOptions, "trainer.credit.advantages:reinforce"),
    "reinforce_pp": Kind(ReinforcePpOptions, "trainer.credit.advantages:reinforce_pp"),
    "pass_at_k": Kind(PassAtKOptions, "trainer.credit.advantages:pass_at_k"),
    "w_reinforce": Kind(WReinforceOptions, "trainer.credit.advantages:w_reinforce"),
    "quantile": Kind(QuantileOptions, "trainer.credit.advantages:quantile"),
}
GROUP_BASELINE = frozenset({"grpo", "dr_grpo", "rloo", "pass_at_k", "quantile"})
"""Kinds that compare a row with its siblings: a group of one would give them nothing."""
RIGHT_OR_WRONG = frozenset({"pass_at_k", "w_reinforce"})
"""Kinds that see of a reward only whether it is a success."""
