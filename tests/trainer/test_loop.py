"""The loop with roles in memory: the order of a step, the lag bound, evaluations, when it stops."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from loop_fakes import (
    FakeGenerator,
    FakeLearner,
    FakeScorer,
    FakeTransport,
    FileBuffer,
    scorers,
    token_prompts,
)

from configs.bound import bind
from configs.schema import (
    CheckpointConfig,
    ClusterConfig,
    EvalConfig,
    LearnerConfig,
    ReferenceConfig,
    RolloutConfig,
    RunConfig,
    SyncConfig,
)
from rollouts.checkpoints import checkpoint_steps
from rollouts.records import Completion, Judgement, Prompt
from rollouts.store import committed_evals
from trainer.checkpoint import Checkpoints
from trainer.data.prompts import PromptOrder, TokenPrompt
from trainer.evaluate import Evaluator
from trainer.loop import Roles, Run
from trainer.metrics import is_timing
from trainer.reports import Reports
from trainer.reward_watch import NoRewardError
from trainer.rollout.producer import Producer
from trainer.update_watch import NonFiniteError
from trainer.weights.weight_sync import WeightSyncError, publish


@dataclass
class Trial:
    """A run of 3 steps with 2 groups of 2 each, and a record of all its calls."""

    folder: Path
    num_steps: int = 3
    max_lag: int = 0
    eval_every: int = 0
    generator: FakeGenerator = field(default_factory=FakeGenerator)
    scorer: FakeScorer = field(default_factory=FakeScorer)
    learner: FakeLearner = field(default_factory=FakeLearner)
    schedule: str = "overlap"
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    calls: list[str] = field(default_factory=list)
    lines: list[Mapping[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    records: list[dict[str, object]] = field(default_factory=list)
    controllers: dict[str, dict[str, object]] = field(default_factory=dict)
    phases: list[tuple[int, str]] = field(default_factory=list)
    in_flight: list[str] = field(default_factory=list)
    """Groups that were in flight when `train` returned or raised."""

    def __post_init__(self) -> None:
        self.buffer = FileBuffer(self.folder, 2)

    def train(self) -> None:
        for role in (self.generator, self.learner, self.buffer):
            role.calls = self.calls
        config = RunConfig(
            num_steps=self.num_steps,
            rollout=RolloutConfig(group_size=2, groups_per_step=2, max_lag=self.max_lag),
            learner=LearnerConfig(max_nonfinite_updates=2),
            eval=EvalConfig(every=self.eval_every, num_prompts=1, num_samples=2, pass_at=(1, 2)),
            sync=SyncConfig(num_probes=1),
            cluster=ClusterConfig(schedule=self.schedule),
            checkpoint=CheckpointConfig(every=0),
            reference=self.reference,
            controllers=self.controllers,
        )
        prompts = token_prompts(4)
        roles = Roles(
            generator=self.generator,
            scorers=scorers(self.scorer),
            learner=self.learner,
            transport=FakeTransport(self.learner, self.generator),
            buffer=self.buffer,
        )
        order = PromptOrder(prompts, config.seed, config.data.shuffle)
        producer = Producer(bind(config), order, roles.generator, roles.scorers, roles.buffer)
        evaluator = Evaluator(config, prompts, roles.generator, roles.scorers, self.folder)
        reports = Reports(
            step=self.lines.append,
            note=self.notes.append,
            event=lambda kind, **fields: self.events.append(" ".join([kind, *map(str, fields.values())])),
            record=lambda kind, **fields: self.records.append({"kind": kind, **fields}),
            phase=lambda step, name: self.phases.append((step, name)),
            scorer_log=lambda name: f"logs/{name}.log",
        )
        checkpoints = Checkpoints(self.folder, config, "experiment", 1, reports.event)
        run = Run(bind(config), roles, producer, evaluator, checkpoints, reports)
        assert asyncio.run(self._finish(run, prompts))

    async def _finish(self, run: Run, prompts: list[TokenPrompt]) -> bool:
        try:
            return await run.train(prompts)
        finally:
            names = (task.get_name() for task in asyncio.all_tasks())
            self.in_flight = sorted(name for name in names if name.startswith("group "))

    def metric_lines(self) -> list[dict[str, float]]:
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def step_calls(step: int) -> list[str]:
    """The calls of `step` (from 0) at lag 0: its groups first, the commit last, after the new weights."""
    first, second = 2 * step, 2 * step + 1
    made = [f"generate {first:08d}", f"generate {second:08d}", f"add {first}", f"add {second}"]
    learned = [
        f"take 2 from {step}",
        "compute_logprobs",
        "update",
        f"publish {step + 1}",
        f"load {step + 1}",
        "resume",
    ]
    return [*made, *learned, f"commit {step + 1}"]


def test_order_of_calls(tmp_path: Path) -> None:
    """A probe sequence, the first weights, then the steps one by one, and a checkpoint of the last."""
    trial = Trial(tmp_path)
    trial.train()
    start = ["generate 00000000", "publish 0", "load 0", "resume", "rewind 0"]
    assert trial.calls == [*start, *(call for step in range(3) for call in step_calls(step)), "save"]
    assert checkpoint_steps(tmp_path) == [3] and trial.events == []
    names = ["generating", "learning", "publishing", "committing"]
    assert [name for step, name in trial.phases if step == 1] == [*names, "idle"]
    assert trial.phases[-6:] == [(3, name) for name in (*names, "checkpointing", "idle")]


def test_the_reference_is_reset_after_the_update(tmp_path: Path) -> None:
    """Every second of three steps: once, to the weights that are then published, and a note says so."""
    trial = Trial(tmp_path, reference=ReferenceConfig(reset_every=2, reset_optimizer=True))
    trial.train()
    at = trial.calls.index("reset reference True")
    assert trial.calls[at - 1 : at + 2] == ["update", "reset reference True", "publish 2"]
    assert trial.calls.count("reset reference True") == 1
    assert [line["reference/resets"] for line in trial.lines] == [0.0, 1.0, 1.0]
    assert [note for note in trial.notes if "reference" in note] == [
        "step 2: the reference of the KL anchor is now this step's policy"
    ]


def test_a_metric_that_no_step_has_is_reported(tmp_path: Path) -> None:
    """One note, after the first step, with the nearest name: such a controller would have no effect."""
    wrong = ReferenceConfig(plateau_steps=1, plateau_metric="reward/meen")
    trial = Trial(tmp_path, reference=wrong)
    trial.train()
    told = "step 1 has no metric 'reward/meen', which reference.plateau_metric names: it moves nothing "
    told += "(the nearest is 'reward/mean')"
    assert trial.notes.count(told) == 1 and "reset reference False" not in trial.calls


def test_every_move_of_a_controller_is_kept_with_its_reason(tmp_path: Path) -> None:
    """The learning rate, 3e-4, is above 0 in every step: a coefficient at 0.5 goes up once and stays.

    Nothing is shown to the user, and the next step uses it.
    """
    threshold = {"kind": "threshold", "setting": "kl.coef", "metric": "learning_rate", "target": 0.0}
    entry = {**threshold, "relative": False, "below": False, "value": 0.5, "otherwise": 0.25}
    trial = Trial(tmp_path, controllers={"anchor": entry})
    trial.train()
    moved = {"setting": "kl.coef", "before": 0.25, "after": 0.5, "reason": "learning_rate is 0.0003, above 0"}
    assert trial.records == [{"kind": "setting_moved", "step": 1, "controller": "anchor", **moved}]
    assert [line["control/kl.coef"] for line in trial.lines] == [0.25, 0.5, 0.5]
    assert trial.events == [] and not any("kl.coef" in note for note in trial.notes)


@pytest.mark.parametrize("max_lag", [0, 1, 2])
def test_lag_bound(tmp_path: Path, max_lag: int) -> None:
    """No row is older than step - max_lag, the bound is reached, and every group is used."""
    trial = Trial(tmp_path, max_lag=max_lag)
    trial.train()
    taken = [call for call in trial.calls if call.startswith("take")]
    assert taken == [f"take 2 from {step - max_lag}" for step in range(3)]
    assert max(trial.buffer.lags) == 0
    assert sum(call.startswith("add") for call in trial.calls) == 6
    assert trial.buffer.actor.status().waiting == ()
    if max_lag:  # the groups after the first step's were made before its update
        assert trial.calls.index("add 3") < trial.calls.index("update")


@pytest.mark.parametrize(("schedule", "pauses"), [("take_turns", 3), ("overlap", 0)])
def test_who_takes_turns_pauses_the_engines_while_it_learns(
    tmp_path: Path, schedule: str, pauses: int
) -> None:
    """From before a step takes its groups until its weights are published; else they keep sampling."""
    trial = Trial(tmp_path, max_lag=1, schedule=schedule)
    trial.train()
    assert trial.calls.count("pause") == pauses and trial.calls.count("resume") == 4
    if pauses:
        assert trial.calls[trial.calls.index("pause") + 1] == "take 2 from -1"
    assert ("overlap/generating_share" in trial.lines[0]) == (schedule == "overlap")


def test_every_row_gets_its_own_advantage(tmp_path: Path) -> None:
    """Sample 0 is right and 1 wrong in every group: +-1/sqrt 2, in the index's order although ranks return
    another. Of 4 rows x 3 tokens each token weighs 1/12.
    """
    trial = Trial(tmp_path)
    trial.train()
    assert [step for step, _, _ in trial.buffer.committed] == [1, 2, 3]
    for step, columns, summary in trial.buffer.committed:
        names = columns.column("sample_id").to_pylist()
        assert names == [
            f"{group:08d}.{number}" for group in (2 * step - 2, 2 * step - 1) for number in (0, 1)
        ]
        assert columns.column("advantage").to_pylist() == pytest.approx([0.7071, -0.7071] * 2, abs=1e-4)
        assert columns.column("update_count").to_pylist() == [1] * 4
        assert "mismatch_abs" not in columns.column_names and summary["policy_version"] == step - 1
    assert trial.learner.learned[0].row_weight_N.tolist() == pytest.approx([1 / 12] * 4)


def test_metrics_are_written_and_shown(tmp_path: Path) -> None:
    """One line per step with the same numbers in the file, the report and the committed summary."""
    trial = Trial(tmp_path)
    trial.train()
    lines = trial.metric_lines()
    assert [line["step"] for line in lines] == [line["step"] for line in trial.lines] == [1, 2, 3]
    assert lines[1]["reward/mean"] == 0.5 and lines[1]["grad/norm"] == 2.0
    assert lines[1]["sync/proven"] == 1.0 and lines[1]["learning_rate"] == 3e-4
    phases = {
        "generate",
        "score",
        "take",
        "learn_score",
        "advantages",
        "learn_update",
        "publish",
        "commit",
        "step",
    }
    assert phases <= {name.removeprefix("time/").removesuffix("_s") for name in lines[1]}
    for line, shown, (_, _, summary) in zip(lines, trial.lines, trial.buffer.committed, strict=True):
        committed = summary["metrics"]
        assert isinstance(committed, dict)
        same = [name for name in committed if not is_timing(name)]
        assert {name: line[name] for name in same} == {name: committed[name] for name in same}
        assert {name: shown[name] for name in same} == {name: committed[name] for name in same}


def test_evaluations(tmp_path: Path) -> None:
    """Every 2 of 3 steps: at 0, 2 and the last, each under the weights just published."""
    trial = Trial(tmp_path, eval_every=2)
    trial.train()
    assert committed_evals(tmp_path) == [0, 2, 3]
    assert trial.notes[0] == "evaluation after step 0: pass@1 0.500, pass@2 1.000"
    evals = [number for number, call in enumerate(trial.calls) if call.startswith("generate eval")]
    assert [trial.calls[number - 1] for number in evals] == ["rewind 0", "commit 2", "commit 3"]


def test_an_evaluation_says_how_many_rewards_are_missing(tmp_path: Path) -> None:
    """Its pass@k counts a completion without a reward as wrong."""
    fails = FakeScorer(fails=lambda completion: completion.sample_id.startswith("eval"))
    trial = Trial(tmp_path, eval_every=3, scorer=fails)
    trial.train()
    note = "evaluation after step 0: pass@1 0.000, pass@2 0.000; 100% of its completions have no reward"
    assert trial.notes[0] == note


@pytest.mark.parametrize("failing", [True, False])
def test_a_step_without_rewards_need_not_move_the_probes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: bool
) -> None:
    """With rewards it is noted that the first step could not show that new weights arrived."""

    async def unproven(*arguments: Any) -> tuple[object, dict[str, float]]:
        published, metrics = await publish(*arguments)
        return published, metrics | {"sync/proven": 0.0}

    monkeypatch.setattr("trainer.loop.publish", unproven)
    trial = Trial(tmp_path, num_steps=4, scorer=FakeScorer(fails=lambda completion: failing))
    with suppress(NoRewardError):
        trial.train()
    told = ["moved the probes too little" in note for note in trial.notes]
    assert sum(told) == (0 if failing else 1)


def test_nonfinite_updates_in_a_row_stop_the_run(tmp_path: Path) -> None:
    """Two of them, with the limit at 2: the rows of both steps are committed, then the run stops."""
    trial = Trial(tmp_path, learner=FakeLearner(nonfinite_steps=frozenset({0, 1})))
    with pytest.raises(NonFiniteError, match=r"2 updates in a row.*rows of step 2"):
        trial.train()
    assert [step for step, _, _ in trial.buffer.committed] == [1, 2]
    assert trial.events[0] == "updates_skipped 1 1"
    assert trial.metric_lines()[0]["grad/skipped_updates"] == 1.0


def test_a_run_without_any_reward_is_reported_and_stopped(tmp_path: Path) -> None:
    """Every score timed out, three steps in a row: a note each, naming scorer and count, then the end."""
    trial = Trial(tmp_path, scorer=FakeScorer(fails=lambda completion: True))
    with pytest.raises(NoRewardError, match=r"100% of completions have no reward .*3 steps in a row"):
        trial.train()
    told = "100% of completions have no reward (correct/timeout 4; the reasons are in logs/correct.log)"
    assert trial.notes == [f"step {step}: {told}" for step in (1, 2, 3)]


@pytest.mark.parametrize(("num_steps", "counted"), [(1, "the only step"), (2, "2 steps in a row")])
def test_a_short_run_without_any_reward_is_no_success(tmp_path: Path, num_steps: int, counted: str) -> None:
    """It ends before the limit of three, and before anything is exported."""
    trial = Trial(tmp_path, num_steps=num_steps, scorer=FakeScorer(fails=lambda completion: True))
    with pytest.raises(NoRewardError, match=rf"step {num_steps}: 100% of .*, {counted}: there is nothing"):
        trial.train()
    assert len(trial.buffer.committed) == num_steps and "export" not in " ".join(trial.calls)


def test_a_run_that_fails_leaves_no_group_in_flight(tmp_path: Path) -> None:
    """One group ends the run while the others are scored for ever: they would call actors that are ended."""

    class OneBreaks(FakeScorer):
        async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
            if completions[0].sample_id.startswith("00000000"):
                raise OSError("no more")
            return await asyncio.Event().wait()  # type: ignore[return-value]

    trial = Trial(tmp_path, max_lag=1, scorer=OneBreaks())
    with pytest.raises(OSError, match="no more"):
        trial.train()
    assert trial.in_flight == []


def test_some_missing_rewards_are_reported_and_the_run_continues(tmp_path: Path) -> None:
    """Half of them, every step: three notes and three steps."""
    trial = Trial(tmp_path, scorer=FakeScorer(fails=lambda completion: completion.sample_id.endswith("0")))
    trial.train()
    assert len(trial.lines) == 3 and all("50% of completions" in note for note in trial.notes)


def test_nonfinite_updates_apart_do_not_stop_it(tmp_path: Path) -> None:
    """A finite update in between resets the count."""
    trial = Trial(tmp_path, learner=FakeLearner(nonfinite_steps=frozenset({0, 2})))
    trial.train()
    assert [line["grad/skipped_updates"] for line in trial.metric_lines()] == [1.0, 0.0, 1.0]


def test_a_stale_engine_stops_the_run_before_the_commit(tmp_path: Path) -> None:
    """Version 1 never arrives: no step is committed with unverified weights."""
    trial = Trial(tmp_path, generator=FakeGenerator(stale=True))
    with pytest.raises(WeightSyncError, match="version 1"):
        trial.train()
    assert trial.buffer.committed == [] and trial.metric_lines() == []
