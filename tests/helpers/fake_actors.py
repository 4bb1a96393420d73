"""Actors below the process boundary: handles in memory that die, hang and answer as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.spawn import ActorLostError
from cluster.supervise import Limits, Supervised

Behavior = Callable[..., Awaitable[object]]
LIMITS = Limits(max_restarts=2, backoff_s=0.0, hang_s=60.0, ready_s=60.0)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """In a loop of its own; what hangs is a failed test, also where it swallows that it was cancelled."""

    async def within_limit() -> Any:
        async with asyncio.timeout(60) as limit:
            found = await work
        assert not limit.expired(), "it hung"
        return found

    return asyncio.run(within_limit())


async def forever(*arguments: object) -> object:
    """Never answers."""
    return await asyncio.Event().wait()


async def dies(*arguments: object) -> object:
    """What a call gives whose actor died under it."""
    raise ActorLostError("it died")


async def arguments_of(*arguments: object) -> object:
    """An actor that answers with what it was given."""
    return arguments


@dataclass
class FakeHandle:
    """One life of an actor. Methods without a behavior of their own answer with their arguments."""

    label: str = "actor"
    behaviors: dict[str, Behavior] = field(default_factory=dict)
    alive_for: Callable[[], Awaitable[float]] | None = None
    calls: list[tuple[object, ...]] = field(default_factory=list)
    dead: asyncio.Event = field(default_factory=asyncio.Event)

    async def call(self, method: str, *arguments: object) -> Any:
        self.calls.append((method, *arguments))
        return await self._unless_dead(self.behaviors.get(method, arguments_of)(*arguments), method)

    async def call_ref(self, method: str, *arguments: object) -> object:
        return "kept", await self.call(method, *arguments)

    async def stalled_for_s(self) -> float:
        return float(await self._unless_dead(self.alive_for(), "stalled_for_s")) if self.alive_for else 0.0

    async def ready(self) -> Any:
        return await self.call("ready")

    def kill(self, force: bool = False) -> None:
        self.dead.set()

    async def _unless_dead(self, work: Awaitable[Any], method: str) -> Any:
        task, death = asyncio.ensure_future(work), asyncio.ensure_future(self.dead.wait())
        try:
            await asyncio.wait({task, death}, return_when=asyncio.FIRST_COMPLETED)
            if self.dead.is_set():
                raise ActorLostError(f"{self.label} died during {method}")
            return task.result()
        finally:
            task.cancel()
            death.cancel()


@dataclass
class Lives:
    """The lives of one actor in order, the last of them again and again; `started` are those begun."""

    behaviors: Sequence[dict[str, Behavior]] = ({},)
    label: str = "actor"
    started: list[FakeHandle] = field(default_factory=list)

    def start(self) -> FakeHandle:
        number = min(len(self.started), len(self.behaviors) - 1)
        self.started.append(FakeHandle(label=self.label, behaviors=self.behaviors[number]))
        return self.started[-1]


@dataclass
class Events:
    """What supervision reported, as text."""

    lines: list[str] = field(default_factory=list)

    def __call__(self, kind: str, actor: str, **fields: str | float) -> None:
        reasons = [str(value) for name, value in fields.items() if name == "reason"]
        self.lines.append(" ".join([kind, actor, *reasons]))


def supervise(lives: Lives, events: Events | None = None, limits: Limits = LIMITS) -> Supervised:
    """A supervised actor with these lives."""
    return Supervised(lives.label, lives.start, limits, events or Events())
