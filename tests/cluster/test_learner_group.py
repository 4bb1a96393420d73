"""The ranks of a learner live and die together: lost, started again, or watched while they hang."""

from __future__ import annotations

import asyncio

import pytest
from fake_actors import LIMITS, Behavior, Events, FakeHandle, Lives, dies, forever, run, supervise

from cluster import role_proxies
from cluster.role_proxies import BufferProxy, LearnerGroup
from cluster.spawn import ActorCallError
from trainer.roles import LearnerLostError


async def size(*arguments: object) -> object:
    """What a rank says when it is ready: its number of parameters."""
    return 7


def rank(*lives: dict[str, Behavior]) -> Lives:
    """The lives of one rank."""
    return Lives([{"ready": size, **life} for life in lives])


def learner(ranks: list[Lives], events: Events | None = None) -> LearnerGroup:
    """Ranks that start together."""

    def start() -> list[FakeHandle]:
        return [lives.start() for lives in ranks]

    return LearnerGroup(start, BufferProxy(supervise(Lives())), LIMITS, events or Events())


async def raises_runtime_error(*arguments: object) -> object:
    """What the other ranks of a collective see when one is gone."""
    raise RuntimeError("connection closed by peer")


def test_one_rank_lost_is_the_learner_lost() -> None:
    """The others wait for it in a collective: all are ended at once, and the message is the dead one's."""
    ranks = [rank({"load": forever}), rank({"load": dies})]

    async def work() -> None:
        await learner(ranks).load("folder")

    with pytest.raises(LearnerLostError, match="it died"):
        run(work())
    assert all(lives.started[0].dead.is_set() for lives in ranks)


@pytest.mark.parametrize("dead_rank", [0, 1])
def test_the_echo_of_a_death_is_not_its_cause(dead_rank: int) -> None:
    """The surviving rank complains first; the death comes to light after it."""

    async def dies_later(*arguments: object) -> object:
        while not complained.is_set():
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return await dies()

    async def complains(*arguments: object) -> object:
        complained.set()
        return await raises_runtime_error()

    ranks = [rank({"load": dies_later if number == dead_rank else complains}) for number in (0, 1)]
    complained = asyncio.Event()

    async def work() -> None:
        await learner(ranks).load("folder")

    with pytest.raises(LearnerLostError, match="it died"):
        run(work())


def test_a_genuine_error_of_a_rank_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody died within the wait: what the rank raised is the error, and all ranks live."""
    monkeypatch.setattr(role_proxies, "_OTHER_RANKS_S", 0.01)
    ranks = [rank({"load": raises_runtime_error}), rank({"load": forever})]

    async def work() -> None:
        await learner(ranks).load("folder")

    with pytest.raises(RuntimeError, match="connection closed") as error:
        run(work())
    assert not isinstance(error.value, LearnerLostError)
    assert not any(lives.started[0].dead.is_set() for lives in ranks)


def test_a_learner_starts_again() -> None:
    """All ranks anew, also after a start that failed; the next call goes to the new ones."""
    ranks, events = [rank({"load": dies}, {"ready": dies}, {}), rank({})], Events()

    async def work() -> None:
        group = learner(ranks, events)
        with pytest.raises(LearnerLostError):
            await group.load("one")
        await group.restart()
        await group.load("two")

    run(work())
    assert [len(lives.started) for lives in ranks] == [3, 3]
    for lives in ranks:
        assert [life.dead.is_set() for life in lives.started] == [True, True, False]
        assert lives.started[2].calls == [("ready",), ("load", "two")]
    assert events.lines == ["actor_lost learner it died"] * 2 + ["actor_replaced learner"]


def test_a_learner_that_dies_too_often_ends_the_run() -> None:
    """max_restarts = 2 within a step; a finished step starts the count again."""
    ranks = [rank({"load": dies})]

    async def lose(group: LearnerGroup) -> None:
        with pytest.raises(LearnerLostError):
            await group.load("x")
        await group.restart()

    async def work() -> None:
        group = learner(ranks)
        for _ in range(2):
            await lose(group)
            await lose(group)
            group.progress()
        await lose(group)
        await lose(group)
        with pytest.raises(ActorCallError, match="learner failed 3 times within one step"):
            await lose(group)

    run(work())


def test_a_hanging_rank_is_found_by_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 makes no progress in a call: all ranks are ended and the call fails with the reason."""
    monkeypatch.setattr(role_proxies, "PING_S", 0.0)
    ranks = [rank({"load": forever}), rank({"load": forever})]

    async def stands_still() -> float:
        return 61.0

    async def work() -> None:
        group = learner(ranks)
        watch = asyncio.ensure_future(group.watch())
        call = asyncio.ensure_future(group.load("x"))
        await asyncio.sleep(0)
        ranks[1].started[0].alive_for = stands_still
        try:
            await call
        finally:
            watch.cancel()

    with pytest.raises(LearnerLostError, match="made no progress for 61 s"):
        run(work())
    assert all(lives.started[0].dead.is_set() for lives in ranks)
