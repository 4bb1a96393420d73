"""Supervision without processes: deaths, hangs and failed replacements, and one answer for the caller."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from fake_actors import LIMITS, Events, FakeHandle, Lives, arguments_of, dies, forever, run, supervise

from cluster import supervise as supervision
from cluster.spawn import ActorCallError, ActorLostError
from cluster.supervise import Fleet, Supervised, quiet_reason


async def reported(events: Events, kind: str, count: int = 1) -> None:
    """Wait until that kind of event was reported that often."""
    while sum(line.startswith(kind) for line in events.lines) < count:
        await asyncio.sleep(0)


def with_a_past(actor: Supervised) -> Supervised:
    """Its replacements are given weights before they are used."""

    async def prepare(handle: Any) -> None:
        await handle.call("load", "weights")

    actor.prepare = prepare
    return actor


@pytest.mark.parametrize("method", ["call", "call_ref"])
def test_a_call_is_repeated_with_its_arguments(method: str) -> None:
    """The first life dies under it, the second answers; the caller notices nothing."""
    lives, events = Lives([{"work": dies}, {}]), Events()

    async def work() -> object:
        return await getattr(supervise(lives, events), method)("work", 1, "two")

    assert run(work()) == ((1, "two") if method == "call" else ("kept", (1, "two")))
    first, second = lives.started
    assert first.calls == [("work", 1, "two")] and first.dead.is_set()
    assert second.calls == [("ready",), ("work", 1, "two")]
    assert events.lines == ["actor_lost actor it died", "actor_replaced actor"]


def test_a_replacement_is_prepared_before_it_is_used() -> None:
    """It gets its past first, on its own handle."""
    lives = Lives([{"work": dies}, {}])

    async def work() -> None:
        await with_a_past(supervise(lives)).call("work")

    run(work())
    assert lives.started[0].calls == [("work",)], "the first life has no past"
    assert lives.started[1].calls == [("ready",), ("load", "weights"), ("work",)]


def test_concurrent_callers_wait_for_one_replacement() -> None:
    """Ten calls lose the actor together: one other is started, and all are repeated."""
    lives, events = Lives([{"work": forever}, {}]), Events()

    async def work() -> list[object]:
        actor = supervise(lives, events)
        calls = [asyncio.ensure_future(actor.call("work", number)) for number in range(10)]
        while len(lives.started[0].calls) < 10:
            await asyncio.sleep(0)
        lives.started[0].kill()
        return await asyncio.gather(*calls)

    assert run(work()) == [(number,) for number in range(10)]
    assert len(lives.started) == 2 and events.lines.count("actor_replaced actor") == 1


def test_a_call_just_after_the_replacement_finds_it() -> None:
    """Whoever comes between the replacement's last act and the end of its task must not wait for ever."""
    lives = Lives([{"work": dies}, {}])
    later: list[asyncio.Task[object]] = []

    async def work() -> object:
        worker = supervise(lives)

        def report(kind: str, actor: str, **fields: str | float) -> None:
            if kind == "actor_replaced":
                later.append(asyncio.ensure_future(worker.call("work", 2)))

        worker._report = report
        assert await worker.call("work", 1) == (1,)
        return await later[0]

    assert run(work()) == (2,)


def test_too_many_failures_within_a_step_end_it_with_the_reason() -> None:
    """max_restarts = 2: the third failure is the last, and every later call gets the same error."""
    lives, events = Lives([{"work": dies}]), Events()

    async def work() -> list[str]:
        actor, reasons = supervise(lives, events), []
        for _ in range(2):
            with pytest.raises(ActorCallError) as error:
                await actor.call("work")
            reasons.append(str(error.value))
        return reasons

    reasons = run(work())
    expected = "actor failed 3 times within one step (cluster.max_restarts = 2); the last time: it died"
    assert reasons == [expected] * 2
    assert len(lives.started) == 3 and all(life.dead.is_set() for life in lives.started)


def test_progress_starts_the_count_again() -> None:
    """Two failures a step, three steps: six replacements and no end."""
    lives = Lives([{"work": dies}, {"work": dies}, {}, {"work": dies}, {}, {"work": dies}, {}])

    async def work() -> None:
        actor = supervise(lives)
        await actor.call("work")
        for _ in range(2):
            actor.progress()
            lives.started[-1].kill()
            await actor.call("work")

    run(work())
    assert len(lives.started) == 7


@pytest.mark.parametrize("method", ["ready", "load"])
def test_a_replacement_that_fails_counts_and_is_ended(method: str) -> None:
    """While it starts, or while it is given its past; two such failures after the first are one too many."""
    lives, events = Lives([{"work": dies}, {method: dies}]), Events()

    async def work() -> None:
        await with_a_past(supervise(lives, events)).call("work")

    with pytest.raises(ActorCallError, match="3 times within one step"):
        run(work())
    assert len(events.lines) == 3 and all(life.dead.is_set() for life in lives.started)


def test_a_replacement_that_cannot_restore_its_state_is_ended() -> None:
    """An error of its own, not a death: nobody else would do better."""

    async def refuses(*arguments: object) -> object:
        raise ValueError("other shapes")

    lives = Lives([{"work": dies}, {"load": refuses}])

    async def work() -> None:
        await with_a_past(supervise(lives)).call("work")

    with pytest.raises(ValueError, match="other shapes"):
        run(work())
    assert [life.dead.is_set() for life in lives.started] == [True, True]


def test_a_replacement_that_never_starts_is_a_failure() -> None:
    """ready_s is the limit of a start, and the reason names it."""
    lives, events = Lives([{"work": dies}, {"ready": forever}, {}]), Events()

    async def work() -> object:
        return await supervise(lives, events, replace(LIMITS, ready_s=0.01)).call("work", 1)

    assert run(work()) == (1,)
    assert events.lines[1] == "actor_lost actor actor did not start within cluster.ready_timeout_s = 0.01"


def test_the_wait_before_a_replacement_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """backoff_s, twice, four times it, at most 30 s; after a finished step from the start."""
    waits: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)

    async def work() -> None:
        behaviors: list[Any] = [{"work": dies}] * 5 + [{}, {"work": dies}, {}]
        lives = Lives(behaviors)
        actor = supervise(lives, limits=replace(LIMITS, max_restarts=9, backoff_s=3.0))
        await actor.call("work")
        actor.progress()
        lives.started[-1].kill()
        await actor.call("work")

    run(work())
    assert waits == [3.0, 6.0, 12.0, 24.0, 30.0, 3.0, 6.0]


def test_errors_of_the_method_pass_through() -> None:
    """They would come again; nothing is replaced."""
    lives = Lives()

    async def fails(*arguments: object) -> object:
        raise KeyError("k")

    lives.behaviors = [{"work": fails}]

    async def work() -> None:
        await supervise(lives).call("work")

    with pytest.raises(KeyError):
        run(work())
    assert len(lives.started) == 1 and len(lives.started[0].calls) == 1


def test_a_caller_that_gives_up_leaves_the_replacement_to_the_others() -> None:
    """The first of two waiters is cancelled in the middle of the start."""
    started = asyncio.Event()

    async def starts(*arguments: object) -> object:
        return await started.wait()

    lives = Lives([{"work": dies}, {"ready": starts}])

    async def work() -> object:
        actor = supervise(lives)
        first, second = (asyncio.ensure_future(actor.call("work", number)) for number in (1, 2))
        while len(lives.started) < 2 or not lives.started[1].calls:
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert first.cancelled()
        started.set()
        return await second

    assert run(work()) == (2,)
    assert len(lives.started) == 2


def test_once_is_one_attempt() -> None:
    """The caller gets an error and decides; the next attempt finds the replacement."""
    lives = Lives([{"work": dies}, {}])

    async def work() -> object:
        actor = supervise(lives)
        with pytest.raises(ActorLostError, match="it died"):
            await actor.once("work", 1)
        return await actor.once("work", 2)

    assert run(work()) == (2,)
    assert lives.started[1].calls == [("ready",), ("work", 2)]


def test_a_replacement_that_was_asked_for_need_not_count() -> None:
    """More of them than failures are allowed."""
    lives, events = Lives(), Events()

    async def work() -> None:
        actor = supervise(lives, events)
        for number in range(5):
            actor.replace("slow", counted=False)
            assert await actor.call("work", number) == (number,)

    run(work())
    assert events.lines == ["actor_lost actor slow", "actor_replaced actor"] * 5


def test_a_short_silence_says_nothing() -> None:
    """An actor that answers at once and has moved is well."""
    events = Events()
    assert run(quiet_reason(_with_alive(_moved(0.0)), 60.0, events)) == "" and events.lines == []


def test_a_stall_that_ends_is_reported_and_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent for longer than STALL_S, then it answers: two events, no reason to replace it."""
    monkeypatch.setattr(supervision, "STALL_S", 0.01)
    events = Events()

    async def work() -> str:
        async def answers_once_reported() -> float:
            await reported(events, "actor_stalled")
            return 0.0

        return await quiet_reason(_with_alive(answers_once_reported), 60.0, events)

    assert run(work()) == ""
    assert events.lines == ["actor_stalled actor", "actor_answers actor"]


@pytest.mark.parametrize("stall_s", [0.005, 5.0])
def test_silence_is_a_reason(monkeypatch: pytest.MonkeyPatch, stall_s: float) -> None:
    """No answer within hang_s; a stall that is longer than that is treated alike."""
    monkeypatch.setattr(supervision, "STALL_S", stall_s)
    events = Events()

    async def silent() -> float:
        await asyncio.Event().wait()
        return 0.0

    reason = run(quiet_reason(_with_alive(silent), 0.02, events))
    assert reason == "actor did not answer for 0.02 s (cluster.hang_timeout_s)"
    assert events.lines == (["actor_stalled actor"] if stall_s < 0.02 else [])


def test_an_actor_without_progress_is_a_reason() -> None:
    """It answers, and reports that it made no progress for longer than hang_s."""
    reason = run(quiet_reason(_with_alive(_moved(61.0)), 60.0, Events()))
    assert reason == "actor made no progress for 61 s (cluster.hang_timeout_s)"


def _moved(seconds_ago: float) -> Any:
    async def stalled_for_s() -> float:
        return seconds_ago

    return stalled_for_s


def _with_alive(alive: Any) -> FakeHandle:
    return FakeHandle(alive_for=alive)


def test_a_hanging_actor_is_replaced_under_its_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch sees that it makes no progress; another answers the call that waited; the watch continues."""
    monkeypatch.setattr(supervision, "PING_S", 0.0)
    lives, events = Lives([{"work": forever}, {"work": forever}, {}]), Events()

    async def work() -> object:
        actor = supervise(lives, events)
        fleet = Fleet((actor,))
        fleet.watch()
        call = asyncio.ensure_future(actor.call("work", 1))
        for number in range(2):
            while ("work", 1) not in lives.started[-1].calls or len(lives.started) == number:
                await asyncio.sleep(0)
            lives.started[number].alive_for = _moved(61.0)
            await reported(events, "actor_replaced", number + 1)
        found = await call
        await fleet.close()
        return found

    assert run(work()) == (1,)
    assert sum("made no progress for 61 s" in line for line in events.lines) == 2
    assert len(lives.started) == 3 and lives.started[-1].dead.is_set()


def test_closing_ends_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watches are over, every actor is dead, also one whose replacement is under way."""
    monkeypatch.setattr(supervision, "PING_S", 0.0)
    well, ill = Lives(label="well"), Lives([{}, {"ready": forever}], label="ill")

    async def work() -> set[str]:
        actors = [supervise(well), supervise(ill)]
        fleet = Fleet(actors)
        fleet.watch()
        actors[1].replace("asked")
        while len(ill.started) < 2 or not ill.started[1].calls:
            await asyncio.sleep(0)
        fleet.progress()
        await fleet.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        mine = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
        return {task.get_name() for task in mine if task.get_name().startswith(("watch", "replace"))}

    assert run(work()) == set()
    assert all(life.dead.is_set() for life in (*well.started, *ill.started))


@pytest.mark.parametrize("method", ["call", "call_ref", "once"])
def test_what_was_killed_for_good_stays_so(method: str) -> None:
    """Calls in flight fail with it, and start no other actor that nobody would end."""
    lives, events = Lives([{"work": forever}, {}]), Events()

    async def work() -> None:
        actor = supervise(lives, events)
        call = asyncio.ensure_future(getattr(actor, method)("work"))
        while not lives.started[0].calls:
            await asyncio.sleep(0)
        actor.kill()
        with pytest.raises(ActorCallError):
            await call
        with pytest.raises(ActorCallError, match="has been ended"):
            await actor.call("work")
        await asyncio.sleep(0.01)

    run(work())
    assert len(lives.started) == 1 and events.lines == []


def test_a_first_start_that_fails_is_not_mended() -> None:
    """What is wrong from the beginning is the user's to see at once."""
    lives = Lives([{"ready": dies}, {"ready": arguments_of}])

    async def work() -> None:
        actor: Supervised = supervise(lives)
        await actor.ready()

    with pytest.raises(ActorLostError):
        run(work())
    assert len(lives.started) == 1
