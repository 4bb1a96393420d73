"""Runs in a row without engines: order, failures, interruptions, and when actors are kept or replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from recorder import Recorder

import cluster.actor_pool
import cluster.series
from cluster.actor_pool import ActorPool
from cluster.attempt import RunError
from cluster.job import Job, Prompts, ResolvedRun
from cluster.placement import plan
from cluster.run_directory import Claim
from configs.bound import bind
from configs.load import load_config
from configs.schema import RunConfig
from rollouts.lock import RunLock
from trainer.data.demonstrations import no_demonstrations
from trainer.roles import LearnerLostError


def _order(folder: Path, name: str, *overrides: str) -> ResolvedRun:
    config = load_config("debug", [f"name={name}", f"runs_dir={folder}", "cluster.spawn=local", *overrides])
    return ResolvedRun(
        given=config,
        run=bind(config),
        prompts=Prompts(train=[], held_out=[], demonstrations=no_demonstrations()),
        placement=plan(bind(config), "cpu"),
        reporter=Recorder(),
        job=Job(),
    )


def _claim(order: ResolvedRun) -> Claim:
    run_dir = Path(order.config.runs_dir) / order.config.name
    return Claim(run_dir=run_dir, attempt=1, lock=RunLock(run_dir / "lock", "test"), experiment_hash="")


@dataclass
class _Work:
    """Stands in for `Attempt`: what each run does when it is its turn, and what was called."""

    acts: dict[str, Callable[[], bool]]
    calls: list[str] = field(default_factory=list)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        work = self

        class Attempt:
            def __init__(self, order: ResolvedRun, claim: Claim, actor_pool: object) -> None:
                self._name = order.config.name

            def stop(self) -> bool:
                work.calls.append(f"stop {self._name}")
                return True

            async def work(self) -> bool:
                work.calls.append(self._name)
                return work.acts.get(self._name, lambda: True)()

        class Actors:
            async def close(self) -> None:
                work.calls.append("close")

        @contextmanager
        def claimed(order: ResolvedRun) -> Iterator[Claim]:
            yield _claim(order)

        monkeypatch.setattr(cluster.series, "Attempt", Attempt)
        monkeypatch.setattr(cluster.series, "ActorPool", Actors)
        monkeypatch.setattr(cluster.series, "claimed", claimed)


def test_a_failure_ends_its_actors_and_not_the_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three runs the second fails: its actors are ended before its folder is given back, the third has
    others; both are reported by their numbers."""

    def fail() -> bool:
        raise RunError("it went wrong")

    work, recorder = _Work({"b": fail}), Recorder()
    work.install(monkeypatch)
    series = cluster.series._Series([_order(tmp_path, name) for name in "abc"], recorder)
    assert asyncio.run(series.work())
    assert work.calls == ["a", "b", "close", "close", "c", "close"]
    assert [path.name for path in recorder.folders] == ["a", "c"] and recorder.failures == ["it went wrong"]


def test_a_series_that_is_stopped_begins_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked in the first run, which still reaches its end: it counts, the second does not begin. Asked in a
    run that ends before its last step: it is neither finished nor failed. Between runs none can be."""
    work, recorder = _Work({"a": lambda: series.stop()}), Recorder()
    work.install(monkeypatch)
    series = cluster.series._Series([_order(tmp_path, name) for name in "ab"], recorder)
    assert not series.stop() and not asyncio.run(series.work()) and work.calls == ["close"]
    series = cluster.series._Series([_order(tmp_path, name) for name in "ab"], recorder)
    work.calls.clear()
    assert not asyncio.run(series.work())
    assert work.calls == ["a", "stop a", "close"] and [path.name for path in recorder.folders] == ["a"]
    work.acts["a"], recorder = (lambda: False), Recorder()
    series = cluster.series._Series([_order(tmp_path, name) for name in "ab"], recorder)
    assert not asyncio.run(series.work())
    assert (recorder.folders, recorder.failures, recorder.notes) == ([], [], ["run 0"])


class _Pool(ActorPool):
    """A pool whose actors are numbers of starts; `lost` ranks do not come back from the run before."""

    def __init__(self, lost: bool = False, hangs: bool = False) -> None:
        super().__init__()
        self.starts, self.closes, self._lost, self._hangs = 0, 0, lost, hangs

    async def _start(self, site: object, run_dir: Path, samples: bool) -> tuple[object, int]:  # type: ignore[override]
        self.starts += 1
        self._actors = _FakeActors()  # type: ignore[assignment]
        return self._actors, 7

    async def _fitted(self, *given: object) -> object:  # type: ignore[override]
        return self._actors

    async def _reset(self, actors: object, config: RunConfig) -> int:  # type: ignore[override]
        if self._lost:
            raise LearnerLostError("rank 0 has died")
        if self._hangs:
            await asyncio.sleep(60)
        return 7

    async def close(self) -> None:
        self.closes += self._actors is not None
        self._actors = None
        await super().close()


@dataclass
class _FakeActors:
    engines: tuple[str, ...] = ("one",)
    model_pools: dict[str, object] = field(default_factory=dict)
    scorer_pools: dict[str, object] = field(default_factory=dict)
    generator: object = None
    learner: object = None
    transport: object = None
    buffer: object = None
    log_dir: Path = Path("where")


def _tell(kind: str, actor: str, **fields: str | float) -> None: ...


@pytest.mark.parametrize(
    ("override", "actor_pool", "starts", "said"),
    [
        ("kl.coef=0.1", _Pool(), 1, "reusing the actors of the run before; their logs are in where"),
        ("learner.eps=1e-6", _Pool(), 2, "starting new actors: learner.eps differ from the run before"),
        ("kl.coef=0.1", _Pool(lost=True), 2, "starting new actors: rank 0 has died"),
        ("kl.coef=0.1", _Pool(hangs=True), 2, "those of the run before did not answer within 0.25 s"),
    ],
)
def test_actors_are_kept_where_they_fit_and_live(
    override: str, actor_pool: _Pool, starts: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run of two: on the first one's actors, or on others when those are ended; that is said."""
    monkeypatch.setattr(cluster.actor_pool, "scorer_set", lambda config, scorer_pools, note: None)
    limit = "cluster.ready_timeout_s=0.25"
    first, second = _order(tmp_path, "a", limit), _order(tmp_path, "b", limit, override)

    async def both() -> None:
        await actor_pool.for_training(first, _claim(first), _tell, True)
        actors = await actor_pool.for_training(second, _claim(second), _tell, True)
        assert actors.num_parameters == 7

    asyncio.run(both())
    assert (actor_pool.starts, actor_pool.closes) == (starts, starts - 1)
    assert isinstance(second.reporter, Recorder) and any(said in note for note in second.reporter.notes)
