"""Supervision: an actor that dies or hangs is replaced, and its calls are repeated on the replacement.

A `Supervised` is used like a `Handle`, but its calls survive the loss of the actor: each is repeated with the
same arguments until an actor has answered it. Methods called this way must be safe to repeat. Failures are
counted per actor; `progress` (a finished step) resets the count.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.spawn import ActorCallError, ActorLostError, Handle, wait_ready
from configs.schema import ClusterConfig

STALL_S = 5.0
"""An actor that does not answer for longer is reported; it is replaced after `cluster.hang_timeout_s`."""
PING_S = 1.0
"""Interval between pings of an actor."""
_MAX_BACKOFF_S = 30.0

Prepare = Callable[[Handle], Awaitable[None]]
"""Restores the state of a replacement, which has none yet."""


class ReportEvent(Protocol):
    """Receives events of supervision: the kind, the actor's label, and further fields."""

    def __call__(self, kind: str, actor: str, **fields: str | float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How often an actor may fail within a step, and time limits in seconds."""

    max_restarts: int
    backoff_s: float
    hang_s: float
    ready_s: float

    @classmethod
    def of(cls, config: ClusterConfig) -> Limits:
        """The limits of a config."""
        return cls(
            max_restarts=config.max_restarts,
            backoff_s=config.restart_backoff_s,
            hang_s=config.hang_timeout_s,
            ready_s=config.ready_timeout_s,
        )


class Failures:
    """Counts the failures of one actor (or group of ranks) since the last finished step."""

    def __init__(self, label: str, limits: Limits, report: ReportEvent) -> None:
        self.label, self._limits, self._report = label, limits, report
        self._count = 0

    async def note(self, reason: str, counted: bool = True) -> None:
        """Report a failure, then wait (exponential backoff) before a replacement may start.

        Raises:
            ActorCallError: more than `max_restarts` failures within a step.
        """
        self._count += counted
        self._report("actor_lost", self.label, reason=reason)
        if self._count > self._limits.max_restarts:
            raise ActorCallError(
                f"{self.label} failed {self._count} times within one step "
                f"(cluster.max_restarts = {self._limits.max_restarts}); the last time: {reason}"
            )
        if self._count:
            await asyncio.sleep(min(self._limits.backoff_s * 2 ** (self._count - 1), _MAX_BACKOFF_S))

    def clear(self) -> None:
        """Reset the count, because a step was finished."""
        self._count = 0


async def nothing_to_prepare(handle: Handle) -> None:
    """The `Prepare` of an actor without state."""


class Supervised:
    """A `Handle` to the current actor with this label. `start` makes an actor; `prepare` restores its state.

    A life is the time of one actor, from its start to its replacement. Lives are numbered from 0, so that a
    failure of an earlier life is not taken for one of the current actor.
    """

    def __init__(
        self,
        label: str,
        start: Callable[[], Handle],
        limits: Limits,
        report: ReportEvent,
    ) -> None:
        self.label = label
        self.prepare: Prepare = nothing_to_prepare
        self._start, self._limits, self._report = start, limits, report
        self._failures = Failures(label, limits, report)
        self._handle = start()
        self._life = 0
        self._is_ended = False
        self._replacing: asyncio.Task[None] | None = None

    # -- as a handle -----------------------------------------------------------------------------------------

    async def ready(self) -> Any:
        """Wait for the first actor. One that fails to start is not replaced."""
        return await self._handle.ready()

    async def call(self, method: str, *arguments: object) -> Any:
        """Call `method` and return its result; the call is repeated on replacements until one has answered.

        Raises:
            ActorCallError: too many actors failed.
            Exception: what the method raised.
        """
        return await self._until_answered(lambda handle: handle.call(method, *arguments))

    async def call_ref(self, method: str, *arguments: object) -> object:
        """A reference to the result; otherwise as `call`."""
        return await self._until_answered(lambda handle: handle.call_ref(method, *arguments))

    async def stalled_for_s(self) -> float:
        """Seconds since the actor last made progress, as it measures that itself."""
        return await self._handle.stalled_for_s()

    def kill(self, force: bool = False) -> None:
        """Kill the actor for good: calls in flight and later ones raise ActorCallError."""
        self._is_ended = True
        if self._replacing is not None:
            self._replacing.cancel()
        self._handle.kill(force)

    # -- more than a handle ----------------------------------------------------------------------------------

    async def once(self, method: str, *arguments: object) -> Any:
        """Call `method` once. On ActorLostError a replacement is started, but the call is not repeated."""
        life = await self.settled()
        try:
            return await self._handle.call(method, *arguments)
        except ActorLostError as error:
            self._begin_replacing(life, str(error))
            raise

    def replace(self, reason: str, counted: bool = True, life: int | None = None) -> None:
        """Kill the actor and start another; calls wait for it. Does nothing if `life` is already over."""
        self._begin_replacing(self._life if life is None else life, reason, counted)

    @property
    def current(self) -> Handle:
        """The handle of the current actor, unsupervised."""
        return self._handle

    async def settled(self) -> int:
        """Wait while the actor is being replaced; returns the number of its current life.

        Raises:
            ActorCallError: too many actors failed, or it was killed for good.
        """
        while self._replacing is not None:
            # Shielded: cancelling one caller must not cancel the replacement that others wait for.
            await asyncio.shield(self._replacing)
        if self._is_ended:
            raise ActorCallError(f"{self.label} has been ended")
        return self._life

    def progress(self) -> None:
        """Report that a step was finished, which resets the count of failures."""
        self._failures.clear()

    async def watch(self) -> None:
        """Ping the actor every PING_S until cancelled, and replace it when it is dead or hangs."""
        while True:
            await asyncio.sleep(PING_S)
            life = await self.settled()
            reason = await quiet_reason(self._handle, self._limits.hang_s, self._report)
            if reason:
                self._begin_replacing(life, reason)

    async def _until_answered(self, act: Callable[[Handle], Coroutine[Any, Any, Any]]) -> Any:
        while True:
            life = await self.settled()
            try:
                return await act(self._handle)
            except ActorLostError as error:
                self._begin_replacing(life, str(error))

    def _begin_replacing(self, life: int, reason: str, counted: bool = True) -> None:
        # Calls may still be in flight when the actor is killed for good: they must not start another.
        if self._is_ended:
            return
        # Many calls fail when one actor is lost; only the first may start a replacement.
        if life != self._life or self._replacing is not None:
            return
        self._replacing = asyncio.create_task(self._replace(reason, counted), name=f"replace {self.label}")

    async def _replace(self, reason: str, counted: bool) -> None:
        """Start actors until one is ready. If none may be started any more, every later call raises why."""
        began = time.perf_counter()
        while True:
            self._handle.kill(force=True)
            # Waits longer after each failure, since what killed the actor (memory, a disk) may need time to
            # recover.
            await self._failures.note(reason, counted)
            handle = self._start()
            try:
                await wait_ready([handle], self._limits.ready_s)
                # Before calls reach it: an engine without the current weights would sample from the wrong
                # policy.
                await self.prepare(handle)
            except ActorLostError as error:
                handle.kill(force=True)
                reason, counted = str(error), True
                continue
            except BaseException:
                handle.kill(force=True)
                raise
            self._handle = handle
            self._life += 1
            # Cleared here, not when the task ends: a call made in between would wait for no reason.
            self._replacing = None
            self._report("actor_replaced", self.label, seconds=round(time.perf_counter() - began, 3))
            return


async def quiet_reason(handle: Handle, hang_s: float, report: ReportEvent) -> str:
    """Why the actor must be replaced, or "" if it need not be. No answer for STALL_S is reported."""
    asked = time.perf_counter()
    answer = asyncio.ensure_future(handle.stalled_for_s())
    try:
        await asyncio.wait({answer}, timeout=min(STALL_S, hang_s))
        if not answer.done() and hang_s > STALL_S:
            report("actor_stalled", handle.label, seconds=STALL_S)
            await asyncio.wait({answer}, timeout=hang_s - STALL_S)
            if answer.done():
                report("actor_answers", handle.label, seconds=round(time.perf_counter() - asked, 3))
        if not answer.done():
            return f"{handle.label} did not answer for {hang_s:g} s (cluster.hang_timeout_s)"
        stalled_s = answer.result()
        if stalled_s <= hang_s:
            return ""
        return f"{handle.label} made no progress for {stalled_s:.0f} s (cluster.hang_timeout_s)"
    except ActorLostError as error:
        return str(error)
    finally:
        answer.cancel()


class Fleet:
    """Every supervised actor of a run: watched together, killed together."""

    def __init__(self, watched: Sequence[Watched]) -> None:
        self._watched = watched
        self._tasks: list[asyncio.Task[None]] = []

    def watch(self) -> None:
        """Begin to watch all of them."""
        self._tasks = [asyncio.create_task(each.watch(), name="watch") for each in self._watched]

    def progress(self) -> None:
        """Report that a step was finished to all of them."""
        for each in self._watched:
            each.progress()

    async def rest(self) -> None:
        """Stop watching; the actors keep running."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def close(self) -> None:
        """Stop watching and kill them all."""
        for task in self._tasks:
            task.cancel()
        for each in self._watched:
            each.kill()
        await self.rest()


class Watched(Protocol):
    """What a `Fleet` watches."""

    async def watch(self) -> None: ...

    def progress(self) -> None: ...

    def kill(self, force: bool = False) -> None: ...
