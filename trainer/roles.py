"""The roles of a run, as protocols. `cluster` binds them to actors; tests pass fakes.

Every method is awaitable, because the work happens elsewhere.
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
"""(probes, what an engine answered to them) -> a sentence that names the fault of the engine's weights."""


class LearnerLostError(RuntimeError):
    """The learner is gone with what it knew; after `restart` it is as at step 0 and loads a checkpoint."""


class Generator(Protocol):
    """All engines of a run."""

    async def generate(self, submission: Submission) -> list[Completion]: ...

    async def probe(self, probes: Sequence[Probe]) -> list[np.ndarray]:
        """Probe logprobs of every engine, in engine order."""
        ...

    async def pause(self) -> None:
        """Stop sampling; what is in flight stays where it is until `resume`."""
        ...

    async def resume(self) -> None: ...


class Scorer(Protocol):
    """One way to judge; it sees the whole group."""

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]: ...


class Learner(Protocol):
    """All ranks of the learner."""

    async def score(self, batch: Batch) -> pa.Table:
        """Columns of `trainer.model.rows.score_columns` for all rows, keyed by sample_id."""
        ...

    async def update(self, batch: Batch, learnable: Learnable) -> list[dict[str, float]]:
        """Metric sums of each update, added over ranks."""
        ...

    async def probe(self, probes: Sequence[Probe]) -> np.ndarray: ...

    async def save(self, folder: str) -> Mapping[str, str]:
        """Write weights and optimiser into the folder; sha256 by file name."""
        ...

    async def load(self, folder: str) -> None: ...

    async def restart(self) -> None:
        """After `LearnerLostError`: start it again, as at step 0."""
        ...

    async def reset_reference(self, with_optimizer: bool) -> None:
        """Make the policy as it is now the reference; with the optimizer, clear its moments too."""
        ...

    async def export(self, folder: str) -> None: ...


class WeightTransport(Protocol):
    """Moves weights from the learner to all engines. It owns both sides, which may wait for each other.

    It also brings up every engine that is replaced, during a sync or between two.
    """

    async def sync(self, version: int) -> Diagnosis:
        """Give every engine the learner's weights of now, as `version`; returns once all of them hold these.

        An engine that is lost on the way is waited for: its replacement holds them too. A version below the
        last one means that the run was set back. The diagnosis may hold on to the weights of both versions:
        drop it when the sync is proven.

        Raises:
            ValueError: an engine refused the weights.
            LearnerLostError: the learner died on the way; some engines may hold the new weights.
        """
        ...


class Buffer(Protocol):
    """Groups in, batches out, durable."""

    async def rewind(self, step: int, attempt: int) -> Restored:
        """Go back to the state after `step`: the groups of later steps wait again."""
        ...

    async def add(self, batch: pa.RecordBatch) -> None: ...

    async def waiting(self) -> tuple[int, ...]:
        """The submissions whose groups can be taken."""
        ...

    async def rewards(self, first: int, last: int) -> pa.Table:
        """submission_index and reward of all rows that wait, of submissions from `first` to below `last`."""
        ...

    async def take(
        self,
        num_groups: int,
        min_version: int,
        replay: Sequence[Pick] = (),
        sft: pa.RecordBatch | None = None,
    ) -> pa.Table | None:
        """The index of a step's rows: its own groups, replayed ones, the rows of `sft`; None if one lacks."""
        ...

    async def commit(self, step: int, columns: pa.Table, summary: Mapping[str, Json]) -> float: ...
