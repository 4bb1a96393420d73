"""Weights from ranks to engines, over real proxies: through host memory, and in a broadcast that needs both.

Both kinds must give every living engine the version, whichever actor dies on the way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from broadcast_transport import SEND, BroadcastGroup, BroadcastTransport, receiving, sending
from fake_actors import LIMITS, Behavior, Events, Lives, dies, run, supervise

from cluster.role_proxies import BufferProxy, Engines, LearnerGroup
from cluster.weight_transport import HostTransport, NoTransport
from configs.schema import RunConfig
from trainer.roles import LearnerLostError, WeightTransport
from trainer.step_records import Probe
from trainer.weights.weight_sync import WeightSyncError, publish

PROBES = (Probe(token_ids=(1, 2, 3)),)


async def size(*arguments: object) -> object:
    """What a rank says when it is ready."""
    return 7


@dataclass
class World:
    """One rank and two engines. `held` is what each engine has loaded; `fates` replace a method of a life.

    Weights are their version; as in a cluster, an engine is handed the reference ("kept", version).
    """

    fates: dict[tuple[str, int], dict[str, Behavior]] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    events: Events = field(default_factory=Events)
    refusal: str = ""

    def __post_init__(self) -> None:
        self.rank_lives = self._lives("learner-0", self._rank())
        self.engine_lives = [self._lives(f"engine-{k}", self._engine(f"engine-{k}")) for k in (0, 1)]
        self.supervised = [supervise(lives, self.events) for lives in self.engine_lives]
        self.engines = Engines(self.supervised)
        buffer = BufferProxy(supervise(Lives()))
        self.learner = LearnerGroup(lambda: [self.rank_lives.start()], buffer, LIMITS, self.events)

    def _lives(self, label: str, behaviors: dict[str, Behavior]) -> Lives:
        lives = [{**behaviors, **self.fates.get((label, life), {})} for life in range(3)]
        return Lives(lives, label=label)

    def _rank(self) -> dict[str, Behavior]:
        async def publish(version: int) -> object:
            self.log.append(f"published {version}")
            return version

        async def explain(probes: object, observed: object, current: object, previous: object) -> object:
            return f"explained {current} after {previous}"

        async def probe(probes: object) -> object:
            return np.full(2, -1.0, np.float32)

        return {
            "ready": size,
            "publish": publish,
            "explain": explain,
            "probe": probe,
            "send": sending(self.log),
        }

    def _engine(self, label: str) -> dict[str, Behavior]:
        async def load(weights: tuple[str, int]) -> object:
            if self.refusal:
                raise ValueError(self.refusal)
            self.held[label] = weights[1]
            return None

        async def probe(probes: object) -> object:
            return np.full(2, -1.0 - 0.1 * (label == "engine-1" and "drift" in self.log), np.float32)

        return {"load": load, "probe": probe, "receive": receiving(self.held, label)}

    def transport(self, kind: str) -> WeightTransport:
        if kind == "host":
            return HostTransport(self.learner, self.engines)
        return BroadcastTransport(self.learner, self.engines, self.supervised)

    async def publish(self, transport: WeightTransport, version: int) -> dict[str, float]:
        """A whole publish with its proof."""
        return (await publish(version, transport, self.learner, self.engines, PROBES, None, RunConfig()))[1]


KINDS = pytest.mark.parametrize("kind", ["host", "broadcast"])


@KINDS
def test_every_engine_holds_the_version(kind: str) -> None:
    """Twice, each with its proof."""
    world = World()

    async def work() -> None:
        transport = world.transport(kind)
        for version in (1, 2):
            assert (await world.publish(transport, version))["sync/probe_gap"] == 0.0
            assert world.held == {"engine-0": version, "engine-1": version}

    run(work())
    assert world.events.lines == []


def test_a_broadcast_cannot_be_sent_before_it_is_received() -> None:
    """Why the transport owns both sides: the learner's alone never ends, however long it is waited for."""
    world = World()

    async def work() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await world.learner.all(SEND, 1, BroadcastGroup(3))  # type: ignore[arg-type]

    run(work())
    assert world.log == [] and world.held == {}


@KINDS
def test_an_engine_that_dies_in_the_middle_is_brought_up(kind: str) -> None:
    """Engine 1 dies as it takes version 2: its replacement holds version 2 at the end, as does engine 0."""
    deaths = 0

    def mortal(method: str) -> Behavior:
        async def act(*arguments: Any) -> object:
            nonlocal deaths
            version = arguments[0][1] if method == "load" else arguments[0]
            if version == 2:
                deaths += 1
                await asyncio.sleep(0.01)  # the others are in the middle
                return await dies()
            return await World._engine(world, "engine-1")[method](*arguments)

        return act

    fates = {("engine-1", 0): {"load": mortal("load"), "receive": mortal("receive")}}
    world = World(fates=fates)

    async def work() -> None:
        transport = world.transport(kind)
        for version in (1, 2, 3):
            await world.publish(transport, version)
            assert world.held == {"engine-0": version, "engine-1": version}

    run(work())
    assert deaths == 1 and len(world.engine_lives[1].started) == 2 and len(world.engine_lives[0].started) == 1
    assert world.events.lines == ["actor_lost engine-1 it died", "actor_replaced engine-1"]


@KINDS
def test_an_engine_replaced_between_two_syncs_holds_the_last_version(kind: str) -> None:
    """It must not sample before: whoever calls it waits until the transport has brought it up."""
    world = World()

    async def work() -> None:
        transport = world.transport(kind)
        await world.publish(transport, 5)
        del world.held["engine-0"]
        world.supervised[0].replace("asked for")
        await world.supervised[0].call("generate")
        assert world.held == {"engine-0": 5, "engine-1": 5}
        await world.publish(transport, 6)
        assert world.held == {"engine-0": 6, "engine-1": 6}

    run(work())


@KINDS
def test_a_learner_that_dies_in_the_middle_can_sync_again(kind: str) -> None:
    """The engines are free again, and a restarted learner that was set back gives them an earlier version."""
    fates = {("learner-0", 0): {"publish": dies_at(3, "publish"), "send": dies_at(3, "send")}}
    world = World(fates=fates)

    async def work() -> None:
        transport = world.transport(kind)
        await world.publish(transport, 2)
        with pytest.raises(LearnerLostError, match="it died"):
            await world.publish(transport, 3)
        await world.learner.restart()
        await world.publish(transport, 0)
        assert world.held == {"engine-0": 0, "engine-1": 0}

    run(work())
    assert [len(lives.started) for lives in world.engine_lives] == [1, 1]


def dies_at(version: int, method: str) -> Behavior:
    """A rank's `method` that dies when it is given this version."""

    async def act(given: int, *others: Any) -> object:
        if given == version:
            return await dies()
        plain: Callable[..., Awaitable[object]] = World()._rank()[method]
        return await plain(given, *others)

    return act


def test_the_diagnosis_of_host_memory_has_both_versions() -> None:
    """The weights of the sync and those that the engines had before; none before the first."""
    world = World()

    async def work() -> list[str]:
        transport = HostTransport(world.learner, world.engines)
        diagnoses = [await transport.sync(version) for version in (4, 7)]
        return [await diagnosis(PROBES, np.zeros(2)) for diagnosis in diagnoses]

    assert run(work()) == [
        "explained ('kept', 4) after None",
        "explained ('kept', 7) after ('kept', 4)",
    ]


@KINDS
def test_a_wrong_answer_is_explained_by_the_transport(kind: str) -> None:
    """Engine 1 answers 0.1 nats off: the error names it and holds the transport's own diagnosis."""
    world = World(log=["drift"])
    said = {"host": r"explained \('kept', 1\) after None", "broadcast": "a broadcast that went wrong"}[kind]

    async def work() -> None:
        await world.publish(world.transport(kind), 1)

    with pytest.raises(WeightSyncError, match=f"engine 1 and learner differ by 1.00e-01 .*{said}"):
        run(work())


def test_an_engine_that_refuses_ends_the_sync() -> None:
    """It is not lost and not replaced: the weights are wrong, and the run must say so."""
    world = World(refusal="tensor x is unknown")

    async def work() -> None:
        await world.publish(world.transport("host"), 1)

    with pytest.raises(WeightSyncError, match="weight sync to version 1 failed: tensor x is unknown"):
        run(work())
    assert world.events.lines == []


def test_ranks_take_part_in_one_call_at_a_time() -> None:
    """Two calls made together would meet the ranks in different orders and hang in their collectives."""
    running: list[str] = []

    def slow(name: str) -> Behavior:
        async def act(*arguments: object) -> object:
            assert running == []
            running.append(name)
            await asyncio.sleep(0.01)
            running.remove(name)
            return 1

        return act

    ranks = [Lives([{"ready": size, "publish": slow("a"), "probe": slow("b")}])]
    group = LearnerGroup(
        lambda: [lives.start() for lives in ranks], BufferProxy(supervise(Lives())), LIMITS, Events()
    )

    async def work() -> None:
        await asyncio.gather(group.publish(1), group.probe(PROBES))

    run(work())
    assert [call[0] for call in ranks[0].started[0].calls] == ["publish", "probe"]


def test_no_transport_sends_nothing() -> None:
    """A run on saved rollouts packs no weights that nobody would load."""
    run(NoTransport().sync(3))
