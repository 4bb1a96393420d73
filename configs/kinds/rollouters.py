"""Rollouters by name. A target is ``async fn(submission, tools, options) -> Group``, one scored group.

See `trainer.rollout.rollouter` for what it gets and what its group must be. Training alone uses the rollouter
of a config; evaluations always take one turn.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.fields import NOT_EMPTY, POSITIVE, option
from configs.kinds.base import Kind, Options


@dataclass
class SingleTurnOptions(Options):
    """One completion of the prompt per sample, scored by every scorer."""


@dataclass
class CandidatesOptions(Options):
    """Several answers in one completion, each scored on its own; the reward shape vpo uses their scores."""

    separator: str = option("<or>", NOT_EMPTY)
    """The text between two answers, which the policy must have learned to write."""
    max_candidates: int = option(3, POSITIVE)
    """Answers that are scored; what follows them is not."""


ROLLOUTERS: dict[str, Kind] = {
    "candidates": Kind(CandidatesOptions, "trainer.rollout.candidates:candidates"),
    "single_turn": Kind(SingleTurnOptions, "trainer.rollout.single_turn:single_turn"),
}
