"""Rollouters by name. A target is ``async fn(submission, tools, options) -> Group``, one scored group.

See `trainer.rollout.rollouter` for what it gets and what its group must be. Training alone uses the rollouter
of a config; evaluations always take one turn.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.kinds.base import Kind, Options


@dataclass
class SingleTurnOptions(Options):
    """One completion of the prompt per sample, scored by every scorer."""


ROLLOUTERS: dict[str, Kind] = {
    "single_turn": Kind(SingleTurnOptions, "trainer.rollout.single_turn:single_turn"),
}
