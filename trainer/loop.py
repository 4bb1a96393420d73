"""The loop of a run: take, score, advantages, update, publish, commit. No maths, no tensors, no Ray.

`cluster.train` passes the roles in; tests pass fakes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from configs.schema import RunConfig
from rollouts.records import Sampling
from rollouts.store import append_metrics
from trainer.collate import Batch, Learnable, align, collate, with_advantages
from trainer.diagnose import Probe
from trainer.evaluate import Evaluator
from trainer.metrics import step_metrics, update_metrics
from trainer.prompts import TokenPrompt
from trainer.proof import Published, check_mismatch, publish
from trainer.roles import Buffer, Generator, Learner
from trainer.rollout import Judges, Producer, make_submission
from trainer.seeds import derive_seed

_MAX_UNREWARDED_STEPS = 3
_MEASURED = ("mismatch_abs", "mismatch_k3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Everything a run is made of, bound to wherever it runs."""

    generator: Generator
    judges: Judges
    learner: Learner
    buffer: Buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """Where a run tells what it does: a line per step, and notes."""

    step: Callable[[Mapping[str, float]], None]
    note: Callable[[str], None]


class NonFiniteError(RuntimeError):
    """Too many updates in a row had a loss or gradient that is not finite."""


class NoRewardError(RuntimeError):
    """Several steps in a row brought no reward at all."""


class Stopwatch:
    """Seconds by phase of the step under way; `lap(name)` closes the phase that began at the lap before."""

    def __init__(self) -> None:
        self._began = self._last = time.perf_counter()
        self.phases: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.phases[f"time/{name}_s"] = self.phases.get(f"time/{name}_s", 0.0) + now - self._last
        self._last = now

    def total(self) -> float:
        return time.perf_counter() - self._began


async def make_probes(
    config: RunConfig, prompts: Sequence[TokenPrompt], generator: Generator
) -> tuple[Probe, ...]:
    """Fixed sequences for the weight proof: completions of the first prompts by the weights of step 0."""
    chosen = prompts[: config.sync.num_probes]
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=config.rollout.max_tokens)
    seed = derive_seed(config.seed, "probe")
    probes = []
    for index, prompt in enumerate(chosen):
        completions = await generator.generate(make_submission(index, prompt, 1, sampling, seed))
        probes.append(Probe(token_ids=prompt.token_ids + completions[0].token_ids))
    return tuple(probes)


def learner_columns(batch: Batch, columns: pa.Table, learnable: Learnable) -> pa.Table:
    """The learner's columns as they are committed."""
    kept = columns.drop_columns([name for name in _MEASURED if name in columns.column_names])
    learned = (learnable.row_weight_N > 0).astype("int64")
    return kept.append_column("advantage", pa.array(learnable.advantage_N, from_pandas=True)).append_column(
        "update_count", pa.array(learned)
    )


class Run:
    """The state a run carries from step to step."""

    def __init__(
        self, config: RunConfig, roles: Roles, producer: Producer, evaluator: Evaluator, reports: Reports
    ) -> None:
        self._config, self._roles, self._producer = config, roles, producer
        self._evaluator, self._reports = evaluator, reports
        self._published: Published | None = None
        self._nonfinite_in_a_row = 0
        self._unrewarded_in_a_row = 0

    async def train(self, prompts: Sequence[TokenPrompt], run_dir: Path) -> None:
        """Publish and evaluate the starting weights, then run every step and the evaluations that are due."""
        self._probes = await make_probes(self._config, prompts, self._roles.generator)
        await self._publish(0)
        await self._evaluate(0)
        for step in range(self._config.num_steps):
            metrics = await self._step(step)
            append_metrics(run_dir, step + 1, metrics)
            self._reports.step(metrics | {"step": float(step + 1)})
            await self._evaluate(step + 1)

    async def _step(self, step: int) -> dict[str, float]:
        config, watch = self._config, Stopwatch()
        self._producer.top_up(step)
        watch.phases |= await self._producer.settle(step)
        watch.lap("rollout")
        index = await self._roles.buffer.take(config.rollout.groups_per_step, step - config.rollout.max_lag)
        assert index is not None, "settled groups are in the buffer"
        batch = collate(index, config)
        watch.lap("take")
        columns = align(index, await self._roles.learner.score(batch))
        watch.lap("learn_score")
        learnable = with_advantages(batch, columns, config, step)
        metrics = step_metrics(batch, columns)
        check_mismatch(metrics["mismatch/mean_abs_behavior_vs_proximal"], config)
        watch.lap("advantages")
        updates = await self._roles.learner.update(batch, learnable)
        watch.lap("learn_update")
        metrics |= update_metrics(updates) | {"learning_rate": learnable.learning_rates[-1]}
        metrics |= await self._publish(step + 1)
        watch.lap("publish")
        num_tokens = float(index.column("num_tokens").to_numpy().sum())
        metrics["throughput/tokens_per_s"] = num_tokens / watch.total()
        metrics |= _phase_times(watch)
        summary = {"metrics": metrics, "policy_version": step}
        await self._roles.buffer.commit(step + 1, learner_columns(batch, columns, learnable), summary)
        watch.lap("commit")
        self._watch_rewards(metrics, step + 1)
        self._guard([update["grad/applied"] > 0 for update in updates], step + 1)
        return metrics | _phase_times(watch) | {"throughput/tokens_per_s": num_tokens / watch.total()}

    async def _publish(self, version: int) -> dict[str, float]:
        self._published, metrics = await publish(
            version, self._roles.learner, self._roles.generator, self._probes, self._published, self._config
        )
        if metrics.get("sync/proven") == 0.0 and version == 1:
            self._reports.note(
                "the first step moved the probes too little to tell stale weights by them "
                f"({metrics['sync/probe_power']:.1e} nats); sync/proven says which later steps did"
            )
        return metrics

    async def _evaluate(self, step: int) -> None:
        if not self._evaluator.due(step):
            return
        metrics = await self._evaluator.evaluate(step)
        shown = ", ".join(
            f"{name.removeprefix('eval/')} {metrics[name]:.3f}" for name in metrics if "@" in name
        )
        self._reports.note(f"evaluation after step {step}: {shown}")

    def _watch_rewards(self, metrics: Mapping[str, float], step: int) -> None:
        """Say which scorers failed; a run that gets no reward at all learns nothing and is stopped."""
        missing = metrics["reward/null_share"]
        self._unrewarded_in_a_row = self._unrewarded_in_a_row + 1 if missing == 1.0 else 0
        if not missing:
            return
        failed = ", ".join(
            f"{name.removeprefix('failed/')} {count:.0f}"
            for name, count in metrics.items()
            if name.startswith("failed/")
        )
        told = f"step {step}: {missing:.0%} of completions have no reward ({failed}; see the scorers' logs)"
        self._reports.note(told)
        if self._unrewarded_in_a_row >= _MAX_UNREWARDED_STEPS:
            raise NoRewardError(f"{told}, {self._unrewarded_in_a_row} steps in a row")

    def _guard(self, applied: Sequence[bool], step: int) -> None:
        """Count the updates in a row that were skipped for a loss or gradient that is not finite."""
        for each in applied:
            self._nonfinite_in_a_row = 0 if each else self._nonfinite_in_a_row + 1
        skipped = len(applied) - sum(applied)
        if skipped:
            self._reports.note(f"step {step}: {skipped} update(s) skipped, loss or gradient was not finite")
        if self._nonfinite_in_a_row >= self._config.learner.max_nonfinite_updates:
            raise NonFiniteError(
                f"{self._nonfinite_in_a_row} updates in a row had a loss or gradient that is not finite "
                f"(learner.max_nonfinite_updates = {self._config.learner.max_nonfinite_updates}); "
                f"the rows of step {step} are in its rollouts folder"
            )


def _phase_times(watch: Stopwatch) -> dict[str, float]:
    phases = {name: value for name, value in watch.phases.items() if name != "time/rollout_s"}
    return phases | {"time/step_s": watch.total()}
