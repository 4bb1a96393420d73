"""The client of a frozen model: spread over replicas, bounded in flight, repeated when a replica is lost."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from fake_actors import LIMITS, FakeHandle, run

from cluster import model_client
from cluster.model_client import ModelClient, NamedReplica
from cluster.spawn import ActorCallError, ActorLostError
from cluster.supervise import Supervised
from rewards.limited_model import LimitedModel
from rewards.model_calls import ClassifyReply, ModelCallError


def reply_to(text: str) -> ClassifyReply:
    """The logit of a text is its number."""
    return ClassifyReply(logits=(float(text),), num_tokens=len(text))


@dataclass
class FakeReplica:
    """Answers when `gate` is open; `fails` may raise instead, given the number of the call."""

    fails: Callable[[int], Exception | None] = lambda call: None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    parts: list[tuple[str, ...]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    in_flight: int = 0
    most: int = 0

    async def once(self, method: str, *arguments: Any) -> Any:
        if method == "cancel":
            self.cancelled.append(arguments[0])
            return None
        call_id, part, _ = arguments
        self.ids.append(call_id)
        self.parts.append(part)
        self.in_flight += len(part)
        self.most = max(self.most, self.in_flight)
        try:
            await self.gate.wait()
            if error := self.fails(len(self.parts)):
                raise error
            return [reply_to(text) for text in part]
        finally:
            self.in_flight -= len(part)


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def opened(replica: FakeReplica) -> FakeReplica:
    replica.gate.set()
    return replica


def test_inputs_are_spread_and_replies_are_in_order() -> None:
    """Even parts of at most max_num_seqs; a busy replica gets none while another is idle."""

    async def work() -> None:
        first, second = opened(FakeReplica()), opened(FakeReplica())
        client = ModelClient("m", [first, second], 4)
        replies = await client.classify(numbers(10))
        assert [reply.logits[0] for reply in replies] == list(range(10))
        assert sorted(len(part) for each in (first, second) for part in each.parts) == [2, 4, 4]
        assert await client.classify([]) == []
        first.gate.clear()
        slow = asyncio.ensure_future(client.classify(["1"]))
        await asyncio.sleep(0)
        before = len(first.parts), len(second.parts)
        for _ in range(3):
            await client.classify(["2"])
        await asyncio.sleep(0.01)
        assert len(second.parts) == before[1] + 3 and len(first.parts) <= before[0] + 1
        first.gate.set()
        assert (await slow)[0].logits == (1.0,)

    run(work())


def test_what_is_in_flight_is_bounded_first_come_first_served() -> None:
    """Twice what a replica computes at once; a cancelled caller leaves its place to the next."""

    async def work() -> None:
        replica = FakeReplica()
        client = ModelClient("m", [replica], 4)
        calls = [asyncio.ensure_future(client.classify(numbers(3))) for _ in range(5)]
        await asyncio.sleep(0.01)
        assert [len(part) for part in replica.parts] == [3, 3] and replica.most == 6
        calls[2].cancel()
        calls[0].cancel()
        await asyncio.sleep(0.01)
        assert len(replica.parts) == 3 and replica.in_flight == 6
        replica.gate.set()
        assert [len(await call) for call in (calls[1], calls[3], calls[4])] == [3, 3, 3]
        assert replica.most == 6

    run(work())


def test_room_that_is_given_back_as_a_caller_leaves_is_not_lost() -> None:
    """The caller is cancelled, but has not run since, when another call ends in the same turn of the loop."""

    async def work() -> None:
        room = model_client._Room(1)
        await room.enter(1)
        leaving, staying = (asyncio.ensure_future(room.enter(1)) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        room.leave(1)
        with pytest.raises(asyncio.CancelledError):
            await leaving
        async with asyncio.timeout(5):
            await staying
        room.leave(1)
        await room.enter(1)

    run(work())


def test_a_part_of_a_lost_replica_is_repeated_on_another() -> None:
    """The inputs are those of the lost call, and the replica that was lost is avoided for a while."""

    async def work() -> None:
        dead = opened(FakeReplica(fails=lambda call: ActorLostError("it died")))
        alive = opened(FakeReplica())
        client = ModelClient("m", [dead, alive], 64)
        replies = await client.classify(numbers(6))
        assert [reply.logits[0] for reply in replies] == list(range(6))
        assert len(dead.parts) == 1 and sorted(alive.parts) == [("0", "1", "2"), ("3", "4", "5")]
        await client.classify(["7"])
        assert len(dead.parts) == 1

    run(work())


def test_inputs_that_end_every_replica_are_given_up() -> None:
    """After three; a fatal failure at once. Both say which model."""

    async def work() -> None:
        dead = [opened(FakeReplica(fails=lambda call: ActorLostError("it died"))) for _ in range(2)]
        with pytest.raises(ModelCallError, match="model judge: it died"):
            await ModelClient("judge", dead, 8).classify(["1"])
        assert sum(len(each.parts) for each in dead) == 3
        fatal = opened(FakeReplica(fails=lambda call: ActorCallError("failed 4 times")))
        with pytest.raises(ModelCallError, match="model judge: failed 4 times"):
            await ModelClient("judge", [fatal], 8).classify(["1"])
        assert len(fatal.parts) == 1
        refused = opened(FakeReplica(fails=lambda call: ValueError("too long")))
        with pytest.raises(ValueError, match="too long"):
            await ModelClient("judge", [refused], 1).classify(["1", "2"])

    run(work())


def test_a_cancelled_call_is_cancelled_in_the_replica() -> None:
    """By the id of the call; a deadline cancels, too."""

    async def work() -> None:
        replica = FakeReplica()
        limited = LimitedModel(ModelClient("m", [replica], 8), lambda: asyncio.timeout(0.01))
        with pytest.raises(TimeoutError):
            await limited.classify(["1"])
        await asyncio.sleep(0.01)
        assert replica.cancelled == replica.ids and len(replica.ids) == 1 and replica.in_flight == 0

    run(work())


def test_the_driver_waits_for_the_replacement() -> None:
    """A supervised replica that dies under a call is replaced, and the call repeated there."""

    async def answers(call_id: str, part: tuple[str, ...], over_long: str) -> object:
        return [reply_to(text) for text in part]

    async def never(*arguments: object) -> object:
        return await asyncio.Event().wait()

    async def work() -> None:
        lives = [FakeHandle(behaviors={"classify": never}), FakeHandle(behaviors={"classify": answers})]
        made = iter(lives)
        actor = Supervised("model-m-0", lambda: next(made), LIMITS, lambda kind, actor, **fields: None)
        call = asyncio.ensure_future(ModelClient("m", [actor], 8).classify(["5"]))
        await asyncio.sleep(0.01)
        lives[0].kill()
        assert (await call)[0].logits == (5.0,)
        assert [each.calls[-1][0] for each in lives] == ["classify", "classify"]

    run(work())


def test_a_client_travels_and_begins_anew() -> None:
    """What is pickled is where the replicas are, not what is in flight."""
    client = ModelClient("m", [NamedReplica("model-m-abc-0-", "model-m-0", 5.0)], 8)
    copy = pickle.loads(pickle.dumps(client))
    assert copy.__reduce__()[1][0] == "m" and copy.__reduce__()[1][2] == 8
    assert copy._replicas[0].__reduce__() == client._replicas[0].__reduce__()  # type: ignore[attr-defined]


def test_a_named_replica_finds_the_next_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the names with its prefix the last life, never one that was lost; it waits for the next."""
    names = ["model-m-abc-0-0", "model-m-abc-1-7", "other"]
    asked: list[str] = []

    class Handle:
        def __init__(self, label: str, actor: str, limit_s: float | None) -> None:
            self._actor = actor

        async def call(self, method: str, *arguments: object) -> object:
            if self._actor.endswith("0-0"):
                names.append("model-m-abc-0-1") if len(asked) > 2 else None
                raise ActorLostError("gone")
            return self._actor

    def get_actor(name: str) -> str:
        asked.append(name)
        return name

    monkeypatch.setattr(model_client, "list_named_actors", lambda: list(names))
    monkeypatch.setattr(model_client.ray, "get_actor", get_actor)
    monkeypatch.setattr(model_client, "RayHandle", Handle)
    monkeypatch.setattr(model_client, "_LOOK_S", 0.001)

    async def work() -> None:
        replica = NamedReplica("model-m-abc-0-", "model-m-0", 0.05)
        with pytest.raises(ActorLostError, match="gone"):
            await replica.once("classify")
        with pytest.raises(ActorLostError, match=r"model-m-0 was not replaced within 0\.05 s"):
            await replica.once("classify")
        names.append("model-m-abc-0-1")
        assert await replica.once("classify") == "model-m-abc-0-1"
        assert asked == ["model-m-abc-0-0", "model-m-abc-0-1"]

    run(work())
