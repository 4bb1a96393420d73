"""Only rollouts, or only training on another run's rollouts; roles in memory, real files."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loop_fakes import FakeGenerator, FakeLearner, FakeScorer, FileBuffer, TokenScorer, scorers, token_prompts

from cluster.role_proxies import NoEngines
from cluster.weight_transport import NoTransport
from configs.bound import bind
from configs.schema import RolloutConfig, RunConfig, SyncConfig
from rollouts.journal import Journal
from rollouts.records import Group, Judgement
from rollouts.store import committed_steps, read_step
from trainer.checkpoint import Checkpoints
from trainer.collect import collect
from trainer.data.prompts import PromptOrder
from trainer.evaluate import Evaluator
from trainer.loop import Roles, Run
from trainer.metrics import is_timing
from trainer.reports import Reports
from trainer.reward_watch import NoRewardError
from trainer.rollout.dynamic_sampling import submissions_per_step
from trainer.rollout.producer import Producer
from trainer.rollout.refiner import Attempt
from trainer.rollout.rollouter import RolloutTools

CONFIG = RunConfig(
    num_steps=3, rollout=RolloutConfig(group_size=2, groups_per_step=2), sync=SyncConfig(num_probes=1)
)


def collected(
    folder: Path, config: RunConfig = CONFIG, scorer: FakeScorer | None = None
) -> tuple[FakeGenerator, list[Mapping[str, float]]]:
    """Every group of the run in its journal; the submissions that were sampled, and the reported lines."""
    generator, buffer = FakeGenerator(), FileBuffer(folder, submissions_per_step(config))
    lines: list[Any] = []
    order = PromptOrder(token_prompts(5), config.seed, config.data.shuffle)
    role = scorers(scorer)
    producer = Producer(bind(config), order, generator, role, buffer)
    reports = Reports(step=lines.append, note=lambda text: None)
    try:
        asyncio.run(collect(config, producer, buffer, 1, reports, role))
    finally:
        buffer.actor.close()
    return generator, lines


def test_every_group_is_in_the_journal(tmp_path: Path) -> None:
    """Six groups of the initial model, a line per step; groups in the journal are not sampled again."""
    generator, lines = collected(tmp_path)
    journal = sorted(path.name for path in (tmp_path / "journal").glob("*.arrow"))
    assert journal == [f"{index:012d}.arrow" for index in range(6)]
    assert [line["step"] for line in lines] == [1, 2, 3] and lines[0]["reward/mean"] == 0.5
    assert len(generator.calls) == 6 and committed_steps(tmp_path) == []
    (tmp_path / "journal" / "000000000003.arrow").unlink()
    again, told = collected(tmp_path)
    assert again.calls == ["generate 00000003"] and [line["step"] for line in told] == [2]


@pytest.mark.parametrize("num_steps", [2, 5])
def test_rollouts_without_any_reward_are_no_success(tmp_path: Path, num_steps: int) -> None:
    """Stopped after three steps or at the end, also when the groups were sampled before."""
    config = replace(CONFIG, num_steps=num_steps)
    for _ in range(2):
        with pytest.raises(NoRewardError, match=r"no reward|no completion"):
            collected(tmp_path, config, FakeScorer(fails=lambda completion: True))
    assert len(list((tmp_path / "journal").glob("*.arrow"))) <= 2 * min(num_steps, 4)


def test_further_groups_are_collected_too(tmp_path: Path) -> None:
    """With refill the journal has all groups of each step, from submission 6 s on, once."""
    rollout = replace(CONFIG.rollout, zero_variance_groups="refill")
    _, lines = collected(tmp_path, replace(CONFIG, rollout=rollout), TokenScorer())
    indexes = Journal(tmp_path / "journal").indexes()
    sizes = [sum(index // 6 == step for index in indexes) for step in range(3)]
    assert indexes == [6 * step + place for step, size in enumerate(sizes) for place in range(size)]
    assert max(sizes) > 2 and len(lines) == 3
    again, _ = collected(tmp_path, replace(CONFIG, rollout=rollout), TokenScorer())
    assert again.calls == []


async def right_answer(group: Group, tools: RolloutTools, options: object) -> list[Attempt]:
    """A refiner that adds a row of reward 1 in another format."""
    (completion,) = await tools.generate(samples=[0], turn=tools.next_turn())
    judged = Judgement(score=1.0, tags={"format": "refined"})
    sample = tools.combined(completion, dict.fromkeys(group.samples[0].scores, judged), "refined")
    return [Attempt(parent=None, sample=sample)]


def test_refined_rows_are_in_the_journal_and_not_in_the_line(tmp_path: Path) -> None:
    """As in training: rewards and formats are of the policy's own rows."""
    _, plain = collected(tmp_path / "plain")
    refiner = {"kind": "test_collect:right_answer", "groups": "all"}
    config = replace(CONFIG, refiner=refiner, allow=("test_collect",))
    _, lines = collected(tmp_path / "refined", config)
    names = [name for name in plain[0] if not is_timing(name)]
    assert [[line[name] for name in names] for line in lines] == [
        [line[name] for name in names] for line in plain
    ]
    assert not any("refined" in name for name in lines[0])
    batch = Journal(tmp_path / "refined" / "journal").read(0)
    assert batch.column("origin").to_pylist() == ["policy", "policy", "refined"]


def test_a_run_on_anothers_rollouts_asks_no_engine(tmp_path: Path) -> None:
    """They are all of version 0 and still trained on at lag 0; without probes nothing is verified."""
    collected(tmp_path / "theirs")
    mine, learner = tmp_path / "mine", FakeLearner()
    buffer = FileBuffer(mine, 2)
    roles = Roles(
        generator=NoEngines(), scorers=scorers(), learner=learner, transport=NoTransport(), buffer=buffer
    )
    order = PromptOrder(token_prompts(5), CONFIG.seed, CONFIG.data.shuffle)
    producer = Producer(bind(CONFIG), order, roles.generator, roles.scorers, roles.buffer)
    evaluator = Evaluator(CONFIG, (), roles.generator, roles.scorers, mine)
    lines: list[Mapping[str, float]] = []
    reports = Reports(step=lines.append, note=lambda text: None)
    checkpoints = Checkpoints(mine, CONFIG, "experiment", 1, reports.event)
    run = Run(bind(CONFIG), roles, producer, evaluator, checkpoints, reports, generates=False)
    assert buffer.actor.adopt(str(tmp_path / "theirs")) == 6
    assert asyncio.run(run.train(token_prompts(5)))
    assert committed_steps(mine) == [1, 2, 3] and learner.version == 3
    groups = [read_step(mine, step).column("submission_index").to_pylist() for step in (1, 2, 3)]
    assert groups == [[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]]
    assert len(lines) == 3 and not any(name.startswith("sync/") for line in lines for name in line)
    with pytest.raises(RuntimeError, match=r"group \d+ is missing from the saved rollouts"):
        asyncio.run(ask_for_more(roles))


async def ask_for_more(roles: Roles) -> None:
    """Ask for a group that is not in the rollouts."""
    order = PromptOrder(token_prompts(5), CONFIG.seed, CONFIG.data.shuffle)
    producer = Producer(bind(CONFIG), order, roles.generator, roles.scorers, roles.buffer)
    producer.top_up(0)
    await producer.settle(0)
