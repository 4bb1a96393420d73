"""Roles bound to actors: the protocols of `trainer.roles`, implemented by calls to handles."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import cycle, islice

import numpy as np
import pyarrow as pa

from actors.requests import RankUpdate
from cluster.spawn import Handle
from rollouts.records import Completion, Judgement, Prompt, Submission
from trainer.batch import BatchPlan
from trainer.collate import Batch, Learnable
from trainer.diagnose import Probe
from trainer.roles import WeightsRef


class Engines:
    """All engines as one `Generator`: submission i goes to engine i modulo their number."""

    def __init__(self, handles: Sequence[Handle]) -> None:
        self._handles = handles

    async def generate(self, submission: Submission) -> list[Completion]:
        handle = self._handles[submission.submission_index % len(self._handles)]
        return await handle.call("generate", submission)  # type: ignore[no-any-return]

    async def load(self, weights: WeightsRef) -> None:
        await asyncio.gather(*(handle.call("load", weights) for handle in self._handles))

    async def probe(self, probes: Sequence[Probe]) -> list[np.ndarray]:
        return list(await asyncio.gather(*(handle.call("probe", probes) for handle in self._handles)))


class ScorerReplicas:
    """The replicas of one scorer, used in turn."""

    def __init__(self, handles: Sequence[Handle]) -> None:
        self._turns = cycle(handles)

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        return await next(self._turns).call("score", prompt, completions)  # type: ignore[no-any-return]


class BufferProxy:
    """The rollout buffer."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    async def add(self, batch: pa.RecordBatch) -> None:
        await self._handle.call("add", batch)

    async def take(self, num_groups: int, min_version: int) -> pa.Table | None:
        return await self._handle.call("take", num_groups, min_version)

    async def commit(self, step: int, columns: pa.Table, summary: Mapping[str, object]) -> float:
        return await self._handle.call("commit", step, columns, summary)  # type: ignore[no-any-return]

    def start_shard(self, rows: Sequence[int]) -> object:
        """A reference to the shard with these rows; the rank fetches it from the buffer's node."""
        return self._handle.start("shard", rows)


def local_microbatches(plan: BatchPlan, rank: int) -> list[list[list[int]]]:
    """The rank's microbatches in numbers of its own shard, whose rows are `plan.rows_of(rank)` in order."""
    numbers = iter(range(len(plan.rows_of(rank))))
    return [[list(islice(numbers, len(micro))) for micro in update] for update in plan.microbatches[rank]]


def add_sums(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One update's metric sums over ranks; the gradient norm is global already, a skip is every rank's."""
    names = sorted({name for part in parts for name in part if not name.startswith("rank/")})
    total = {name: sum(part.get(name, 0.0) for part in parts) for name in names}
    return total | {"grad/norm": parts[0]["rank/grad_norm"], "grad/applied": parts[0]["rank/applied"]}


class LearnerGroup:
    """All learner ranks as one `Learner`; each fetches its own token-balanced shard."""

    def __init__(self, handles: Sequence[Handle], buffer: BufferProxy) -> None:
        self._handles, self._buffer = handles, buffer

    async def score(self, batch: Batch) -> pa.Table:
        calls = []
        for rank, handle in enumerate(self._handles):
            shard = self._buffer.start_shard(batch.plan.rows_of(rank))
            calls.append(handle.call("score", shard, local_microbatches(batch.plan, rank)))
        return pa.Table.from_batches(await asyncio.gather(*calls))

    async def update(self, batch: Batch, learnable: Learnable) -> list[dict[str, float]]:
        calls = []
        for rank, handle in enumerate(self._handles):
            rows = list(batch.plan.rows_of(rank))
            update = RankUpdate(
                microbatches=local_microbatches(batch.plan, rank),
                advantages_N=learnable.advantage_N[rows],
                row_weights_N=learnable.row_weight_N[rows],
                learning_rates=learnable.learning_rates,
            )
            calls.append(handle.call("update", update))
        return [add_sums(parts) for parts in zip(*await asyncio.gather(*calls), strict=True)]

    async def publish(self, version: int) -> WeightsRef:
        references = [handle.start("publish", version) for handle in self._handles]
        return references[0]

    async def probe(self, probes: Sequence[Probe]) -> np.ndarray:
        found = await asyncio.gather(*(handle.call("probe", probes) for handle in self._handles))
        return found[0]  # type: ignore[no-any-return]

    async def explain(
        self, probes: Sequence[Probe], observed: np.ndarray, current: WeightsRef, previous: WeightsRef | None
    ) -> str:
        return await self._handles[0].call("explain", probes, observed, current, previous)  # type: ignore[no-any-return]

    async def export(self, folder: str) -> None:
        await asyncio.gather(*(handle.call("export", folder) for handle in self._handles))
