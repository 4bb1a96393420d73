"""One attempt at a run: claim its folder, do the job with the actors of a pool, record why it failed.

Called by `cluster.train` for one run, and by `cluster.series` for several runs on the same actors.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from cluster.actor_pool import ActorPool, SamplingActors, TrainingActors
from cluster.job import ResolvedRun
from cluster.model_files import used_models
from cluster.run_directory import (
    Claim,
    claim_run,
    demonstrations_digest,
    models_digest,
    reading,
    scorer_files_digest,
    source_digest,
    write_config,
)
from cluster.scorer_replicas import for_evaluation
from cluster.setting_notes import scorer_notes
from cluster.spawn import ActorCallError
from configs.bound import BoundRun
from configs.schema import RunConfig
from rollouts.events import append_event, describe_event
from rollouts.files import write_bytes_atomic
from rollouts.space import is_disk_full
from trainer.checkpoint import Checkpoints
from trainer.collect import collect
from trainer.data.prompts import PromptOrder
from trainer.evaluate import Evaluator
from trainer.loop import Run
from trainer.reports import Reports
from trainer.reward_watch import NoRewardError
from trainer.rollout.producer import Producer
from trainer.scorer_watch import ScorerStoppedError
from trainer.update_watch import NonFiniteError
from trainer.weights.weight_sync import WeightSyncError

_SELF_EXPLAINED = (
    WeightSyncError,
    NonFiniteError,
    NoRewardError,
    ScorerStoppedError,
    ActorCallError,
    TimeoutError,
    ValueError,
)
"""Errors whose message alone explains why the run stopped."""


class RunError(RuntimeError):
    """A run that had started was stopped by an error; the message has the reason and the run's folder."""


@contextmanager
def claimed(resolved: ResolvedRun) -> Iterator[Claim]:
    """Hold the lock on the run's folder during the block.

    Raises:
        ValueError: the folder cannot be claimed.
        RunError: the block raised an error. The reason is in the message and in the folder.
    """
    prompts = resolved.prompts
    digest = source_digest(prompts.train, Path(resolved.config.model.path))
    demonstrations = demonstrations_digest(prompts.demonstrations)
    files = scorer_files_digest(resolved.run)
    models = models_digest({name: Path(each.path) for name, each in used_models(resolved.run)})
    job, code = resolved.job.describe(), resolved.code
    claim = claim_run(resolved.given, digest, job, demonstrations, code, files, models)
    try:
        write_config(claim.run_dir, resolved.config)
        yield claim
    except Exception as error:
        with suppress(OSError):  # the reason must be reported even if the disk is full
            write_bytes_atomic(claim.log_dir / "driver.log", traceback.format_exc().encode())
            append_event(claim.run_dir, "stopped", reason=str(error))
        # The whole traceback is in driver.log; the terminal has one sentence.
        where = claim.log_dir.relative_to(claim.run_dir)
        raise RunError(f"{_reason_of(error)}\nrun folder: {claim.run_dir} (logs in {where})") from error
    finally:
        claim.lock.release()


def _reason_of(error: Exception) -> str:
    if isinstance(error, OSError) and is_disk_full(error):
        return f"the disk is full: {error}; finished steps are intact: free some space, then run it again"
    return str(error) if isinstance(error, _SELF_EXPLAINED) else f"{type(error).__name__}: {error}"


class Attempt:
    """One attempt at a job. The actors outlive it; the owner of the actor pool ends them."""

    def __init__(self, resolved: ResolvedRun, claim: Claim, actor_pool: ActorPool) -> None:
        self._resolved, self._claim, self._actor_pool = resolved, claim, actor_pool
        self._config, self._reporter, self._job = resolved.config, resolved.reporter, resolved.job
        self._run: Run | None = None
        self._furthest = 0.0

    def stop(self) -> bool:
        """Ask the run to stop; False if it has not begun, so that it can be cancelled at once."""
        if self._run is None:
            return False
        self._run.stop()
        return True

    async def work(self) -> bool:
        """Do the job; returns False if it was stopped before its end."""
        try:
            if self._job.learns:
                samples, report = self._job.rollouts_of is None, self._actor_event
                actors = await self._actor_pool.for_training(self._resolved, self._claim, report, samples)
                return await self._learn(actors)
            return await self._sample(
                await self._actor_pool.for_sampling(self._resolved, self._claim, self._actor_event)
            )
        finally:
            self._run = None
            await self._actor_pool.rest()

    async def _learn(self, actors: TrainingActors) -> bool:
        config, run_dir = self._config, self._claim.run_dir
        self._reporter.header(run_dir=run_dir, model=config.model.path, num_parameters=actors.num_parameters)
        if self._job.rollouts_of is not None:
            config = await self._adopt(actors, self._job.rollouts_of)
        self._record_notes()
        self._run = self._make_run(replace(self._resolved.run, config=config), actors)
        export = run_dir / "export" if config.checkpoint.export_last else None
        # An empty path means that no model is exported.
        finished = await self._run.train(self._resolved.prompts.train, str(export or ""))
        if finished:
            self._claim.note_finished(self._config.num_steps)
            self._reporter.note(f"final model: {export}" if export else "finished")
        return finished

    async def _adopt(self, actors: TrainingActors, source: Path) -> RunConfig:
        """Copy another run's groups into the buffer; returns the config with as many steps as they allow."""
        config = self._config
        with reading(source):
            num_groups = await actors.buffer.adopt(str(source.resolve()))
        num_steps = min(config.num_steps, num_groups // config.rollout.groups_per_step)
        if not num_steps:
            raise ValueError(
                f"{source}: must have at least the {config.rollout.groups_per_step} groups of one step "
                f"(rollout.groups_per_step), got {num_groups}"
            )
        self._reporter.note(f"training on {num_groups} groups of {source}, {num_steps} steps; no evaluation")
        return replace(config, num_steps=num_steps, eval=replace(config.eval, every=0))

    def _record_notes(self) -> None:
        """Record what scorers say of their options, such as that programs are not isolated."""
        for key, words in scorer_notes(self._resolved.run):
            self._record("setting_noted", setting=key, note=words)

    def _make_run(self, run: BoundRun, actors: TrainingActors) -> Run:
        config = run.config
        roles, reports, claim = actors.roles, self._reports(), self._claim
        order = PromptOrder(self._resolved.prompts.train, config.seed, config.data.shuffle)
        producer = Producer(
            run,
            order,
            roles.generator,
            roles.scorers,
            roles.buffer,
            reports.phase,
            self._resolved.prompts.encoders,
            reports.scorer_log,
            actors.models,
        )
        held_out = self._resolved.prompts.held_out
        evaluator = Evaluator(config, held_out, roles.generator, for_evaluation(roles.scorers), claim.run_dir)
        checkpoints = Checkpoints(claim.run_dir, config, claim.experiment_hash, claim.attempt, reports.event)
        generates = self._job.rollouts_of is None
        demonstrations = self._resolved.prompts.demonstrations
        return Run(run, roles, producer, evaluator, checkpoints, reports, generates, demonstrations)

    async def _sample(self, samplers: SamplingActors) -> bool:
        config, run_dir = self._config, self._claim.run_dir
        self._reporter.header(run_dir=run_dir, model=config.model.path)
        self._record_notes()
        order = PromptOrder(self._resolved.prompts.train, config.seed, config.data.shuffle)
        producer = Producer(
            self._resolved.run,
            order,
            samplers.generator,
            samplers.scorers,
            samplers.buffer,
            self._reporter.phase,
            self._resolved.prompts.encoders,
            self._actor_pool.scorer_log,
            samplers.models,
        )
        try:
            await collect(
                config,
                producer,
                samplers.buffer,
                self._claim.attempt,
                self._reports(),
                samplers.scorers,
            )
        finally:
            await producer.close()
        self._reporter.note(f"rollouts: {run_dir / 'journal'}")
        return True

    def _reports(self) -> Reports:
        return Reports(
            step=self._step,
            note=self._reporter.note,
            event=self._event,
            record=self._record,
            phase=self._reporter.phase,
            scorer_log=self._actor_pool.scorer_log,
        )

    def _step(self, metrics: Mapping[str, float]) -> None:
        # Progress resets the count of failures. A step repeated after a loss must not, or an actor that
        # always dies at the same step would be restarted for ever.
        if metrics["step"] > self._furthest:
            self._furthest = metrics["step"]
            self._actor_pool.progress()
        self._reporter.step(metrics)

    def _actor_event(self, kind: str, actor: str, **fields: str | float) -> None:
        self._event(kind, actor=actor, **fields)

    def _record(self, kind: str, **fields: str | float) -> None:
        append_event(self._claim.run_dir, kind, attempt=self._claim.attempt, **fields)

    def _event(self, kind: str, **fields: str | float) -> None:
        self._record(kind, **fields)
        self._reporter.note(describe_event(kind, fields))
