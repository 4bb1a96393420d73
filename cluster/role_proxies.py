"""The protocols of `trainer.roles`, implemented by calls to supervised actors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar, TypeVarTuple, cast

import numpy as np
import pyarrow as pa

from actors.requests import RankUpdate
from cluster.calls import BufferActor, GeneratorActor, LearnerRank, call, call_ref
from cluster.spawn import ActorLostError, Handle, wait_ready
from cluster.supervise import (
    PING_S,
    Failures,
    Limits,
    Prepare,
    ReportEvent,
    Supervised,
    nothing_to_prepare,
    quiet_reason,
)
from configs.bound import BoundRun
from rollouts.files import Json
from rollouts.records import Completion, Submission
from trainer.roles import LearnerLostError
from trainer.step_records import Batch, BatchPlan, Learnable, Pick, Probe, Restored
from trainer.weights.packed import PackedWeights

_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")
_OTHER_RANKS_S = 10.0
"""After a rank raised, time for the others to end: the death of one of them may have caused the error."""


class Engines:
    """All engines as one `Generator`: submission i goes to engine i modulo the number of engines.

    A replaced engine gets the current weights (`on_replaced`, which the weight transport sets), and is paused
    if the others are. Its submissions are repeated with the same seeds.
    """

    def __init__(self, engines: Sequence[Supervised]) -> None:
        self._engines = engines
        self.on_replaced: Prepare = nothing_to_prepare
        self._paused = False
        for engine in engines:
            engine.prepare = self._bring_up

    async def _bring_up(self, handle: Handle) -> None:
        await self.on_replaced(handle)
        if self._paused:
            await call(handle, GeneratorActor.pause)

    async def generate(self, submission: Submission) -> list[Completion]:
        # By number and not by load: a repeated submission goes to the engine that may still be sampling it.
        engine = self._engines[submission.submission_index % len(self._engines)]
        return await call(engine, GeneratorActor.generate, submission)

    async def load(self, weights: PackedWeights) -> None:
        """Load these weights (or a reference to them) into every engine, or its replacement if it is lost."""
        await self._all(GeneratorActor.load, weights)

    async def probe(self, probes: Sequence[Probe]) -> list[np.ndarray]:
        return await self._all(GeneratorActor.probe, probes)

    async def pause(self) -> None:
        self._paused = True
        await self._all(GeneratorActor.pause)

    async def resume(self) -> None:
        self._paused = False
        await self._all(GeneratorActor.resume)

    async def _all(
        self, method: Callable[[Any, *_Arguments], Coroutine[Any, Any, _Result]], *arguments: *_Arguments
    ) -> list[_Result]:
        return list(await asyncio.gather(*(call(engine, method, *arguments) for engine in self._engines)))


class NoEngines:
    """The `Generator` of a run on saved rollouts: nothing is sampled."""

    async def generate(self, submission: Submission) -> list[Completion]:
        raise RuntimeError(
            f"group {submission.submission_index} is missing from the saved rollouts, and this run has no "
            "engines to generate it"
        )

    async def probe(self, probes: Sequence[Probe]) -> list[np.ndarray]:
        return []

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...


class BufferProxy:
    """The rollout buffer. After a loss, its replacement reads the journal and repeats the last `take`."""

    def __init__(self, buffer_actor: Supervised) -> None:
        self._actor = buffer_actor
        self._step = 0
        self._taken: tuple[int, int, Sequence[Pick], pa.RecordBatch | None] | None = None
        buffer_actor.prepare = self._bring_up

    async def _bring_up(self, handle: Handle) -> None:
        await call(handle, BufferActor.reopen, self._step)
        if self._taken is not None:
            await call(handle, BufferActor.take, *self._taken)

    async def rewind(self, step: int, attempt: int) -> Restored:
        self._step, self._taken = step, None
        return await call(self._actor, BufferActor.rewind, step, attempt)

    async def adopt(self, run_dir: str) -> int:
        return await call(self._actor, BufferActor.adopt, run_dir)

    async def add(self, batch: pa.RecordBatch) -> None:
        await call(self._actor, BufferActor.add, batch)

    async def waiting(self) -> tuple[int, ...]:
        return await call(self._actor, BufferActor.waiting)

    async def rewards(self, first: int, last: int) -> pa.Table:
        return await call(self._actor, BufferActor.rewards, first, last)

    async def take(
        self,
        num_groups: int,
        min_version: int,
        replay: Sequence[Pick] = (),
        sft: pa.RecordBatch | None = None,
    ) -> pa.Table | None:
        arguments = (num_groups, min_version, tuple(replay), sft)
        rows = await call(self._actor, BufferActor.take, *arguments)
        self._taken = arguments if rows is not None else None
        return rows

    async def commit(self, step: int, columns: pa.Table, summary: Mapping[str, Json]) -> float:
        seconds = await call(self._actor, BufferActor.commit, step, columns, summary)
        self._step, self._taken = step, None
        return seconds

    async def shard(self, rows: Sequence[int]) -> pa.RecordBatch:
        """A reference to the rows of one rank, which the rank fetches from the buffer's node."""
        return await call_ref(self._actor, BufferActor.shard, rows)


def local_microbatches(plan: BatchPlan, rank: int) -> list[list[list[int]]]:
    """A rank's microbatches, by update, as row numbers of its shard (the rows `plan.rows_of(rank)`)."""
    numbers = iter(range(len(plan.rows_of(rank))))
    return [[list(islice(numbers, len(micro))) for micro in update] for update in plan.microbatches[rank]]


def add_sums(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One update's metrics, summed over ranks, except those that are equal on every rank (`rank/...`)."""
    names = sorted({name for part in parts for name in part if not name.startswith("rank/")})
    total = {name: sum(part.get(name, 0.0) for part in parts) for name in names}
    # The norm is of all ranks together already: adding it up would count it once per rank.
    return total | {"grad/norm": parts[0]["rank/grad_norm"], "grad/applied": parts[0]["rank/applied"]}


class LearnerGroup:
    """All learner ranks as one `Learner`; each rank fetches its own token-balanced shard.

    The ranks share the state (ZeRO): if one is lost, all are killed and `LearnerLostError` is raised.
    `restart` then starts new ones, which must load a checkpoint. Concurrent calls are made one after the
    other, so that all ranks enter their collectives in the same order.
    """

    def __init__(
        self, start: Callable[[], Sequence[Handle]], buffer: BufferProxy, limits: Limits, report: ReportEvent
    ) -> None:
        self._start, self._buffer, self._limits, self._report = start, buffer, limits, report
        self._failures = Failures("learner", limits, report)
        self._handles = start()
        self._lost = ""
        self._one_at_a_time = asyncio.Lock()

    async def ready(self) -> int:
        """Wait for all ranks; returns the number of parameters."""
        return int((await wait_ready(self._handles, self._limits.ready_s))[0])

    async def reset(self, run: BoundRun, buffer: BufferProxy) -> None:
        """Reset the ranks for another run: weights of step 0, a new optimizer, that run's losses and buffer.

        Raises:
            LearnerLostError: a rank died or hangs; all are killed.
        """
        self._buffer = buffer
        await self.all(LearnerRank.reset, run)

    async def restart(self) -> None:
        began = time.perf_counter()
        while True:
            await self._failures.note(self._lost or "restart requested")
            self._handles = self._start()
            try:
                await self.ready()
            except ActorLostError as error:
                self._lost = str(error)
                self.kill(force=True)
                continue
            self._lost = ""
            self._report("actor_replaced", "learner", seconds=round(time.perf_counter() - began, 3))
            return

    def progress(self) -> None:
        """Report that a step was finished, which resets the count of failures."""
        self._failures.clear()

    def kill(self, force: bool = False) -> None:
        """Kill all ranks."""
        for handle in self._handles:
            handle.kill(force)

    async def watch(self) -> None:
        """Ping the ranks every PING_S. If one is dead or hangs, all are killed and the next call fails."""
        while True:
            await asyncio.sleep(PING_S)
            for handle in self._handles if not self._lost else ():
                reason = await quiet_reason(handle, self._limits.hang_s, self._report)
                # `restart` may have replaced the ranks while this one was pinged.
                if reason and handle in self._handles and not self._lost:
                    self._lost = reason
                    self.kill(force=True)

    async def each(
        self,
        method: Callable[[Any, *_Arguments], _Result],
        arguments: Sequence[tuple[*_Arguments]],
        by_reference: bool = False,
    ) -> list[_Result]:
        """Call `method` on every rank, each with its own arguments; returns results (or references) by rank.

        Raises:
            LearnerLostError: a rank died or hangs; all are killed.
            Exception: what a rank raised.
        """
        async with self._one_at_a_time:
            return await self._each(method, arguments, by_reference)

    async def _each(
        self,
        method: Callable[[Any, *_Arguments], _Result],
        arguments: Sequence[tuple[*_Arguments]],
        by_reference: bool,
    ) -> list[_Result]:
        tasks = [
            asyncio.ensure_future(
                call_ref(handle, method, *own) if by_reference else call(handle, method, *own)
            )
            for handle, own in zip(self._handles, arguments, strict=True)
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            failures = [error for task in tasks if task.done() and (error := task.exception())]
            if failures and not any(isinstance(error, ActorLostError) for error in failures):
                # An error in one rank (a broken collective) may follow from the death of another.
                await asyncio.wait(tasks, timeout=_OTHER_RANKS_S)
        finally:
            for task in tasks:  # a rank that waits in a collective for a dead one would never answer
                task.cancel()
        errors = [task.exception() for task in tasks if task.done() and not task.cancelled()]
        lost = next((error for error in errors if isinstance(error, ActorLostError)), None)
        if lost is not None:
            self._lost = self._lost or str(lost)
            self.kill(force=True)
            raise LearnerLostError(self._lost) from lost
        for error in errors:
            if error is not None:
                raise error
        return [task.result() for task in tasks]

    async def all(
        self, method: Callable[[Any, *_Arguments], _Result], *arguments: *_Arguments
    ) -> list[_Result]:
        """As `each`, with the same arguments for every rank."""
        return await self.each(method, [arguments] * len(self._handles))

    async def compute_logprobs(self, batch: Batch) -> pa.Table:
        plan = batch.plan
        ranks = range(len(self._handles))
        # References only: the rows go from the buffer to the ranks without passing through the driver.
        shards = await asyncio.gather(*(self._buffer.shard(plan.rows_of(rank)) for rank in ranks))
        arguments = [(shards[rank], local_microbatches(plan, rank)) for rank in ranks]
        parts = await self.each(LearnerRank.compute_logprobs, arguments)
        return pa.Table.from_batches(parts)

    async def update(self, batch: Batch, learnable: Learnable) -> list[dict[str, float]]:
        updates = []
        for rank in range(len(self._handles)):
            rows = list(batch.plan.rows_of(rank))
            update = RankUpdate(
                microbatches=local_microbatches(batch.plan, rank),
                advantages_N=learnable.advantage_N[rows],
                bonuses_N=learnable.bonus_N[rows],
                row_weights_N=learnable.row_weight_N[rows],
                learning_rates=learnable.learning_rates,
                settings=learnable.settings,
            )
            updates.append((update,))
        return [add_sums(parts) for parts in zip(*await self.each(LearnerRank.update, updates), strict=True)]

    async def publish(self, version: int) -> PackedWeights:
        """A reference to a copy of all current weights, in rank 0's host memory."""
        versions = [(version,)] * len(self._handles)
        first, *_ = await self.each(LearnerRank.publish, versions, by_reference=True)
        return cast(PackedWeights, first)  # the other ranks return None

    async def probe(self, probes: Sequence[Probe]) -> np.ndarray:
        return (await self.all(LearnerRank.probe, probes))[0]

    async def explain(
        self,
        probes: Sequence[Probe],
        observed: np.ndarray,
        current: PackedWeights,
        previous: PackedWeights | None,
    ) -> str:
        """Which weights explain the engine's probe result `observed` (see `LearnerRank.explain`)."""
        return await call(self._handles[0], LearnerRank.explain, probes, observed, current, previous)

    async def save(self, folder: str) -> dict[str, str]:
        parts = await self.all(LearnerRank.save, folder)
        return {name: digest for part in parts for name, digest in part.items()}

    async def load(self, folder: str) -> None:
        await self.all(LearnerRank.load, folder)

    async def reset_reference(self, with_optimizer: bool) -> None:
        await self.all(LearnerRank.reset_reference, with_optimizer)

    async def export(self, folder: str) -> None:
        await self.all(LearnerRank.export, folder)
