"""One attempt at a small run: the real loop and real files, with roles in memory that can end at any call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest
from loop_fakes import (
    FakeGenerator,
    FakeLearner,
    FakeScorer,
    FakeTransport,
    FileBuffer,
    Observed,
    scorers,
    token_prompts,
)

from benchmarks.faults.common import metrics_lines
from configs.bound import bind
from configs.schema import (
    CheckpointConfig,
    ClusterConfig,
    EvalConfig,
    ReplayConfig,
    RolloutConfig,
    RunConfig,
    SyncConfig,
    TemperedConfig,
)
from rollouts.checkpoints import checkpoint_steps
from rollouts.files import Json
from rollouts.schema import sft_batch
from rollouts.store import committed_evals, committed_steps, read_eval, read_step
from trainer.checkpoint import Checkpoints
from trainer.data.prompts import PromptOrder
from trainer.evaluate import Evaluator
from trainer.loop import Roles, Run
from trainer.reports import Reports
from trainer.roles import LearnerLostError
from trainer.rollout.dynamic_sampling import submissions_per_step
from trainer.rollout.producer import Producer
from trainer.rollout.rollouter import NO_ENCODERS, Encoders

NUM_STEPS = 6
REFRESH = {
    "kind": "threshold",
    "metric": "entropy/token_mean",
    "target": 0.7,
    "relative": False,
    "value": 0.5,
}


class Killed(BaseException):
    """The process ended here: nothing after it happens."""


def seven_demonstrations() -> pa.RecordBatch:
    """Of three tokens each, as many as the learner in memory scores."""
    tokens, names = [[1, 2, 3]] * 7, ["x"] * 7
    return sft_batch(
        "run", prompt_ids=tokens, token_ids=tokens, text=names, domain=names, format_tag=[None] * 7
    )


@dataclass
class Trial:
    """One attempt at a run of 6 steps with 2 groups of 2, checkpoints every 2 and evaluations every 3.

    With `refresh` steps have 2 of 7 demonstrations whenever the entropy of the step before was low, with
    `heat`, a controller's entry, a tempered group, with `replay` that many groups of earlier steps. `more`
    are other fields of the config. `act` is called at every call of a role, by number from 0, with its name
    and whether it is before the call.
    """

    folder: Path
    max_lag: int = 0
    attempt: int = 1
    num_steps: int = NUM_STEPS
    refresh: bool = False
    zero_variance_groups: str = "keep"
    heat: dict[str, object] = field(default_factory=dict)
    replay: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)
    scorer: FakeScorer = field(default_factory=FakeScorer)
    encoders: Encoders = NO_ENCODERS
    act: Callable[[int, str, bool], None] = lambda number, name, before: None
    learner: FakeLearner = field(default_factory=FakeLearner)
    events: list[str] = field(default_factory=list)
    phases: list[tuple[int, str]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dead = False
        self.generator = FakeGenerator()
        config = RunConfig(
            num_steps=self.num_steps,
            rollout=RolloutConfig(
                group_size=2,
                groups_per_step=2,
                max_lag=self.max_lag,
                zero_variance_groups=self.zero_variance_groups,
            ),
            eval=EvalConfig(every=3, num_prompts=1, num_samples=2, pass_at=(1,)),
            sync=SyncConfig(num_probes=1),
            cluster=ClusterConfig(schedule="overlap"),
            checkpoint=CheckpointConfig(every=2),
            # makes every step depend on what earlier ones sampled for its prompts
            prompt_weight={"value": {"kind": "pass_at_k_value", "k": 2}},
        )
        if self.refresh:
            losses = {"policy": {"kind": "ppo_clip"}, "sft": {"kind": "nll"}}
            config = replace(config, loss=losses, controllers={"refresh": REFRESH})
        if self.heat:
            losses = {"policy": {"kind": "ppo_clip"}, "tempered": {"kind": "nll"}}
            tempered = TemperedConfig(groups_per_step=1)
            config = replace(config, loss=losses, controllers={"heat": self.heat}, tempered=tempered)
        if self.replay:
            losses = {"policy": {"kind": "ppo_clip"}, "replay": {"kind": "ppo_clip", "ratio_to": "behavior"}}
            config = replace(config, loss=losses, replay=ReplayConfig(groups_per_step=self.replay))
        config = replace(config, **self.more)
        self.buffer = FileBuffer(self.folder, submissions_per_step(config))
        self.prompts = token_prompts(5)
        generator = self._observed(self.generator, "generator")
        learner = self._observed(self.learner, "learner")
        roles = Roles(
            generator=generator,
            scorers=scorers(self.scorer),
            learner=learner,
            transport=FakeTransport(learner, generator),
            buffer=self._observed(self.buffer, "buffer"),
        )
        order = PromptOrder(self.prompts, config.seed, config.data.shuffle)
        reports = Reports(
            step=lambda metrics: None,
            note=lambda text: None,
            event=self._event,
            phase=lambda step, name: self.phases.append((step, name)),
        )
        producer = Producer(
            bind(config), order, roles.generator, roles.scorers, roles.buffer, reports.phase, self.encoders
        )
        evaluator = Evaluator(config, self.prompts, roles.generator, roles.scorers, self.folder)
        checkpoints = Checkpoints(self.folder, config, "experiment", self.attempt, reports.event)
        self.run = Run(
            bind(config),
            roles,
            producer,
            evaluator,
            checkpoints,
            reports,
            demonstrations=seven_demonstrations(),
        )

    def _event(self, kind: str, **fields: object) -> None:
        self.events.append(" ".join([kind, *(f"{name}={value}" for name, value in fields.items())]))

    def _observed(self, role: object, name: str) -> Any:
        return cast(Any, Observed(role, name, self._observe))

    async def _observe(self, name: str, work: Callable[[], Awaitable[object]]) -> object:
        if self.dead:
            raise Killed
        number = len(self.calls)
        self.calls.append(name)
        self.act(number, name, True)
        found = await work()
        self.act(number, name, False)
        return found

    def train(self) -> bool:
        """Whether it finished; the process's memory is lost afterwards."""
        try:
            return asyncio.run(self._train())
        finally:
            self.buffer.actor.close()

    async def _train(self) -> bool:
        # groups in flight die with the process; nobody will ask what became of them
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        return await self.run.train(self.prompts)

    def kill_at(self, fatal: int, before: bool) -> None:
        """End the process at that call, before it or after its effect."""

        def act(number: int, name: str, is_before: bool) -> None:
            if (number, is_before) == (fatal, before):
                self.dead = True
                raise Killed

        self.act = act

    def lose_learner_at(self, fatal: int, before: bool) -> None:
        """Lose the learner at that call, once."""

        def act(number: int, name: str, is_before: bool) -> None:
            if (number, is_before) == (fatal, before):
                raise LearnerLostError("rank 0 died")

        self.act = act


@dataclass(frozen=True)
class Result:
    """Everything that must not depend on interruptions."""

    state: str
    metrics: list[dict[str, Json]]
    steps: list[pa.Table]
    evals: dict[int, pa.Table]
    checkpoints: list[int]


def result_of(trial: Trial) -> Result:
    return Result(
        state=trial.learner.state,
        metrics=metrics_lines(trial.folder),
        steps=[read_step(trial.folder, step) for step in committed_steps(trial.folder)],
        evals={step: read_eval(trial.folder, step) for step in committed_evals(trial.folder)},
        checkpoints=checkpoint_steps(trial.folder),
    )


def go_on(folder: Path, max_lag: int, attempt: int = 2) -> Trial:
    """Another process continues in the same directory, to the end."""
    trial = Trial(folder, max_lag=max_lag, attempt=attempt)
    assert trial.train()
    return trial


def killed(folder: Path, max_lag: int, fatal: int, before: bool = True, attempt: int = 1) -> Trial:
    """An attempt that is ended at that call."""
    trial = Trial(folder, max_lag=max_lag, attempt=attempt)
    trial.kill_at(fatal, before)
    with pytest.raises(Killed):
        trial.train()
    return trial


def call_of(trial: Trial, name: str, count: int) -> int:
    """The number of the `count`-th call (from 1) of that name."""
    return [number for number, called in enumerate(trial.calls) if called == name][count - 1]
