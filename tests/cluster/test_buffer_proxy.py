"""The buffer in a process that dies or hangs: no group is lost, none is there twice."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fake_actors import LIMITS, Events, FakeHandle, forever, run
from rollout_rows import RUN, learner_columns, make_batch, make_demonstrations

from actors.buffer import BufferActor
from cluster import supervise as supervision
from cluster.role_proxies import BufferProxy
from cluster.spawn import ActorLostError
from cluster.supervise import Supervised
from rollouts.store import committed_steps, read_step


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

    return BufferProxy(Supervised("buffer", start, replace(LIMITS, max_restarts=1), Events()))


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
        buffer_actor = Supervised("buffer", start, LIMITS, Events())
        watch = asyncio.ensure_future(buffer_actor.watch())
        await two_steps(BufferProxy(buffer_actor))
        watch.cancel()

    run(work())
    assert len(lives) == 2
    check_two_steps(tmp_path)
