"""Use a frozen model from any process: requests spread over its replicas, repeated when one is lost.

`ModelClient` implements `rewards.model_calls.Model`. The driver reaches replicas by their supervision; the
processes of scorers, which are given a pickled client, find them by their Ray names, replacements too.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import ray
from ray.util import list_named_actors

from actors.requests import EngineFailedError
from cluster.calls import ModelServer, call_once
from cluster.spawn import ActorCallError, ActorLostError, RayHandle
from cluster.supervise import Supervised
from rewards.model_calls import (
    ClassifyReply,
    EmbedReply,
    GenerateReply,
    GenerateRequest,
    ModelCallError,
    OverLong,
    TextOrPair,
)

_Input = TypeVar("_Input")
_Reply = TypeVar("_Reply")
_ATTEMPTS: Final = 3
"""Replicas that may be lost under the same inputs, which may be what ends them."""
_QUEUED: Final = 2
"""Inputs that a client has in flight, as a multiple of what the replicas compute at once."""
_LOOK_S: Final = 0.2
_AVOID_S: Final = 30.0
"""Seconds in which others are preferred to a replica that was lost."""
_CANCEL_S: Final = 10.0


class Replica(Protocol):
    """One replica, whichever actor it is now."""

    async def once(self, method: str, *arguments: object) -> Any:
        """Call a method; waits for a replacement if there is none yet. Raises ActorLostError."""
        ...


_Act: TypeAlias = Callable[[Replica, str, Sequence[_Input]], Coroutine[Any, Any, list[_Reply]]]
"""Calls a replica with the id of the call and a part of the inputs."""


class NamedReplica:
    """A replica found by the names of its Ray actors: `prefix` and the number of its life.

    Raises:
        ActorLostError: (from `once`) the actor is lost, or none was there within `wait_s` seconds.
    """

    def __init__(self, prefix: str, label: str, wait_s: float) -> None:
        self._prefix, self._label, self._wait_s = prefix, label, wait_s
        self._handle: RayHandle | None = None
        self._life = self._over = -1
        self._looking = asyncio.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # Locks and handles belong to an event loop and a process; a copy begins without them.
        return NamedReplica, (self._prefix, self._label, self._wait_s)

    async def once(self, method: str, *arguments: object) -> Any:
        handle, life = await self._current()
        try:
            return await handle.call(method, *arguments)
        except ActorLostError:
            self._over = max(self._over, life)
            raise

    async def _current(self) -> tuple[RayHandle, int]:
        async with self._looking:
            ends_at = time.monotonic() + self._wait_s
            while self._handle is None or self._life <= self._over:
                await asyncio.to_thread(self._look)
                if self._handle is not None and self._life > self._over:
                    break
                if time.monotonic() > ends_at:
                    raise ActorLostError(f"{self._label} was not replaced within {self._wait_s:g} s")
                await asyncio.sleep(_LOOK_S)
            return self._handle, self._life

    def _look(self) -> None:
        names = [name for name in list_named_actors() if name.startswith(self._prefix)]
        lives = sorted(int(name.removeprefix(self._prefix)) for name in names)
        if lives and lives[-1] > self._over:
            with suppress(ValueError):  # it has ended in between
                actor = ray.get_actor(f"{self._prefix}{lives[-1]}")
                self._handle, self._life = RayHandle(self._label, actor, None), lives[-1]


class LocalReplica:
    """A replica in this process, called from any event loop. It cannot be lost."""

    def __init__(self, actor: Supervised) -> None:
        self._actor = actor

    async def once(self, method: str, *arguments: object) -> Any:
        return await self._actor.current.call(method, *arguments)


class _Room:
    """Room for `limit` inputs in flight: first come, first served."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used = limit, 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def enter(self, number: int) -> None:
        """Wait until there is room for `number` inputs, at most `limit`, and take it."""
        # Not past those that wait, or a large call would never find room among small ones.
        if not self._waiting and self._used + number <= self._limit:
            self._used += number
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((number, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the room was given just before
                self.leave(number)
            else:
                self._admit()
            raise

    def leave(self, number: int) -> None:
        """Give the room back."""
        self._used -= number
        self._admit()

    def _admit(self) -> None:
        # Callers that are cancelled may not have run since: their turns are left out here.
        self._waiting = deque(entry for entry in self._waiting if not entry[1].done())
        while self._waiting and self._used + self._waiting[0][0] <= self._limit:
            number, turn = self._waiting.popleft()
            self._used += number
            turn.set_result(None)


class ModelClient:
    """A frozen model; see `rewards.model_calls.Model`. Used on one event loop.

    Inputs go in parts to the replicas with the fewest in flight; beside what the replicas compute at once
    (`max_num_seqs` each) as many wait, so that no replica idles. A part whose replica is lost is repeated on
    another, or on the replacement. A copy in another process begins with nothing in flight.
    """

    def __init__(self, name: str, replicas: Sequence[Replica], max_num_seqs: int) -> None:
        assert replicas, "a model has at least one replica"
        self._name, self._replicas, self._max_num_seqs = name, tuple(replicas), max_num_seqs
        self._loads = [0] * len(self._replicas)
        self._lost_at = [-math.inf] * len(self._replicas)
        self._room = _Room(_QUEUED * max_num_seqs * len(self._replicas))
        self._cancelling: set[asyncio.Task[None]] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return ModelClient, (self._name, self._replicas, self._max_num_seqs)

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[GenerateReply]:
        return await self._spread(
            requests, lambda replica, name, part: call_once(replica, ModelServer.generate, name, part)
        )

    async def classify(
        self, inputs: Sequence[TextOrPair], over_long: OverLong = "cut_left"
    ) -> list[ClassifyReply]:
        return await self._spread(
            inputs,
            lambda replica, name, part: call_once(replica, ModelServer.classify, name, part, over_long),
        )

    async def embed(self, inputs: Sequence[str], over_long: OverLong = "cut_right") -> list[EmbedReply]:
        return await self._spread(
            inputs, lambda replica, name, part: call_once(replica, ModelServer.embed, name, part, over_long)
        )

    async def _spread(self, inputs: Sequence[_Input], act: _Act[_Input, _Reply]) -> list[_Reply]:
        """The replies to all inputs, in order. If one part fails, the others are cancelled."""
        inputs = tuple(inputs)
        # No larger than an even share, so that all replicas work on one call.
        size = max(1, min(self._max_num_seqs, -(-len(inputs) // len(self._replicas))))
        parts = [inputs[at : at + size] for at in range(0, len(inputs), size)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._part(part, act)) for part in parts]
        except BaseExceptionGroup as errors:
            # The first is the cause; the others were cancelled because of it.
            raise errors.exceptions[0] from None
        return [reply for task in tasks for reply in task.result()]

    async def _part(self, part: Sequence[_Input], act: _Act[_Input, _Reply]) -> list[_Reply]:
        await self._room.enter(len(part))
        try:
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    return await self._once(part, act)
                except (ActorCallError, EngineFailedError) as error:
                    # Only a lost replica is a reason to repeat: an input that a model refuses is refused
                    # again.
                    if attempt == _ATTEMPTS or not isinstance(error, ActorLostError):
                        raise ModelCallError(f"model {self._name}: {error}") from error
            raise AssertionError("the last attempt returns or raises")
        finally:
            self._room.leave(len(part))

    async def _once(self, part: Sequence[_Input], act: _Act[_Input, _Reply]) -> list[_Reply]:
        k, call_id = self._least_loaded(), uuid.uuid4().hex
        self._loads[k] += len(part)
        try:
            return await act(self._replicas[k], call_id, part)
        except ActorLostError:
            self._lost_at[k] = time.monotonic()
            raise
        except asyncio.CancelledError:
            # Cancelling this task does not end the call in the other process.
            task = asyncio.ensure_future(self._cancel(self._replicas[k], call_id))
            self._cancelling.add(task)
            task.add_done_callback(self._cancelling.discard)
            raise
        finally:
            self._loads[k] -= len(part)

    def _least_loaded(self) -> int:
        """The replica with the fewest inputs in flight, those lost a moment ago last."""
        now = time.monotonic()
        return min(
            range(len(self._replicas)), key=lambda k: (now - self._lost_at[k] < _AVOID_S, self._loads[k], k)
        )

    async def _cancel(self, replica: Replica, call_id: str) -> None:
        with suppress(ActorCallError, TimeoutError):  # a lost replica has dropped the call with it
            async with asyncio.timeout(_CANCEL_S):
                await call_once(replica, ModelServer.cancel, call_id)
