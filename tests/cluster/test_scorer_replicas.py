"""The replicas of a scorer: how many groups each has at a time, and what a crash or a late answer becomes."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from fake_actors import Events, Lives, dies, forever, run, supervise
from rollout_rows import make_group, make_sample

from actors.requests import CallStuckError
from cluster import scorer_replicas
from cluster.scorer_replicas import ScorerReplicas, for_evaluation
from rollouts.records import Completion, Group, Judgement
from trainer.rollout.rollouter import ScorerSet
from trainer.rollout.scorer_calls import ScorerCall

GROUP: Group = make_group(0, (make_sample("a", 1), make_sample("b", 2)))


COMPLETIONS = [sample.completion for sample in GROUP.samples]


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that has not stopped a group at its limit is stuck at once."""
    monkeypatch.setattr(scorer_replicas, "_ANSWER_S", 0.0)


async def right(prompt: object, completions: list[Completion], limit_s: float) -> list[Judgement]:
    """1 for everything."""
    return [Judgement(score=1.0) for _ in completions]


async def stops(prompt: object, completions: list[Completion], limit_s: float) -> list[Judgement]:
    """Takes its limit, and says so in time."""
    return [Judgement(score=None, status="timeout") for _ in completions]


def score(
    lives: Lives,
    num_groups: int = 1,
    limit_s: float = 60.0,
    events: Events | None = None,
    concurrency: int = 1,
) -> list[Any]:
    """What one replica makes of that many groups, asked for together."""

    async def work() -> list[list[Judgement]]:
        scorer = ScorerReplicas([supervise(lives, events)], limit_s, concurrency)
        prompt = GROUP.submission.prompt
        return await asyncio.gather(*(scorer.score(prompt, COMPLETIONS) for _ in range(num_groups)))

    found = run(work())
    return [[(each.score, each.status) for each in group] for group in found]


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_replica_has_so_many_groups_at_a_time_in_order(concurrency: int) -> None:
    """Nine groups, two replicas: never more than two or four in flight; each caller gets its own back."""
    running, most = 0, 0

    async def score(prompt: object, numbers: list[int], limit_s: float) -> object:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(3):
            await asyncio.sleep(0)
        running -= 1
        return [Judgement(score=float(number)) for number in numbers]

    async def work() -> list[list[float | None]]:
        replicas = [supervise(Lives([{"score": score}])) for _ in range(2)]
        scorer: Any = ScorerReplicas(replicas, 60.0, concurrency)
        found = await asyncio.gather(*(scorer.score(None, [number, number + 100]) for number in range(9)))
        return [[judgement.score for judgement in group] for group in found]

    assert run(work()) == [[number, number + 100] for number in range(9)]
    assert most == 2 * concurrency


def test_a_crash_is_tried_once_more_and_then_a_status() -> None:
    """Died once: judged by the replacement. Died twice: status crashed, and the next group is judged."""
    assert score(Lives([{"score": dies}, {"score": right}])) == [[(1.0, "ok")] * 2]
    found = score(Lives([{"score": dies}, {"score": dies}, {"score": right}]), num_groups=2)
    assert found == [[(None, "crashed")] * 2, [(1.0, "ok")] * 2]


def test_a_slow_group_is_a_status_and_its_replica_is_replaced() -> None:
    """More groups than failures are allowed: judging too slowly counts against nobody."""
    behaviors: list[Any] = [{"score": forever}] * 4 + [{"score": right}]
    lives, events = Lives(behaviors), Events()
    found = score(lives, num_groups=5, limit_s=0.02, events=events)
    assert found == [[(None, "timeout")] * 2] * 4 + [[(1.0, "ok")] * 2]
    assert events.lines[0] == "actor_lost actor actor took more than 0.02 s for a group and cannot stop it"
    assert [life.dead.is_set() for life in lives.started] == [True] * 4 + [False]


def test_the_limit_of_a_group_does_not_run_while_its_replica_starts() -> None:
    """The replacement takes five limits to start; the group after the slow one is judged all the same."""

    async def starts(*arguments: object) -> object:
        return await asyncio.sleep(0.1, None)

    found = score(Lives([{"score": forever}, {"ready": starts, "score": right}]), num_groups=2, limit_s=0.02)
    assert found == [[(None, "timeout")] * 2, [(1.0, "ok")] * 2]


def test_a_replica_that_stops_a_slow_group_stays() -> None:
    """It answers at the limit: the group has null scores, nothing is replaced, and its place is free."""
    lives, events = Lives([{"score": stops}]), Events()
    assert score(lives, num_groups=3, limit_s=0.02, events=events) == [[(None, "timeout")] * 2] * 3
    assert len(lives.started) == 1 and events.lines == []


@pytest.mark.parametrize("says_so", [True, False])
def test_a_stuck_replica_is_replaced_when_nobody_else_is_with_it(says_so: bool) -> None:
    """Group 0 cannot be stopped. Group 1, with it, ends as usual; group 2 waits for the replacement."""
    ended: list[int] = []

    async def slow_or_stuck(prompt: object, numbers: list[int], limit_s: float) -> object:
        if numbers == [0]:
            if says_so:
                raise CallStuckError("it runs on")
            return await forever()
        while not events.stuck:
            await asyncio.sleep(0.001)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not lives.started[0].dead.is_set() and len(lives.started) == 1
        ended.extend(numbers)
        return [Judgement(score=1.0)]

    class Watching(Events):
        stuck = False

    events, lives = Watching(), Lives([{"score": slow_or_stuck}, {"score": right}])

    async def work() -> list[list[Judgement]]:
        scorer: Any = ScorerReplicas([supervise(lives, events)], 0.05, 2)
        first = asyncio.ensure_future(scorer.score(None, [0]))
        while not lives.started[0].calls:
            await asyncio.sleep(0)
        scorer.limit_s = 30.0
        second = asyncio.ensure_future(scorer.score(None, [1]))
        third = asyncio.ensure_future(scorer.score(None, [2]))
        found = [await first]
        events.stuck = True
        return [*found, await second, await third]

    found = run(work())
    assert [[(each.score, each.status) for each in group] for group in found] == [
        [(None, "timeout")],
        [(1.0, "ok")],
        [(1.0, "ok")],
    ]
    assert ended == [1] and len(lives.started) == 2
    assert [call[0] for call in lives.started[1].calls] == ["ready", "score"]


def test_a_death_gives_every_group_in_flight_one_more_try() -> None:
    """Three groups with a replica that dies: all are scored by the replacement; that is one failure."""
    lives, events = Lives([{"score": dies}, {"score": right}]), Events()
    assert score(lives, num_groups=3, events=events, concurrency=3) == [[(1.0, "ok")] * 2] * 3
    assert len(lives.started) == 2
    assert [line.split()[0] for line in events.lines] == ["actor_lost", "actor_replaced"]


def test_a_replica_that_died_meanwhile_is_not_replaced_again() -> None:
    """One group is stuck, the other one's death has the replica replaced: the new one stays."""

    async def stuck_or_dies(prompt: object, numbers: list[int], limit_s: float) -> object:
        if numbers == [0]:
            raise CallStuckError("it runs on")
        for _ in range(10):
            await asyncio.sleep(0)
        return await dies()

    lives = Lives([{"score": stuck_or_dies}, {"score": right}])

    async def work() -> list[list[Judgement]]:
        scorer: Any = ScorerReplicas([supervise(lives)], 60.0, 2)
        found = await asyncio.gather(scorer.score(None, [0]), scorer.score(None, [1]))
        return [*found, await scorer.score(None, [2])]

    assert [group[0].status for group in run(work())] == ["timeout", "ok", "ok"]
    assert len(lives.started) == 2


def test_the_times_of_calls_are_kept_apart_from_those_of_evaluations() -> None:
    """Three groups for one place: two wait. A group whose time is over while it waits has only a wait."""

    async def slow(prompt: object, completions: list[Completion], limit_s: float) -> list[Judgement]:
        await asyncio.sleep(0.02)
        return await right(prompt, completions, limit_s)

    async def work() -> tuple[list[ScorerCall], list[ScorerCall], list[ScorerCall]]:
        scorer = ScorerReplicas([supervise(Lives([{"score": slow}]))], 60.0)
        prompt = GROUP.submission.prompt
        await asyncio.gather(*(scorer.score(prompt, COMPLETIONS) for _ in range(3)))
        first = scorer.calls.take()
        held = for_evaluation(ScorerSet(scorers={"a": scorer}, common_keys={}))
        assert not held.calls
        await held.scorers["a"].score(prompt, COMPLETIONS)
        evaluated = scorer.calls.take()
        busy = asyncio.ensure_future(scorer.score(prompt, COMPLETIONS))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(scorer.score(prompt, COMPLETIONS), 0.005)
        await busy
        await asyncio.sleep(0)
        return first, evaluated, scorer.calls.take()

    first, evaluated, last = run(work())
    assert [call.score_s >= 0.02 for call in first] == [True] * 3
    assert [call.queue_s >= 0.019 * number for number, call in enumerate(first)] == [True] * 3
    assert evaluated == []
    assert [math.isnan(call.score_s) for call in last] == [True, False]
