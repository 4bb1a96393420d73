"""The roles of a run, as protocols. `cluster` binds them to actors; tests pass fakes.

Every method is awaitable, because the work happens elsewhere. A `WeightsRef` is whatever the learner's side
hands out for the generators to fetch: the loop passes it on without looking inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from rollouts.records import Completion, Judgement, Prompt, Submission
from trainer.collate import Batch, Learnable
from trainer.diagnose import Probe

WeightsRef = object


class Generator(Protocol):
    """All engines of a run."""

    async def generate(self, submission: Submission) -> list[Completion]: ...

    async def load(self, weights: WeightsRef) -> None: ...

    async def probe(self, probes: Sequence[Probe]) -> list[np.ndarray]:
        """Probe logprobs of every engine, in engine order."""
        ...


class Scorer(Protocol):
    """One way to judge; it sees the whole group."""

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]: ...


class Learner(Protocol):
    """All ranks of the learner."""

    async def score(self, batch: Batch) -> pa.Table:
        """Columns of `trainer.rows.score_columns` for all rows, keyed by sample_id."""
        ...

    async def update(self, batch: Batch, learnable: Learnable) -> list[dict[str, float]]:
        """Metric sums of each update, added over ranks."""
        ...

    async def publish(self, version: int) -> WeightsRef: ...

    async def probe(self, probes: Sequence[Probe]) -> np.ndarray: ...

    async def explain(
        self, probes: Sequence[Probe], observed: np.ndarray, current: WeightsRef, previous: WeightsRef | None
    ) -> str: ...

    async def export(self, folder: str) -> None: ...


class Buffer(Protocol):
    """Groups in, batches out, durable."""

    async def add(self, batch: pa.RecordBatch) -> None: ...

    async def take(self, num_groups: int, min_version: int) -> pa.Table | None: ...

    async def commit(self, step: int, columns: pa.Table, summary: Mapping[str, object]) -> float: ...
