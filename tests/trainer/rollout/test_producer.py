"""The producer: how much is in flight, time limits, and rows with missing scores."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from loop_fakes import FakeGenerator, FakeLearner, FakeScorer, FileBuffer, scorers, token_prompts

from configs.bound import bind
from configs.errors import ConfigError
from configs.load import load_config
from configs.schema import RolloutConfig, RunConfig
from rollouts.records import Completion, Submission
from trainer.collate import align, collate, with_advantages
from trainer.data.prompts import PromptOrder
from trainer.rollout.producer import Producer


def make_producer(
    config: RunConfig, generator: FakeGenerator, buffer: FileBuffer, scorer: FakeScorer | None = None
) -> Producer:
    order = PromptOrder(token_prompts(4), config.seed, shuffle=False)
    return Producer(bind(config), order, generator, scorers(scorer), buffer)


@dataclass
class StuckGenerator(FakeGenerator):
    """Never replies for some groups; notes which of them were cancelled."""

    stuck: tuple[str, ...] = ()
    cancelled: list[str] = field(default_factory=list)

    async def generate(self, submission: Submission) -> list[Completion]:
        if submission.group_id in self.stuck:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.append(submission.group_id)
                raise
        return await FakeGenerator.generate(self, submission)


def test_groups_in_flight(tmp_path: Path) -> None:
    """(max_lag + 1) x groups_per_step, topped up step by step and never past the last step's."""
    config = RunConfig(num_steps=3, rollout=RolloutConfig(group_size=1, groups_per_step=2, max_lag=1))
    buffer = FileBuffer(tmp_path, 2)

    async def made_by(producer: Producer) -> list[int]:
        counts = []
        for step in range(3):
            producer.top_up(step)
            producer.top_up(step)  # asking twice submits once
            await producer.settle(min(step + 1, 2))
            counts.append(len(buffer.actor.status().waiting))
        return counts

    assert asyncio.run(made_by(make_producer(config, FakeGenerator(), buffer))) == [4, 6, 6]


def test_a_rollouter_that_ignores_its_end_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's code may catch everything: the end of a run does not wait for it for ever."""
    monkeypatch.setattr("trainer.rollout.producer.GRACE_S", 0.05)
    config = RunConfig(num_steps=1, rollout=RolloutConfig(group_size=1, groups_per_step=1))
    given_up = asyncio.Event()

    class Stubborn(FakeGenerator):
        async def generate(self, submission: Submission) -> list[Completion]:
            while not given_up.is_set():
                with suppress(asyncio.CancelledError):
                    await given_up.wait()
            return []

    async def work() -> None:
        producer = make_producer(config, Stubborn(), FileBuffer(tmp_path, 1))
        producer.top_up(0)
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await producer.close()
        given_up.set()
        await asyncio.sleep(0)

    asyncio.run(work())


def test_a_controller_may_move_the_temperature(tmp_path: Path) -> None:
    """Step 0 is sampled at 1, step 1 at 1.5, step 2 at 1 again. Only at lag 0, where it is known in time."""
    config = RunConfig(num_steps=3, rollout=RolloutConfig(group_size=1, groups_per_step=1))
    buffer = FileBuffer(tmp_path, 1)
    settings: list[dict[str, float]] = [{}, {"rollout.temperature": 1.5}, {}]

    found: list[float] = []

    @dataclass
    class Noting(FakeGenerator):
        async def generate(self, submission: Submission) -> list[Completion]:
            found.append(submission.sampling.temperature)
            return await FakeGenerator.generate(self, submission)

    async def run(producer: Producer) -> None:
        for step, moved in enumerate(settings):
            producer.top_up(step, moved)
            await producer.settle(step)

    asyncio.run(run(make_producer(config, Noting(), buffer)))
    assert found == [1.0, 1.5, 1.0]
    moved = "controllers.t={kind: threshold, setting: rollout.temperature, value: 1.2, otherwise: 1.0}"
    assert load_config("debug", [moved]).controllers["t"]["value"] == 1.2
    for more, rule in (("rollout.max_lag=1", "not known in time"), ("controllers.t.otherwise=0", "above 0")):
        with pytest.raises(ConfigError, match=rule):
            load_config("debug", [moved, more])


def test_groups_the_buffer_has_are_not_made_again(tmp_path: Path) -> None:
    """After a restart at step 1 with groups 3 and 4 waiting: only 2 and 5 of its two steps are submitted."""
    config = RunConfig(num_steps=3, rollout=RolloutConfig(group_size=1, groups_per_step=2, max_lag=1))
    generator, made = FakeGenerator(), []

    async def go_on(producer: Producer) -> None:
        producer.on_group = lambda group: made.append(group.submission.submission_index)
        await producer.restart(1, [3, 4])
        producer.top_up(1)
        await producer.settle(2)

    asyncio.run(go_on(make_producer(config, generator, FileBuffer(tmp_path, 2))))
    assert generator.calls == ["generate 00000002", "generate 00000005"] and made == [2, 5]


def test_settle_waits_for_its_step_only(tmp_path: Path) -> None:
    """The groups of step 1 hang; step 0 still settles, with its seconds."""
    config = RunConfig(rollout=RolloutConfig(group_size=1, groups_per_step=2, max_lag=1))
    buffer, generator = FileBuffer(tmp_path, 2), StuckGenerator(stuck=("00000002", "00000003"))

    async def run(producer: Producer) -> dict[str, float]:
        producer.top_up(0)
        times = await producer.settle(0)
        await producer.close()
        return times

    times = asyncio.run(run(make_producer(config, generator, buffer)))
    assert buffer.actor.status().waiting == (0, 1)
    assert set(times) == {"time/generate_s", "time/score_s"} and min(times.values()) >= 0
    assert sorted(generator.cancelled) == ["00000002", "00000003"]


def test_a_stuck_group_is_named(tmp_path: Path) -> None:
    """After rollout.group_timeout_s the error names group, prompt and limit."""
    config = RunConfig(rollout=RolloutConfig(group_size=1, groups_per_step=2, group_timeout_s=0.05))
    producer = make_producer(config, StuckGenerator(stuck=("00000001",)), FileBuffer(tmp_path, 2))

    async def run() -> None:
        producer.top_up(0)
        await producer.settle(0)

    with pytest.raises(TimeoutError, match=r"group 1 \(prompt p1\).*rollout\.group_timeout_s = 0\.05"):
        asyncio.run(run())


def test_close_cancels_the_other_groups_of_a_failed_step(tmp_path: Path) -> None:
    """One group fails at once, another hangs: closing must cancel that one."""
    config = RunConfig(rollout=RolloutConfig(group_size=1, groups_per_step=2))
    generator = StuckGenerator(stuck=("00000001",))

    class FailingBuffer(FileBuffer):
        async def add(self, batch: object) -> None:
            raise OSError("disk full")

    async def run(producer: Producer) -> list[str]:
        producer.top_up(0)
        with pytest.raises(OSError, match="disk full"):
            await producer.settle(0)
        await producer.close()
        return list(generator.cancelled)

    assert asyncio.run(run(make_producer(config, generator, FailingBuffer(tmp_path, 2)))) == ["00000001"]


def test_a_missing_score_is_data(tmp_path: Path) -> None:
    """Scores 1, 0, null, 0: the third row has no reward, no advantage and no weight; the others are not
    affected.

    Their mean is 1/3 and std sqrt(1/3): 1.1547, -0.5774, -0.5774; 3 rows x 3 tokens weigh 1/9 each.
    """
    config = RunConfig(rollout=RolloutConfig(group_size=4, groups_per_step=1))
    buffer = FileBuffer(tmp_path, 1)
    scorer = FakeScorer(fails=lambda completion: completion.sample_id.endswith(".2"))

    async def run(producer: Producer) -> None:
        producer.top_up(0)
        await producer.settle(0)
        index = await buffer.take(1, 0)
        assert index is not None
        assert index.column("reward").to_pylist() == [1.0, 0.0, None, 0.0]
        assert dict(index.column("score_status").to_pylist()[2]) == {"correct": "timeout"}
        batch = collate(index, config)
        columns = align(index, await FakeLearner().compute_logprobs(batch))
        learnable = with_advantages(batch, columns, bind(config), 0)
        assert learnable.advantage_N.tolist() == pytest.approx([1.1547, -0.5774, 0.0, -0.5774], abs=1e-4)
        assert learnable.row_weight_N.tolist() == pytest.approx([1 / 9, 1 / 9, 0.0, 1 / 9])

    asyncio.run(run(make_producer(config, FakeGenerator(), buffer, scorer)))


class SkippingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be advanced, so that long waits take no time."""

    skipped_s = 0.0

    def time(self) -> float:
        return super().time() + self.skipped_s

    async def skip(self, seconds: float) -> None:
        """Advance the clock like a sleep: everything due meanwhile has run afterwards."""
        self.skipped_s += seconds
        await asyncio.sleep(0.01)


def test_a_pause_does_not_count_against_the_limit(tmp_path: Path) -> None:
    """Limit 100 s: 300 s of pause do not count; without a pause they are too long."""
    config = RunConfig(rollout=RolloutConfig(group_size=1, groups_per_step=1, group_timeout_s=100.0))
    loop = SkippingLoop()

    class WaitingGenerator(FakeGenerator):
        async def generate(self, submission: Submission) -> list[Completion]:
            await gates[-1].wait()
            return await FakeGenerator.generate(self, submission)

    gates: list[asyncio.Event] = []

    async def run(producer: Producer, pauses: bool) -> None:
        gates.append(asyncio.Event())
        producer.top_up(0)
        await asyncio.sleep(0)
        if pauses:
            await producer.pause()
        await loop.skip(300.0)
        if pauses:
            await producer.resume()
        gates[-1].set()
        await producer.settle(0)

    buffer = FileBuffer(tmp_path, 1)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(run(make_producer(config, WaitingGenerator(), buffer), True))
        assert buffer.actor.status().waiting == (0,)
        with pytest.raises(TimeoutError, match="group 0"):
            runner.run(run(make_producer(config, WaitingGenerator(), buffer), False))


def test_the_first_completions_of_a_step_begin_its_scoring(tmp_path: Path) -> None:
    """Two groups a step: the phase is reported once per step, with the step's committed number."""
    config = RunConfig(rollout=RolloutConfig(group_size=1, groups_per_step=2))
    order, told = PromptOrder(token_prompts(4), config.seed, shuffle=False), []
    producer = Producer(
        bind(config),
        order,
        FakeGenerator(),
        scorers(None),
        FileBuffer(tmp_path, 2),
        lambda step, name: told.append((step, name)),
    )

    async def run() -> None:
        for step in range(2):
            producer.top_up(step)
            await producer.settle(step)

    asyncio.run(run())
    assert told == [(1, "scoring"), (2, "scoring")]
