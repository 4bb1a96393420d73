"""The roles of a run, as protocols. `cluster` implements them by actors; tests use fakes.

Every method is awaitable, because the work runs in other processes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from rollouts.files import Json
from rollouts.records import Completion, Judgement, Prompt, Submission
from trainer.step_records import Batch, Learnable, Pick, Probe, Restored

Diagnosis = Callable[[Sequence[Probe], np.ndarray], Awaitable[str]]
"""(probes, an engine's probe logprobs) -> a sentence that names the fault of the engine's weights."""


class LearnerLostError(RuntimeError):
    """The learner died and lost its state. Call `restart`, then `load` a checkpoint."""


class Generator(Protocol):
    """All engines of a run."""

    async def generate(self, submission: Submission) -> list[Completion]:
        """One completion per seed of the submission, in order."""
        ...

    async def probe(self, probes: Sequence[Probe]) -> list[np.ndarray]:
        """Probe logprobs (nats, temperature 1) of every engine, in engine order."""
        ...

    async def pause(self) -> None:
        """Stop sampling; unfinished completions are continued after `resume`."""
        ...

    async def resume(self) -> None: ...


class Scorer(Protocol):
    """Scores a whole group at once."""

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        """One judgement per completion, in order."""
        ...


class Learner(Protocol):
    """All ranks of the learner."""

    async def compute_logprobs(self, batch: Batch) -> pa.Table:
        """Columns of `trainer.model.rows.score_columns` for all rows, keyed by sample_id."""
        ...

    async def update(self, batch: Batch, learnable: Learnable) -> list[dict[str, float]]:
        """Run the step's updates. Returns the metric sums of each update, added over ranks."""
        ...

    async def probe(self, probes: Sequence[Probe]) -> np.ndarray:
        """Probe logprobs (nats, temperature 1) under the current weights."""
        ...

    async def save(self, folder: str) -> Mapping[str, str]:
        """Write weights and optimizer state to the folder. Returns SHA-256 by file name."""
        ...

    async def load(self, folder: str) -> None:
        """Load weights and optimizer state that `save` wrote."""
        ...

    async def restart(self) -> None:
        """After `LearnerLostError`: start the learner again, in its state at step 0."""
        ...

    async def reset_reference(self, with_optimizer: bool) -> None:
        """Make the current policy the KL reference; `with_optimizer` also clears the optimizer's moments."""
        ...

    async def export(self, folder: str) -> None:
        """Write the current policy as a Hugging Face folder."""
        ...


class WeightTransport(Protocol):
    """Moves weights from the learner to all engines. Controls both sides, so a transfer may be a collective.

    It also loads the weights into every engine that is replaced, during a sync or between two.
    """

    async def sync(self, version: int) -> Diagnosis:
        """Load the learner's current weights, as `version`, into every engine; returns when all have them.

        If an engine dies meanwhile, this waits until its replacement has them too. A version below the last
        one means that the run was reset to a checkpoint. The diagnosis may keep the weights of both versions
        in memory: drop it when the sync is verified.

        Raises:
            ValueError: an engine refused the weights.
            LearnerLostError: the learner died meanwhile; some engines may have the new weights.
        """
        ...


class Buffer(Protocol):
    """Stores groups durably until a step takes them, and commits the rows of steps."""

    async def rewind(self, step: int, attempt: int) -> Restored:
        """Return to the state after `step`: the groups of later steps can be taken again."""
        ...

    async def add(self, batch: pa.RecordBatch) -> None:
        """Store a group. It is on disk when this returns."""
        ...

    async def waiting(self) -> tuple[int, ...]:
        """The submissions whose groups can be taken."""
        ...

    async def rewards(self, first: int, last: int) -> pa.Table:
        """submission_index and reward of all waiting rows of submissions `first` <= index < `last`."""
        ...

    async def take(
        self,
        num_groups: int,
        min_version: int,
        replay: Sequence[Pick] = (),
        sft: pa.RecordBatch | None = None,
    ) -> pa.Table | None:
        """The index of a step's rows: its own groups, replayed ones and the rows of `sft`.

        None if a group is missing or older than `min_version`.
        """
        ...

    async def commit(self, step: int, columns: pa.Table, summary: Mapping[str, Json]) -> float:
        """Write the taken rows with the learner's columns as `step` (from 1)."""
        ...
