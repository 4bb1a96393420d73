"""The records that the roles of a step hand to each other. Plain data: loads neither torch nor an engine.

Made by `trainer.collate` (a batch and what is learned from it), by the loop (probes and picks) and by the
buffer (what it has after it went back); taken by the roles of `trainer.roles`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """`microbatches[rank][update]` is a list of microbatches, each a list of row numbers.

    Every rank has the same number of microbatches in an update (empty lists pad it out), because under
    ZeRO-3 every forward is a collective.
    """

    microbatches: tuple[tuple[tuple[tuple[int, ...], ...], ...], ...]

    def rows_of(self, rank: int) -> tuple[int, ...]:
        """All rows of one rank, in the order its shard holds them."""
        return tuple(row for update in self.microbatches[rank] for micro in update for row in micro)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One step's rows. `index` is the buffer's table (row i of every column below is its row i)."""

    index: pa.Table
    plan: BatchPlan
    group_N: np.ndarray
    update_N: np.ndarray
    reward_N: np.ndarray
    """float64, NaN where the reward is null. Such a row is kept, but never learned from, unless of sft."""

    def rows_of(self, origin: str) -> np.ndarray:
        """The numbers of the rows of `origin`, ascending."""
        return np.flatnonzero(origins_of(self.index) == origin)

    def only(self, rows: np.ndarray) -> Batch:
        """These rows alone, for measuring: groups are numbered anew from 0, and the plan is empty."""
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
    """Per row: its credit and the weight of its loss tokens; per update: the learning rate."""

    advantage_N: np.ndarray
    bonus_N: np.ndarray
    """Added to the advantage of every token outside the row's answer."""
    visits_N: np.ndarray
    """Samples of the row's prompt with its answer in earlier steps."""
    row_weight_N: np.ndarray
    learning_rates: tuple[float, ...]
    settings: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the objective that a controller moved, by dotted config key."""


def origins_of(index: pa.Table) -> np.ndarray:
    """The origin of every row, [N] of str."""
    return np.array(index.column("origin").to_pylist(), dtype=object)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A token sequence of at least two tokens; every token but the first is scored."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """A group to train on again: `step` is the committed step that holds it (rollouts/step=N)."""

    step: int
    submission_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a buffer has after it went back: submissions that wait, steps it gave up, damage it found."""

    waiting: tuple[int, ...]
    abandoned_steps: tuple[int, ...]
    damaged: tuple[str, ...]
