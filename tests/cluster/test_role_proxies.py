"""The roles over actors that die: learner ranks together, scorers one by one, engines, the rollout buffer."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fake_actors import LIMITS, Behavior, FakeHandle, Lives, Told, dies, forever, run, supervise
from rollout_rows import RUN, learner_columns, make_batch, make_demonstrations, make_group, make_sample

from actors.buffer import BufferActor
from actors.requests import CallStuckError
from cluster import role_proxies, scorer_replicas
from cluster import supervise as supervision
from cluster.role_proxies import BufferProxy, Engines, LearnerGroup
from cluster.scorer_replicas import ScorerReplicas, for_evaluation
from cluster.spawn import ActorCallError, ActorLostError
from cluster.supervise import Supervised
from rollouts.records import Completion, Group, Judgement, Submission
from rollouts.store import committed_steps, read_step
from trainer.roles import LearnerLostError
from trainer.rollout.rollouter import ScorerSet
from trainer.rollout.scorer_calls import ScorerCall

# -- learner ranks -------------------------------------------------------------------------------------------


async def size(*arguments: object) -> object:
    """What a rank says when it is ready: its number of parameters."""
    return 7


def rank(*lives: dict[str, Behavior]) -> Lives:
    """The lives of one rank."""
    return Lives([{"ready": size, **life} for life in lives])


def learner(ranks: list[Lives], told: Told | None = None) -> LearnerGroup:
    """Ranks that start together."""

    def start() -> list[FakeHandle]:
        return [lives.start() for lives in ranks]

    return LearnerGroup(start, BufferProxy(supervise(Lives())), LIMITS, told or Told())


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
    """Nobody died within the wait: what the rank raised is told, and all ranks live."""
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
    ranks, told = [rank({"load": dies}, {"ready": dies}, {}), rank({})], Told()

    async def work() -> None:
        group = learner(ranks, told)
        with pytest.raises(LearnerLostError):
            await group.load("one")
        await group.restart()
        await group.load("two")

    run(work())
    assert [len(lives.started) for lives in ranks] == [3, 3]
    for lives in ranks:
        assert [life.dead.is_set() for life in lives.started] == [True, True, False]
        assert lives.started[2].calls == [("ready",), ("load", "two")]
    assert told.lines == ["actor_lost learner it died"] * 2 + ["actor_replaced learner"]


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
    """Rank 1 stands still under a call: all ranks are ended and the call is told why."""
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


# -- scorers -------------------------------------------------------------------------------------------------

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
    told: Told | None = None,
    concurrency: int = 1,
) -> list[Any]:
    """What one replica makes of that many groups, asked for together."""

    async def work() -> list[list[Judgement]]:
        scorer = ScorerReplicas([supervise(lives, told)], limit_s, concurrency)
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
    lives, told = Lives([{"score": forever}] * 4 + [{"score": right}]), Told()
    found = score(lives, num_groups=5, limit_s=0.02, told=told)
    assert found == [[(None, "timeout")] * 2] * 4 + [[(1.0, "ok")] * 2]
    assert told.lines[0] == "actor_lost actor actor took more than 0.02 s for a group and cannot stop it"
    assert [life.dead.is_set() for life in lives.started] == [True] * 4 + [False]


def test_the_limit_of_a_group_does_not_run_while_its_replica_starts() -> None:
    """The replacement takes five limits to start; the group after the slow one is judged all the same."""

    async def starts(*arguments: object) -> object:
        return await asyncio.sleep(0.1)

    found = score(Lives([{"score": forever}, {"ready": starts, "score": right}]), num_groups=2, limit_s=0.02)
    assert found == [[(None, "timeout")] * 2, [(1.0, "ok")] * 2]


def test_a_replica_that_stops_a_slow_group_stays() -> None:
    """It answers at the limit: the group has null scores, nothing is replaced, and its place is free."""
    lives, told = Lives([{"score": stops}]), Told()
    assert score(lives, num_groups=3, limit_s=0.02, told=told) == [[(None, "timeout")] * 2] * 3
    assert len(lives.started) == 1 and told.lines == []


@pytest.mark.parametrize("says_so", [True, False])
def test_a_stuck_replica_is_replaced_when_nobody_else_is_with_it(says_so: bool) -> None:
    """Group 0 cannot be stopped. Group 1, with it, ends as usual; group 2 waits for the replacement."""
    ended: list[int] = []

    async def slow_or_stuck(prompt: object, numbers: list[int], limit_s: float) -> object:
        if numbers == [0]:
            if says_so:
                raise CallStuckError("it runs on")
            return await forever()
        while not told.stuck:
            await asyncio.sleep(0.001)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not lives.started[0].dead.is_set() and len(lives.started) == 1
        ended.extend(numbers)
        return [Judgement(score=1.0)]

    class Watching(Told):
        stuck = False

    told, lives = Watching(), Lives([{"score": slow_or_stuck}, {"score": right}])

    async def work() -> list[list[Judgement]]:
        scorer: Any = ScorerReplicas([supervise(lives, told)], 0.05, 2)
        first = asyncio.ensure_future(scorer.score(None, [0]))
        while not lives.started[0].calls:
            await asyncio.sleep(0)
        scorer.limit_s = 30.0
        second = asyncio.ensure_future(scorer.score(None, [1]))
        third = asyncio.ensure_future(scorer.score(None, [2]))
        found = [await first]
        told.stuck = True
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
    lives, told = Lives([{"score": dies}, {"score": right}]), Told()
    assert score(lives, num_groups=3, told=told, concurrency=3) == [[(1.0, "ok")] * 2] * 3
    assert len(lives.started) == 2
    assert [line.split()[0] for line in told.lines] == ["actor_lost", "actor_replaced"]


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


# -- engines -------------------------------------------------------------------------------------------------


def test_a_replaced_engine_gets_weights_pause_and_its_submissions() -> None:
    """The last weights, then the pause that all are in, then the same submission; the other is left."""
    lives = [Lives([{"generate": dies}, {}], label="engine 0"), Lives(label="engine 1")]
    submission: Submission = GROUP.submission

    async def work() -> None:
        engines = Engines([supervise(each) for each in lives])
        engines.on_replaced = lambda handle: handle.call("load", "w2")
        for weights in ("w1", "w2"):
            await engines.load(weights)  # type: ignore[arg-type]
        await engines.pause()
        await engines.generate(submission)
        await engines.resume()

    run(work())
    calls = [("load", "w1"), ("load", "w2"), ("pause",)]
    assert lives[0].started[0].calls == [*calls, ("generate", submission)]
    assert lives[0].started[1].calls == [
        ("ready",), ("load", "w2"), ("pause",), ("generate", submission), ("resume",)
    ]  # fmt: skip
    assert lives[1].started[0].calls == [*calls, ("resume",)] and len(lives[1].started) == 1


# -- buffer --------------------------------------------------------------------------------------------------


class MortalBuffer(FakeHandle):
    """The real buffer on real files; it dies once, `before` or `after` the method named does its work.

    A death inside `commit` is by the store's rename: before it the step is not there, after it it is.
    """

    def __init__(self, run_dir: Path, fate: list[str]) -> None:
        super().__init__(label="buffer")
        self._fate = fate
        self._actor = BufferActor(str(run_dir), RUN, 2, lock_wait_s=0.0)
        weakref.finalize(self, self._actor.close)  # a test that is over holds no lock

    async def call(self, method: str, *arguments: object) -> Any:
        if self.dead.is_set():
            raise ActorLostError("the buffer is dead")
        if self._fate == ["before", method]:
            self._die()
        found = getattr(self._actor, method)(*arguments)
        if self._fate == ["after", method]:
            self._die()
        return found

    def _die(self) -> None:
        self._fate.clear()
        self.kill()
        raise ActorLostError("the buffer died")

    def kill(self, force: bool = False) -> None:
        super().kill(force)
        self._actor.close()


@contextmanager
def dying_inside_commit(monkeypatch: pytest.MonkeyPatch, when: str) -> Iterator[None]:
    """The first drop of journal files after the step's rename, or the rename itself, is where it ends."""
    from actors import buffer as module
    from rollouts.journal import Journal

    spent: list[str] = []

    def once(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if spent:
                return real(*arguments)
            spent.append(when)
            if when == "between two drops":
                real(arguments[0], list(arguments[1])[:1])
            raise ActorLostError(f"the buffer died {when}")

        return call

    with monkeypatch.context() as patch:
        if when == "before the rename":
            patch.setattr(module, "commit_step", once(module.commit_step))
        else:
            patch.setattr(Journal, "drop", once(Journal.drop))
        yield


async def two_steps(buffer: BufferProxy) -> None:
    """What a run asks of its buffer: two groups a step, one of the second step ahead of its time, and two
    demonstrations for each."""
    await buffer.rewind(0, 1)
    for step in (1, 2):
        for index in (0, 1, 2) if step == 1 else (3,):
            await buffer.add(make_batch(index))
        index_table = await buffer.take(2, 0, (), make_demonstrations(step))
        assert index_table is not None
        _, rows = await _as_pair(buffer.shard(index_table.column("row").to_pylist()))
        await buffer.commit(step, learner_columns(rows), {"metrics": {}})


async def _as_pair(work: Awaitable[Any]) -> tuple[str, pa.RecordBatch]:
    found: tuple[str, pa.RecordBatch] = await work
    return found


def buffer_on(run_dir: Path, fate: list[str]) -> BufferProxy:
    def start() -> MortalBuffer:
        return MortalBuffer(run_dir, fate)

    return BufferProxy(Supervised("buffer", start, replace(LIMITS, max_restarts=1), Told()))


def check_two_steps(run_dir: Path) -> None:
    """Every group in exactly one step, in order, and nothing left over."""
    assert committed_steps(run_dir) == [1, 2]
    steps = [read_step(run_dir, step).to_pylist() for step in (1, 2)]
    groups = [[row["group_id"] for row in rows if row["origin"] == "policy"] for rows in steps]
    assert groups == [["g0", "g0", "g1", "g1"], ["g2", "g2", "g3", "g3"]]
    assert list((run_dir / "journal").glob("*.arrow")) == []


@pytest.mark.parametrize("method", ["rewind", "add", "take", "shard", "commit"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_buffer_that_dies_in_a_call_loses_and_doubles_nothing(
    tmp_path: Path, method: str, when: str
) -> None:
    """The caller notices nothing: another reads the journal, takes again what was taken, and answers."""
    (tmp_path / "journal").mkdir()
    fate = [when, method]
    run(two_steps(buffer_on(tmp_path, fate)))
    assert fate == [], "it died"
    check_two_steps(tmp_path)
    for step in (1, 2):
        names = read_step(tmp_path, step).column("sample_id").to_pylist()[-2:]
        assert names == [f"sft-{step}-0", f"sft-{step}-1"]


@pytest.mark.parametrize("when", ["before the rename", "before a drop", "between two drops"])
def test_a_buffer_that_dies_inside_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Before the rename the step is made again; after it, it is there, whatever the journal still holds."""
    (tmp_path / "journal").mkdir()
    buffer = buffer_on(tmp_path, [])

    async def work() -> None:
        await buffer.rewind(0, 1)
        for index in (0, 1, 2):
            await buffer.add(make_batch(index))
        assert await buffer.take(2, 0) is not None
        _, rows = await _as_pair(buffer.shard([0, 1, 2, 3]))
        with dying_inside_commit(monkeypatch, when):
            await buffer.commit(1, learner_columns(rows), {"metrics": {}})
        await buffer.add(make_batch(3))
        assert await buffer.take(2, 0) is not None
        _, rows = await _as_pair(buffer.shard([0, 1, 2, 3]))
        await buffer.commit(2, learner_columns(rows), {"metrics": {}})

    run(work())
    check_two_steps(tmp_path)


def test_a_buffer_that_hangs_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch kills it, its lock goes with it, and the waiting call is answered by its successor."""
    monkeypatch.setattr(supervision, "PING_S", 0.0)
    (tmp_path / "journal").mkdir()
    lives: list[MortalBuffer] = []

    class Hanging(MortalBuffer):
        async def call(self, method: str, *arguments: object) -> Any:
            if method == "take" and self is lives[0]:
                self.alive_for = still
                return await self._unless_dead(forever(), method)
            return await super().call(method, *arguments)

    async def still() -> float:
        return 61.0

    def start() -> FakeHandle:
        lives.append(Hanging(tmp_path, []))
        return lives[-1]

    async def work() -> None:
        buffer_actor = Supervised("buffer", start, LIMITS, Told())
        watch = asyncio.ensure_future(buffer_actor.watch())
        await two_steps(BufferProxy(buffer_actor))
        watch.cancel()

    run(work())
    assert len(lives) == 2
    check_two_steps(tmp_path)
