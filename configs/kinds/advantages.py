"""Advantage estimators by name. A target is called as ``fn(rewards_N, group_N, options) -> advantages_N``.

`rewards_N` is float64 without nulls, `group_N` the group number of each row.
"""

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


ADVANTAGES: dict[str, Kind] = {
    "grpo": Kind(GrpoOptions, "trainer.advantages:grpo"),
    "dr_grpo": Kind(DrGrpoOptions, "trainer.advantages:dr_grpo"),
    "rloo": Kind(RlooOptions, "trainer.advantages:rloo"),
    "reinforce": Kind(ReinforceOptions, "trainer.advantages:reinforce"),
}
GROUP_BASELINE = frozenset({"grpo", "dr_grpo", "rloo"})
"""Kinds that compare a row with its siblings: a group of one would give them nothing."""
