"""The loop of a run: take, score, advantages, update, publish, commit. No maths, no tensors, no Ray.

`cluster.attempt` passes the roles in; tests pass fakes.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from configs.bound import BoundRun
from configs.errors import nearest
from configs.origins import POLICY, REPLAY
from configs.schema import RunConfig
from rollouts.files import Json
from rollouts.records import Sampling
from trainer.checkpoint import Checkpoints
from trainer.collate import align, collate, learner_columns, with_advantages
from trainer.controllers.reference import Reference
from trainer.controllers.setting_controllers import make_controllers, watched_metrics
from trainer.credit.history import AnswerHistory
from trainer.data.demonstrations import SHARE, draw, no_demonstrations
from trainer.data.prompts import TokenPrompt
from trainer.evaluate import Evaluator
from trainer.metrics import credit_metrics, step_metrics, update_metrics
from trainer.reward_watch import RewardWatch
from trainer.roles import Buffer, Generator, Learner, LearnerLostError, WeightTransport
from trainer.rollout.dynamic_sampling import max_rounds, sampling_metrics, submissions_per_step
from trainer.rollout.producer import SAMPLING_SETTINGS, Producer
from trainer.rollout.replay import choose
from trainer.rollout.rollouter import ScorerSet, make_submission
from trainer.seeds import derive_seed
from trainer.step_records import Batch, Probe
from trainer.weights.weight_sync import Published, check_mismatch, publish

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Everything a run is made of, bound to wherever it runs."""

    generator: Generator
    scorers: ScorerSet
    learner: Learner
    transport: WeightTransport
    buffer: Buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """Where a run tells what it does: a line per step, and notes."""

    step: Callable[[Mapping[str, float]], None]
    note: Callable[[str], None]
    event: Callable[..., None] = lambda kind, **fields: None
    """Something went wrong, was mended or resumed: a kind and what there is to say."""
    record: Callable[..., None] = lambda kind, **fields: None
    """What belongs in the run's record but is not to be told: as `event`."""
    scorer_log: Callable[[str], str] = lambda name: f"the log of scorer {name}"
    """The log file of a scorer, by its name."""
    phase: Callable[[int, str], None] = lambda step, name: None
    """The step (its committed number) and what the run does now: generating, scoring, learning, publishing,
    committing, checkpointing, idle."""


class NonFiniteError(RuntimeError):
    """Too many updates in a row had a loss or gradient that is not finite."""


class _StoppedError(Exception):
    """The run was asked to stop."""


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


class Run:
    """The state a run carries from step to step.

    `restore` is how it begins and how it goes on after its learner was lost: the newest whole checkpoint, and
    the groups of later steps given back to the buffer, which are then trained on without being generated.
    `on_policy` is false for a run on another's rollouts: they may be of any age and of other weights.
    `demonstrations` are all rows of origin sft that steps draw from.
    """

    def __init__(
        self,
        bound: BoundRun,
        roles: Roles,
        producer: Producer,
        evaluator: Evaluator,
        checkpoints: Checkpoints,
        reports: Reports,
        on_policy: bool = True,
        demonstrations: pa.RecordBatch | None = None,
    ) -> None:
        config = bound.config
        self._bound, self._config = bound, config
        self._roles, self._producer = roles, producer
        self._evaluator, self._checkpoints, self._reports = evaluator, checkpoints, reports
        self._on_policy = on_policy
        self._demonstrations = demonstrations if demonstrations is not None else no_demonstrations()
        self._controllers = make_controllers(bound)
        self._reference = Reference(config.reference)
        self._history = AnswerHistory()
        self._watched = watched_metrics(bound)
        self._takes_turns = config.rollout.max_lag > 0 and config.cluster.schedule == "take_turns"
        self._probes: tuple[Probe, ...] | None = None
        self._published: Published | None = None
        self._nonfinite_in_a_row = 0
        self._rewards = RewardWatch(config.num_steps, reports.note, reports.scorer_log)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ask the run to end: what waits for rollouts is dropped, a step that already learns is finished."""
        self._stopping.set()

    async def train(self, prompts: Sequence[TokenPrompt], export_to: str = "") -> bool:
        """Run every step that is missing, with its evaluations and checkpoints; False if it was stopped.

        With `export_to` the final model is then written there.
        """
        while True:
            try:
                if self._probes is None:
                    self._probes = await self._unless_stopped(self._make_probes(prompts))
                step = await self._unless_stopped(self._restore())
                finished = await self._steps(step)
                if finished and export_to:
                    await self._roles.learner.export(export_to)
                return finished
            except LearnerLostError:
                await self._roles.learner.restart()
            except _StoppedError:
                return False

    async def _make_probes(self, prompts: Sequence[TokenPrompt]) -> tuple[Probe, ...]:
        return await make_probes(self._config, prompts, self._roles.generator) if self._on_policy else ()

    async def _restore(self) -> int:
        """Publish the starting weights, then those of the newest checkpoint; the number of finished steps."""
        await self._producer.close()
        self._published = None
        await self._publish(0)
        manifest = await self._checkpoints.newest()
        step = 0
        if manifest is not None:
            step = manifest.step
            await self._roles.learner.load(str(self._checkpoints.folder(step)))
        self._set_state(manifest.state if manifest is not None else {})
        restored = await self._roles.buffer.rewind(step, self._checkpoints.attempt)
        for message in restored.damaged:
            self._reports.event("rollouts_damaged", reason=message)
        self._checkpoints.rewound(step)
        await self._producer.restart(step, restored.waiting)
        if step:
            await self._publish(step)
        if step or restored.waiting:
            again = len(restored.abandoned_steps)
            self._reports.event(
                "resumed", step=step, groups_waiting=len(restored.waiting), steps_to_train_again=again
            )
        return step

    async def _steps(self, step: int) -> bool:
        try:
            await self._unless_stopped(self._evaluate(step))
            while step < self._config.num_steps:
                metrics, applied = await self._step(step)
                step += 1
                self._checkpoints.log(step, metrics)
                self._reports.step(metrics | {"step": float(step)})
                self._rewards.observe(metrics, step)
                self._guard(applied, step)
                await self._unless_stopped(self._evaluate(step))
                if self._checkpoints.due(step):
                    await self._checkpoint(step)
                self._reports.phase(step, "idle")
        except _StoppedError:
            if self._checkpoints.last < step:
                await self._checkpoint(step)
            return False
        self._rewards.finish(step)
        return True

    async def _unless_stopped(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What `work` returns, or _StoppedError as soon as the run is asked to stop."""
        if self._stopping.is_set():
            work.close()
            raise _StoppedError
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise _StoppedError
            return task.result()
        finally:
            for each in (task, stop):
                each.cancel()

    async def _step(self, step: int) -> tuple[dict[str, float], list[bool]]:
        """One step (from 0): its metrics, and which of its updates were applied."""
        config, watch = self._config, Stopwatch()
        self._reports.phase(step + 1, "generating")
        settings = self._settings()
        self._producer.top_up(step, settings)
        watch.phases |= await self._unless_stopped(self._producer.settle(step))
        watch.lap("rollout")
        if self._takes_turns:
            await self._producer.pause()
        self._reports.phase(step + 1, "learning")
        oldest = step - config.rollout.max_lag if self._on_policy else 0
        shown = draw(self._demonstrations, config, step, settings.get(SHARE, config.sft.share))
        index = await self._take(step, oldest, shown)
        batch = collate(index, config)
        watch.lap("take")
        began, generated_s = time.perf_counter(), self._producer.generating_s()
        columns = align(index, await self._roles.learner.score(batch))
        watch.lap("learn_score")
        of_sampling = (SHARE, *SAMPLING_SETTINGS)
        of_objective = {key: value for key, value in settings.items() if key not in of_sampling}
        learnable = with_advantages(batch, columns, self._bound, step, of_objective, self._history)
        metrics = step_metrics(batch, columns, step) | credit_metrics(batch, learnable)
        metrics |= self._sampled(batch, step)
        if self._on_policy:
            check_mismatch(metrics["mismatch/mean_abs_behavior_vs_proximal"], config)
        watch.lap("advantages")
        updates = await self._roles.learner.update(batch, learnable)
        watch.lap("learn_update")
        if config.rollout.max_lag and not self._takes_turns:
            generated_s = self._producer.generating_s() - generated_s
            metrics["overlap/generating_share"] = generated_s / (time.perf_counter() - began)
        metrics |= update_metrics(updates) | {"learning_rate": learnable.learning_rates[-1]}
        metrics |= {f"control/{key}": value for key, value in settings.items()}
        self._tell_unknown_metrics(metrics, step + 1)
        self._observe(metrics, step + 1)
        metrics |= await self._reset_reference(step + 1, metrics)
        self._reports.phase(step + 1, "publishing")
        metrics |= await self._publish(step + 1)
        watch.lap("publish")
        num_tokens = float(index.column("num_loss_tokens").to_numpy()[batch.rows_of(POLICY)].sum())
        metrics["throughput/tokens_per_s"] = num_tokens / watch.total()
        metrics |= _phase_times(watch)
        self._reports.phase(step + 1, "committing")
        summary: dict[str, Json] = {"metrics": metrics, "policy_version": step}
        await self._roles.buffer.commit(step + 1, learner_columns(batch, columns, learnable), summary)
        self._history.add(index)
        watch.lap("commit")
        metrics |= _phase_times(watch) | {"throughput/tokens_per_s": num_tokens / watch.total()}
        return metrics, [update["grad/applied"] > 0 for update in updates]

    async def _take(self, step: int, oldest: int, shown: pa.RecordBatch) -> pa.Table:
        """The step's rows; groups that the buffer lacks (damaged on disk, or too old) are sampled again."""
        picks, buffer = choose(self._config, step), self._roles.buffer
        while (index := await buffer.take(self._producer.num_groups, oldest, picks, shown)) is None:
            waiting = await buffer.waiting()
            again = self._producer.submit_again(step, waiting)
            self._reports.event("groups_missing", step=step + 1, groups=len(again))
            if self._takes_turns:
                await self._producer.resume()
            await self._unless_stopped(self._producer.settle(step))
            if self._takes_turns:
                await self._producer.pause()
        found = index.filter(pc.equal(index.column("origin"), REPLAY)).column("submission_index")
        if (missing := len(picks) - pc.count_distinct(found).as_py()) > 0:
            self._reports.event("replay_left_out", step=step + 1, groups=missing)
        return index

    def _sampled(self, batch: Batch, step: int) -> dict[str, float]:
        """sampling/*; a step that all its rounds left short of groups that teach is told."""
        rollout = self._config.rollout
        metrics = sampling_metrics(batch.index.take(batch.rows_of(POLICY)), rollout)
        kept = metrics.get("sampling/kept_groups", 0.0)
        if max_rounds(rollout) > 1 and kept < rollout.groups_per_step:
            rounds, wanted = metrics["sampling/rounds"], rollout.groups_per_step
            told = {"kept": int(kept), "wanted": wanted, "rounds": int(rounds)}
            self._reports.event("groups_short", step=step + 1, **told)
        return metrics

    def _tell_unknown_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Say once which metric a controller waits for in vain: its name may be wrong."""
        for key, name in self._watched.items():
            if name not in metrics:
                close = nearest(name, metrics)
                told = f"step {step} has no metric {name!r}, which {key} names: it moves nothing"
                self._reports.note(f"{told} (the nearest is {close!r})" if close else told)
        self._watched = {}

    async def _reset_reference(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Make the policy after `step` the reference of the KL anchor if it is time."""
        if not self._reference.is_used:
            return {}
        if self._reference.observe(metrics):
            await self._roles.learner.reset_reference(self._config.reference.reset_optimizer)
            self._reports.note(f"step {step}: the reference of the KL anchor is now this step's policy")
        return {"reference/resets": float(self._reference.num_resets)}

    def _observe(self, metrics: Mapping[str, float], step: int) -> None:
        """Show the controllers what `step` has brought, and record what they move, and why."""
        for name, controller in self._controllers.items():
            before = dict(controller.settings())
            controller.observe(metrics)
            reasons = controller.reasons()
            for key, after in controller.settings().items():
                if after != before.get(key):
                    moved = {"setting": key, "before": before.get(key), "after": after}
                    reason = reasons.get(key, "")
                    self._reports.record("setting_moved", step=step, controller=name, **moved, reason=reason)

    def _settings(self) -> dict[str, float]:
        """What the controllers want of the step to come."""
        controllers = self._controllers.values()
        return {key: value for each in controllers for key, value in each.settings().items()}

    async def _publish(self, version: int) -> dict[str, float]:
        assert self._probes is not None, "probes are made before anything is published"
        roles = self._roles
        self._published, metrics = await publish(
            version,
            roles.transport,
            roles.learner,
            roles.generator,
            self._probes,
            self._published,
            self._config,
        )
        await self._producer.resume()
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

    async def _checkpoint(self, step: int) -> None:
        """Write a checkpoint of the state after `step`, then drop what it makes superfluous."""
        self._reports.phase(step, "checkpointing")
        folder = self._checkpoints.stage(step)
        try:
            sums = await self._roles.learner.save(str(folder))
        except OSError:  # a full disk needs the room
            shutil.rmtree(folder, ignore_errors=True)
            raise
        await self._checkpoints.finish(step, folder, sums, self._state(step))

    def _state(self, step: int) -> dict[str, Json]:
        """What a checkpoint keeps beside the learner's state. All sampling seeds derive from these."""
        return {
            "next_submission": step * submissions_per_step(self._config),
            "journal_from": step * submissions_per_step(self._config),
            "seed": self._config.seed,
            "nonfinite_in_a_row": self._nonfinite_in_a_row,
            "unrewarded_in_a_row": self._rewards.in_a_row,
            "controllers": {name: each.state() for name, each in self._controllers.items()},
            "reference": self._reference.state(),
            "answers": self._history.state(),
        }

    def _set_state(self, state: Mapping[str, Json]) -> None:
        self._nonfinite_in_a_row = int(state.get("nonfinite_in_a_row", 0))  # type: ignore[arg-type]
        self._rewards.in_a_row = int(state.get("unrewarded_in_a_row", 0))  # type: ignore[arg-type]
        known: Mapping[str, Mapping[str, Json]] = state.get("controllers", {})  # type: ignore[assignment]
        for name, controller in self._controllers.items():
            controller.restore(known.get(name, {}))
        self._reference.restore(state.get("reference", {}))  # type: ignore[arg-type]
        self._history.restore(state.get("answers", {}))  # type: ignore[arg-type]

    def _guard(self, applied: Sequence[bool], step: int) -> None:
        """Count the updates in a row that were skipped for a loss or gradient that is not finite."""
        for each in applied:
            self._nonfinite_in_a_row = 0 if each else self._nonfinite_in_a_row + 1
        skipped = len(applied) - sum(applied)
        if skipped:
            self._reports.event("updates_skipped", step=step, updates=skipped)
        if self._nonfinite_in_a_row >= self._config.learner.max_nonfinite_updates:
            raise NonFiniteError(
                f"{self._nonfinite_in_a_row} updates in a row had a loss or gradient that is not finite "
                f"(learner.max_nonfinite_updates = {self._config.learner.max_nonfinite_updates}); "
                f"the rows of step {step} are in its rollouts folder"
            )


def _phase_times(watch: Stopwatch) -> dict[str, float]:
    phases = {name: value for name, value in watch.phases.items() if name != "time/rollout_s"}
    return phases | {"time/step_s": watch.total()}
