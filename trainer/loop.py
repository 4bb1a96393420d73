"""The loop of a run: the order of its phases, and what each one waits for. No maths, no tensors, no Ray.

    phase        waits for                                     who unblocks it

    generating   the step's groups, scored, in the buffer      engines and scorers, called by the producer's
       |                                                       tasks; the producer pauses and resumes engines
    learning     the rows of the step (take)                   the buffer; it holds them until the commit
       |         logprobs and entropies (score)                the learner's ranks
       |         the updates, after the advantages (update)    the learner's ranks
    publishing   every engine to load the new weights, and     the weight transport, then the engines' probes;
       |         the check of their probe logprobs             paused engines sample again
    committing   rows and metrics on disk                      the buffer
       |
    evaluation   held-out groups, if due                       engines and scorers
    checkpoint   weights and optimizer on disk, if due         the learner's ranks
    idle         nothing: the next step begins

With `rollout.max_lag` 0 a step's groups are submitted when it begins, so engines and learner take turns.
With more, groups of up to `max_lag` later steps are in flight meanwhile, and `cluster.schedule` says whether
the engines pause while the learner works. A run that is asked to stop cancels a step that still waits for
rollouts, and finishes a step whose rows are taken. If the learner dies, it restarts from the newest
checkpoint, and the groups of later steps are trained on again. `cluster.attempt` passes the roles in; tests
use fakes.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from configs.bound import BoundRun
from configs.origins import REPLAY
from trainer.checkpoint import Checkpoints
from trainer.collate import align, collate, learner_columns, with_advantages
from trainer.data.demonstrations import SHARE, draw, no_demonstrations
from trainer.data.prompts import TokenPrompt
from trainer.evaluate import Evaluator
from trainer.reports import Reports
from trainer.roles import Buffer, Generator, Learner, LearnerLostError, WeightTransport
from trainer.rollout.producer import Producer
from trainer.rollout.replay import choose
from trainer.rollout.rollouter import ScorerSet
from trainer.rollout.scorer_calls import call_metrics
from trainer.run_state import RunState, training_settings
from trainer.scorer_watch import ScorerReports
from trainer.step_records import Batch, Learnable, Probe
from trainer.step_report import StepReport
from trainer.weights.probes import make_probes
from trainer.weights.weight_sync import Published, check_mismatch, publish

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """The roles of a run, bound to the actors that implement them."""

    generator: Generator
    scorers: ScorerSet
    learner: Learner
    transport: WeightTransport
    buffer: Buffer


class _StoppedError(Exception):
    """The run was asked to stop."""


class Run:
    """One run: calls the roles in order. A `RunState` has the state that it keeps from step to step.

    It starts, and restarts after the learner died, from the newest valid checkpoint. The groups of later
    steps return to the buffer and are trained on without being generated again. `generates` is false for a
    run on the rollouts of another run, which may be of any age and other weights. `demonstrations` are all
    rows of origin sft that steps draw from.
    """

    def __init__(
        self,
        run: BoundRun,
        roles: Roles,
        producer: Producer,
        evaluator: Evaluator,
        checkpoints: Checkpoints,
        reports: Reports,
        generates: bool = True,
        demonstrations: pa.RecordBatch | None = None,
    ) -> None:
        config = run.config
        self._run, self._config, self._roles, self._producer = run, config, roles, producer
        self._evaluator, self._checkpoints, self._reports = evaluator, checkpoints, reports
        self._generates = generates
        self._demonstrations = demonstrations if demonstrations is not None else no_demonstrations()
        self._state = RunState(run, reports)
        self._scorers = ScorerReports(roles.scorers.scorers, reports.event)
        self._takes_turns = config.rollout.max_lag > 0 and config.cluster.schedule == "take_turns"
        self._probes: tuple[Probe, ...] | None = None
        self._published: Published | None = None
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ask the run to end: cancels a step that waits for rollouts, finishes one that already learns."""
        self._stopping.set()

    async def train(self, prompts: Sequence[TokenPrompt], export_to: str = "") -> bool:
        """Run all steps that are not done yet, with evaluations and checkpoints; False if it was stopped.

        `export_to` is the folder for the final model, "" for none.

        Raises:
            WeightSyncError: engines and learner hold different weights.
            NoRewardError: several steps in a row had no reward.
            ScorerStoppedError: a scorer fails too often, or says itself that the run must stop.
            NonFiniteError: too many updates in a row were not finite.
            TimeoutError: a group or an evaluation took too long.
        """
        try:
            return await self._train(prompts, export_to)
        finally:
            # Groups in flight must not call actors that are being ended, or that serve another run.
            await self._producer.close()

    async def _train(self, prompts: Sequence[TokenPrompt], export_to: str) -> bool:
        while True:
            try:
                if self._probes is None:
                    await self._unless_stopped(self._make_probes(prompts))
                step = await self._unless_stopped(self._restore())
                await self._scorers.look()
                self._scorers.check()
                finished = await self._steps(step)
                if finished and export_to:
                    await self._roles.learner.export(export_to)
                return finished
            except LearnerLostError:
                await self._roles.learner.restart()
            except _StoppedError:
                return False

    async def _make_probes(self, prompts: Sequence[TokenPrompt]) -> None:
        wanted = prompts if self._generates else ()
        self._probes = await make_probes(self._config, wanted, self._roles.generator)

    async def _restore(self) -> int:
        """Publish the initial weights, then those of the newest checkpoint; returns the finished steps."""
        await self._producer.close()
        self._published = None
        # Version 0 first: engine and learner hold the same files, which measures the noise of the probes.
        await self._publish(0)
        manifest = await self._checkpoints.newest()
        step = 0
        if manifest is not None:
            step = manifest.step
            await self._roles.learner.load(str(self._checkpoints.folder(step)))
        self._state.restore(manifest.state if manifest is not None else {})
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
        """Run the steps after `step` finished ones; False if the run was stopped, after a last checkpoint."""
        try:
            await self._unless_stopped(self._evaluate(step))
            while step < self._config.num_steps:
                report = await self._step(step)
                step += 1
                self._checkpoints.log(step, report.metrics)
                self._reports.step(report.metrics | {"step": float(step)})
                self._state.rewards.observe(report.metrics, step)
                self._state.updates.observe(report.applied, step)
                self._scorers.check()
                await self._unless_stopped(self._evaluate(step))
                if self._checkpoints.due(step):
                    await self._checkpoint(step)
                self._reports.phase(step, "idle")
        except _StoppedError:
            if self._checkpoints.last < step:
                await self._checkpoint(step)
            return False
        self._state.rewards.finish(step)
        await self._scorers.finish()
        return True

    async def _unless_stopped(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of `work`; raises _StoppedError as soon as the run is asked to stop."""
        if self._stopping.is_set():
            work.close()  # a coroutine that is never awaited would give a warning
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

    async def _step(self, step: int) -> StepReport:
        """Run one step, counted from 0; it is committed and reported as `step` + 1."""
        number, report, settings = step + 1, StepReport(), self._state.settings()
        self._reports.phase(number, "generating")
        self._producer.top_up(step, settings)
        report.lap("rollout", await self._unless_stopped(self._producer.settle(step)))
        if self._takes_turns:
            await self._producer.pause()
        self._reports.phase(number, "learning")
        batch = collate(await self._take(step, settings), self._config, self._run.joins_refined)
        report.lap("take")
        columns, learnable = await self._learn(step, batch, settings, report)
        self._state.observe(report.metrics, number)
        report.metrics |= await self._reset_reference(number, report.metrics)
        report.metrics |= await self._scorers.take()
        self._reports.phase(number, "publishing")
        report.metrics |= await self._publish(number)
        if number == 1:
            self._note_unproven(report.metrics)
        report.lap("publish")
        report.metrics |= call_metrics(self._roles.scorers.calls)
        report.add_times()
        self._reports.phase(number, "committing")
        # Times are added before the commit, which stores them, and again after it, for the terminal.
        rows = learner_columns(batch, columns, learnable)
        await self._roles.buffer.commit(number, rows, report.summary(version=step))
        # After the commit: if it fails, the step is repeated, and its rows must be counted once.
        self._state.history.add(batch.index)
        report.lap("commit")
        report.add_times()
        return report

    async def _learn(
        self, step: int, batch: Batch, settings: Mapping[str, float], report: StepReport
    ) -> tuple[pa.Table, Learnable]:
        """Score, compute the credit, update. Returns the learner's columns in row order, and the credit."""
        config, learner = self._config, self._roles.learner
        report.learning_begins(self._producer.generating_s())
        columns = align(batch.index, await learner.compute_logprobs(batch))
        report.lap("learn_score")
        learnable = with_advantages(
            batch, columns, self._run, step, training_settings(settings), self._state.history
        )
        report.add_rows(batch, columns, learnable, step, self._run.right_at)
        report.metrics |= self._state.held_out.observe(batch, step + 1)
        report.add_sampling(batch, config.rollout, self._reports, step + 1)
        if self._generates:
            # Not for saved rollouts, which other weights may have sampled.
            check_mismatch(report.metrics["mismatch/mean_abs_behavior_vs_proximal"], config)
        report.lap("advantages")
        updates = await learner.update(batch, learnable)
        report.lap("learn_update")
        if config.rollout.max_lag and not self._takes_turns:
            report.add_overlap(self._producer.generating_s())
        report.add_updates(updates, learnable, settings)
        return columns, learnable

    async def _take(self, step: int, settings: Mapping[str, float]) -> pa.Table:
        """The step's rows; groups missing in the buffer (damaged on disk, or too old) are sampled again."""
        config, buffer = self._config, self._roles.buffer
        # Saved rollouts may be of any age.
        oldest = step - config.rollout.max_lag if self._generates else 0
        demonstrations = draw(self._demonstrations, config, step, settings.get(SHARE, config.sft.share))
        picks = choose(config, step)
        while (index := await buffer.take(self._producer.num_groups, oldest, picks, demonstrations)) is None:
            waiting = await buffer.waiting()
            again = self._producer.submit_again(step, waiting)
            self._reports.event("groups_missing", step=step + 1, groups=len(again))
            if self._takes_turns:  # the engines are paused, and must sample the missing groups
                await self._producer.resume()
            await self._unless_stopped(self._producer.settle(step))
            if self._takes_turns:
                await self._producer.pause()
        replayed = index.filter(pc.equal(index.column("origin"), REPLAY)).column("submission_index")
        if (missing := len(picks) - pc.count_distinct(replayed).as_py()) > 0:
            self._reports.event("replay_left_out", step=step + 1, groups=missing)
        return index

    async def _reset_reference(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Make the policy after `step` the KL reference, if a reset is due; returns the metric of resets."""
        reference = self._state.reference
        if not reference.is_used:
            return {}
        if reference.observe(metrics):
            await self._roles.learner.reset_reference(self._config.reference.reset_optimizer)
            self._reports.note(f"step {step}: the reference of the KL anchor is now this step's policy")
        return {"reference/resets": float(reference.num_resets)}

    async def _publish(self, version: int) -> dict[str, float]:
        """Publish and verify the learner's weights, then let the engines sample; returns sync/* metrics."""
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
        return metrics

    def _note_unproven(self, metrics: Mapping[str, float]) -> None:
        """Note that the first step could not show that new weights arrived. Without rewards it moved none."""
        if metrics.get("sync/proven") == 0.0 and metrics.get("reward/null_share") != 1.0:
            self._reports.note(
                "the first step moved the probes too little to detect stale weights "
                f"({metrics['sync/probe_power']:.1e} nats); sync/proven says which later steps did"
            )

    async def _evaluate(self, step: int) -> None:
        if not self._evaluator.due(step):
            return
        metrics = await self._evaluator.evaluate(step)
        results = ", ".join(
            f"{name.removeprefix('eval/')} {metrics[name]:.3f}" for name in metrics if "@" in name
        )
        missing = metrics.get("eval/null_share", 0.0)
        warning = f"; {missing:.0%} of its completions have no reward" if missing else ""
        self._reports.note(f"evaluation after step {step}: {results}{warning}")

    async def _checkpoint(self, step: int) -> None:
        """Write a checkpoint of the state after `step`, and delete old ones."""
        self._reports.phase(step, "checkpointing")
        folder = self._checkpoints.stage(step)
        try:
            sums = await self._roles.learner.save(str(folder))
        except OSError:  # if the disk is full, the partial checkpoint must not keep it full
            shutil.rmtree(folder, ignore_errors=True)
            raise
        await self._checkpoints.finish(step, folder, sums, self._state.saved(step))
