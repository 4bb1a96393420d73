"""The records that the roles of a step exchange. Plain data: imports neither torch nor an engine.

`trainer.collate` makes batches and learnables, the loop makes probes and picks, and the buffer reports what
it restored. The roles of `trainer.roles` take them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """`microbatches[rank][update]` is a list of microbatches, each a list of row indexes.

    Every rank has the same number of microbatches in an update (padded with empty ones), because under ZeRO-3
    every forward is a collective.
    """

    microbatches: tuple[tuple[tuple[tuple[int, ...], ...], ...], ...]

    def rows_of(self, rank: int) -> tuple[int, ...]:
        """All rows of one rank, in the order its shard holds them."""
        return tuple(row for update in self.microbatches[rank] for micro in update for row in micro)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The N rows of a step. Entry i of every column belongs to row i of `index`, the buffer's table.

    `group_N` is each row's group and `update_N` its update, int64 from 0.
    """

    index: pa.Table
    plan: BatchPlan
    group_N: np.ndarray
    update_N: np.ndarray
    reward_N: np.ndarray
    """float64, NaN where the reward is null. Such rows are kept but not learned from, except those of sft."""

    def rows_of(self, origin: str) -> np.ndarray:
        """The indexes of the rows of `origin`, ascending."""
        return np.flatnonzero(origins_of(self.index) == origin)

    def only(self, rows: np.ndarray) -> Batch:
        """The rows at these indexes, for metrics: groups are renumbered from 0, and the plan is empty."""
        # From 0 without gaps, because metrics loop over the numbers of groups.
        _, group_N = np.unique(self.group_N[rows], return_inverse=True)
        return Batch(
            index=self.index.take(rows),
            plan=BatchPlan(microbatches=()),
            group_N=group_N,
            update_N=self.update_N[rows],
            reward_N=self.reward_N[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnable:
    """What the learner needs for the updates of a step besides the rows and their scores."""

    advantage_N: np.ndarray
    """float64."""
    bonus_N: np.ndarray
    """float64, added to the advantage of every token outside the row's answer."""
    visits_N: np.ndarray
    """int64, earlier samples of the row's prompt with its answer."""
    row_weight_N: np.ndarray
    """float64, the weight of each loss token of the row; 0 if the row is not learned from."""
    learning_rates: tuple[float, ...]
    """One per update."""
    settings: Mapping[str, float] = field(default_factory=dict)
    """Values of the objective set by controllers, by dotted config key."""


def origins_of(index: pa.Table) -> np.ndarray:
    """The origin of every row, [N] of str."""
    return np.array(index.column("origin").to_pylist(), dtype=object)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A sequence of at least two tokens; the logprob of every token but the first is computed."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """A group to train on again: `step` is the committed step that holds it (rollouts/step=N)."""

    step: int
    submission_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """The buffer's state after a rewind."""

    waiting: tuple[int, ...]
    """Submissions whose groups can be taken."""
    abandoned_steps: tuple[int, ...]
    """Committed steps after the restored one, which will be trained again."""
    damaged: tuple[str, ...]
    """A message for each damaged file."""
