"""A weight transport like a broadcast, for the tests of the seam: neither side gets through alone.

In memory, but over the product's own proxies (`LearnerGroup`, `Engines`, supervision), as a real one would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from fake_actors import Behavior

from cluster.calls import RemoteMethod, call, call_once
from cluster.role_proxies import Engines, LearnerGroup
from cluster.spawn import ActorLostError, Handle
from cluster.supervise import Supervised
from trainer.roles import Diagnosis
from trainer.step_records import Probe

SEND: Any = RemoteMethod("send")
RECEIVE: Any = RemoteMethod("receive")


class BrokenGroupError(RuntimeError):
    """What the others of a broadcast see once one of them is gone and the group was torn down."""


class BroadcastGroup:
    """`size` parties that all wait until all have come."""

    def __init__(self, size: int) -> None:
        self._missing = size
        self._changed = asyncio.Condition()
        self._broken = False

    async def meet(self) -> None:
        async with self._changed:
            self._missing -= 1
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._broken or self._missing == 0)
            if self._missing:
                raise BrokenGroupError("the broadcast group was torn down")

    async def tear_down(self) -> None:
        """Nobody else will come: those who wait are sent away."""
        async with self._changed:
            self._broken = True
            self._changed.notify_all()


def sending(log: list[str]) -> Behavior:
    """A rank's side of the broadcast."""

    async def send(version: int, group: BroadcastGroup) -> object:
        await group.meet()
        log.append(f"sent {version}")
        return None

    return send


def receiving(held: dict[str, int], label: str) -> Behavior:
    """An engine's side: it holds the version once all have met."""

    async def receive(version: int, group: BroadcastGroup) -> object:
        await group.meet()
        held[label] = version
        return None

    return receive


class BroadcastTransport:
    """Both sides at once, in a group made for each attempt. A loss tears the group down; the next has the
    replacement in it. An engine replaced between two syncs meets the ranks in a group of its own."""

    def __init__(self, learner: LearnerGroup, engines: Engines, supervised: Sequence[Supervised]) -> None:
        self._learner, self._supervised = learner, supervised
        self._version, self._syncing = -1, False
        self.num_groups = 0
        engines.on_replaced = self._bring_up

    async def sync(self, version: int) -> Diagnosis:
        self._syncing = True
        try:
            while not await self._attempt(version):
                pass
        finally:
            self._syncing = False
        self._version = version
        return _explain

    async def _attempt(self, version: int) -> bool:
        for engine in self._supervised:
            await engine.settled()
        group = self._group(len(self._supervised))
        sides: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._learner.all(SEND, version, group))]
        for engine in self._supervised:
            sides.append(asyncio.ensure_future(call_once(engine, RECEIVE, version, group)))
        await asyncio.wait(sides, return_when=asyncio.FIRST_EXCEPTION)
        await group.tear_down()
        ended = await asyncio.gather(*sides, return_exceptions=True)
        errors = [error for error in ended if isinstance(error, BaseException)]
        for error in errors:
            if not isinstance(error, (ActorLostError, BrokenGroupError)):
                raise error
        return not errors

    async def _bring_up(self, engine: Handle) -> None:
        if self._syncing or self._version < 0:
            return  # the sync's next attempt has it in its group
        group = self._group(1)
        await asyncio.gather(
            self._learner.all(SEND, self._version, group),
            call(engine, RECEIVE, self._version, group),
        )

    def _group(self, num_engines: int) -> BroadcastGroup:
        self.num_groups += 1
        return BroadcastGroup(num_engines + 1)


async def _explain(probes: Sequence[Probe], observed: np.ndarray) -> str:
    return "a broadcast that went wrong"
