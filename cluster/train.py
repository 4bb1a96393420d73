"""A training run from config to finished run directory: prompts, claim, placement, actors, the loop, export.

Called by the command line, which passes in where to tell about it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import ray
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from ray.util.placement_group import PlacementGroup, remove_placement_group

from cluster.actors import Crew, Site, spawn_buffer, spawn_engines, spawn_run, spawn_scorers
from cluster.bind import Engines
from cluster.claim import (
    Claim,
    check_claimable,
    check_space,
    claim_run,
    is_finished,
    reading,
    source_digest,
    write_config,
)
from cluster.connect import connect, pick_device
from cluster.placement import Placement, check, plan, reserve
from cluster.spawn import ActorCallError, wait_ready
from cluster.supervise import Fleet, Supervised
from configs.entries import scorer_options
from configs.load import dump_yaml
from configs.schema import RunConfig
from rewards.combine import check_tags
from rollouts.events import append_event, describe_event
from rollouts.files import write_bytes_atomic
from rollouts.space import is_disk_full
from trainer.checkpoint import Checkpoints
from trainer.collect import collect
from trainer.demonstrations import demonstration_rows
from trainer.evaluate import Evaluator
from trainer.loop import NonFiniteError, NoRewardError, Reports, Run
from trainer.prompts import PromptOrder, TokenPrompt, load_dataset, load_tokenizer, tokenize_prompts
from trainer.proof import WeightSyncError
from trainer.rollout import Producer

_TOLD = (WeightSyncError, NonFiniteError, NoRewardError, ActorCallError, TimeoutError, ValueError)
"""Reasons to stop that are told by their message alone."""
_MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_CLOSE_LIMIT_S = 5.0
_STOP_LIMIT_S = 300.0
"""For finishing a step that learns already, and for the checkpoint after it."""


class Reporter(Protocol):
    """Where a run tells what it does (`viewer.terminal.StepReporter`)."""

    def header(self, *, run_dir: Path, model: str, num_parameters: int = 0) -> None: ...

    def step(self, metrics: Mapping[str, float]) -> None: ...

    def note(self, text: str) -> None: ...

    def phase(self, step: int, name: str) -> None: ...


class RunError(RuntimeError):
    """A run that had started was stopped; the message says why and where its folder is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended: exit code 0, 130 (interrupted) or 143 (terminated), and its folder."""

    exit_code: int
    run_dir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompts:
    train: Sequence[TokenPrompt]
    held_out: Sequence[TokenPrompt]
    demonstrations: pa.RecordBatch


def local_model(config: RunConfig) -> RunConfig:
    """The config with its model as an absolute folder: here, beside the packages, or a hub's local snapshot.

    Raises:
        ValueError: there is no such folder and no such model on the hub.
    """
    packages = Path(__file__).resolve().parent.parent
    folders = [root / config.model.path for root in (Path.cwd(), packages)]
    found = next((folder.resolve() for folder in folders if (folder / "config.json").exists()), None)
    if found is None and config.model.path.startswith(("/", ".", "~")):
        raise ValueError(
            f"model.path must be a Hugging Face folder or hub name, got {config.model.path!r}: "
            "there is no config.json in that folder"
        )
    if found is None:
        try:
            found = Path(snapshot_download(config.model.path, allow_patterns=_MODEL_FILES))
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"model.path must be a Hugging Face folder or hub name, got {config.model.path!r}: {reason}"
            ) from error
    return replace(config, model=replace(config.model, path=str(found)))


def load_prompts(config: RunConfig, reporter: Reporter) -> _Prompts:
    """Tokenized training and evaluation prompts, and demonstrations; what is too long is counted and said.

    Raises:
        ValueError: dataset, demonstrations, tokenizer or chat template are not usable.
    """
    tokenizer = load_tokenizer(config.model)
    limit = config.rollout.max_prompt_tokens
    found: dict[str, list[TokenPrompt]] = {}
    for name, entry in (("train", config.data.train), ("eval", config.data.eval)):
        if name == "eval" and config.eval.every == 0:
            found[name] = []
            continue
        found[name], too_long = tokenize_prompts(load_dataset(entry), tokenizer, limit)
        if too_long:
            reporter.note(f"data.{name}: {too_long} prompts are longer than {limit} tokens and were left out")
    demonstrations = demonstration_rows(config, tokenizer, reporter.note)
    return _Prompts(train=found["train"], held_out=found["eval"], demonstrations=demonstrations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be done: train; with `learns` false, only sample; with `rollouts_of`, only learn."""

    learns: bool = True
    rollouts_of: Path | None = None

    def describe(self) -> str:
        """The job in words that stay the same when it is gone on with."""
        if self.rollouts_of is not None:
            return f"train only, on the rollouts of {self.rollouts_of.resolve()}"
        return "train" if self.learns else "rollouts only"


def dry_run(config: RunConfig, reporter: Reporter) -> int:
    """Check everything that can be checked without starting anything but prints; returns the exit code."""
    given, config = config, local_model(config)
    check_claimable(given)
    check_space(config)
    prompts = load_prompts(config, reporter)
    device = "cuda" if config.cluster.device == "cuda" else "cpu"
    asked = ", ".join(
        f"{amount:g} {name}" for name, amount in plan(config, device).totals().items() if amount
    )
    sys.stdout.write(dump_yaml(config))
    reporter.note(f"{len(prompts.train)} training prompts; on {device} the run asks for {asked}")
    return 0


def train(config: RunConfig, reporter: Reporter, job: Job | None = None) -> Outcome:
    """Run a training to its end, or go on with one that was interrupted.

    Raises:
        ValueError: bad input, or a cluster too small (`PlacementError`); nothing was started.
        RunError: the run had started and was stopped; its folder stays, and the same call resumes it.
    """
    job = job or Job()
    given, config = config, local_model(config)
    if is_finished(given, job.describe()):
        run_dir = (Path(config.runs_dir) / config.name).resolve()
        reporter.note(f"{run_dir} has made its {config.num_steps} steps; a higher num_steps goes on with it")
        return Outcome(exit_code=0, run_dir=run_dir)
    check_claimable(given)
    check_space(config)
    if job.rollouts_of is not None:
        with reading(job.rollouts_of):
            pass
    check_tags({name: scorer_options(entry)[0] for name, entry in config.scorers.items()})
    prompts = load_prompts(config, reporter)
    if config.cluster.spawn == "local":
        placement = plan(config, "cuda" if config.cluster.device == "cuda" else "cpu")
        return asyncio.run(_train(given, config, prompts, placement, reporter, job))
    connect()
    try:
        placement = plan(config, pick_device(config.cluster.device))
        check(placement)
        return asyncio.run(_train(given, config, prompts, placement, reporter, job))
    finally:
        ray.shutdown()


async def _train(
    given: RunConfig,
    config: RunConfig,
    prompts: _Prompts,
    placement: Placement,
    reporter: Reporter,
    job: Job,
) -> Outcome:
    digest = source_digest(prompts.train, Path(config.model.path), prompts.demonstrations)
    claim = claim_run(given, digest, job.describe())
    try:
        write_config(claim.run_dir, config)
        site = _Site(config, prompts, placement, reporter, claim, job)
        code = await _interruptible(site, reporter)
    except Exception as error:
        with suppress(OSError):  # a full disk must not keep the reason from being told
            write_bytes_atomic(claim.log_dir / "driver.log", traceback.format_exc().encode())
            append_event(claim.run_dir, "stopped", reason=str(error))
        where = claim.log_dir.relative_to(claim.run_dir)
        raise RunError(f"{_told(error)}\nrun folder: {claim.run_dir} (logs in {where})") from error
    finally:
        claim.lock.release()
    return Outcome(exit_code=code, run_dir=claim.run_dir)


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and is_disk_full(error):
        return f"the disk is full: {error}; what was finished before is whole: make room and run it again"
    return str(error) if isinstance(error, _TOLD) else f"{type(error).__name__}: {error}"


class _Site:
    """One attempt at a job: reserves, starts, runs, and ends everything it started."""

    def __init__(
        self,
        config: RunConfig,
        prompts: _Prompts,
        placement: Placement,
        reporter: Reporter,
        claim: Claim,
        job: Job,
    ) -> None:
        self._config, self._prompts, self._placement = config, prompts, placement
        self._reporter, self._claim, self._job = reporter, claim, job
        self._run: Run | None = None
        self._furthest = 0.0
        self._fleet = Fleet(())
        self._scorers: Sequence[Supervised] = ()

    def stop(self) -> bool:
        """Ask the run to end soon; False if there is none to ask, and all may be dropped at once."""
        if self._run is None:
            return False
        self._run.stop()
        return True

    async def work(self) -> bool:
        """Do the job; False if it was asked to stop before its end."""
        group: PlacementGroup | None = None
        try:
            if self._config.cluster.spawn == "ray":
                group = await reserve(self._placement, self._config.cluster.ready_timeout_s)
            site = Site(
                config=self._config,
                placement=self._placement,
                group=group,
                log_dir=self._claim.log_dir,
                tell=self._tell,
            )
            self._reporter.note(f"starting actors; their logs are in {self._claim.log_dir}")
            return await (self._learn(site) if self._job.learns else self._sample(site))
        finally:
            await self._close_scorers()
            await self._fleet.close()
            if group is not None:
                remove_placement_group(group)

    async def _close_scorers(self) -> None:
        """Let scorers end what their code has started, before their processes are killed."""
        with suppress(Exception):
            async with asyncio.timeout(_CLOSE_LIMIT_S):
                await asyncio.gather(*(each.once("close") for each in self._scorers), return_exceptions=True)

    async def _learn(self, site: Site) -> bool:
        config = self._config
        crew = spawn_run(site, self._claim.run_dir, samples=self._job.rollouts_of is None)
        self._fleet, self._scorers = Fleet(crew.everyone), crew.scorers
        size = await crew.ready(config.cluster.ready_timeout_s)
        self._fleet.watch()
        self._reporter.header(run_dir=self._claim.run_dir, model=config.model.path, num_parameters=size)
        if self._job.rollouts_of is not None:
            config = await self._adopt(crew, self._job.rollouts_of)
        self._run = self._make_run(config, crew)
        export = self._claim.run_dir / "export" if config.checkpoint.export_last else None
        finished = await self._run.train(self._prompts.train, str(export or ""))
        if finished:
            self._claim.note_finished(self._config.num_steps)
            self._reporter.note(f"final model: {export}" if export else "finished")
        return finished

    async def _adopt(self, crew: Crew, source: Path) -> RunConfig:
        """Give the buffer another run's groups; the config with as many steps as they last."""
        config = self._config
        with reading(source):
            num_groups = await crew.buffer.adopt(str(source.resolve()))
        num_steps = min(config.num_steps, num_groups // config.rollout.groups_per_step)
        if not num_steps:
            raise ValueError(
                f"{source}: must have the {config.rollout.groups_per_step} groups of a step, got {num_groups}"
            )
        self._reporter.note(f"training on {num_groups} groups of {source}, {num_steps} steps; no evaluation")
        return replace(config, num_steps=num_steps, eval=replace(config.eval, every=0))

    def _make_run(self, config: RunConfig, crew: Crew) -> Run:
        roles, reports = crew.roles, self._reports()
        order = PromptOrder(self._prompts.train, config.seed, config.data.shuffle)
        producer = Producer(config, order, roles.generator, roles.judges, roles.buffer, reports.phase)
        evaluator = Evaluator(
            config, self._prompts.held_out, roles.generator, roles.judges, self._claim.run_dir
        )
        claim = self._claim
        checkpoints = Checkpoints(claim.run_dir, config, claim.experiment_hash, claim.attempt, reports.event)
        on_policy = self._job.rollouts_of is None
        shown = self._prompts.demonstrations
        return Run(config, roles, producer, evaluator, checkpoints, reports, on_policy, shown)

    async def _sample(self, site: Site) -> bool:
        config = self._config
        engines = spawn_engines(site)
        judges, scorers = spawn_scorers(site)
        buffer, keeper = spawn_buffer(site, self._claim.run_dir)
        everyone = (*engines, *scorers, keeper)
        self._fleet, self._scorers = Fleet(everyone), scorers
        await wait_ready(everyone, config.cluster.ready_timeout_s)
        self._fleet.watch()
        self._reporter.header(run_dir=self._claim.run_dir, model=config.model.path)
        order = PromptOrder(self._prompts.train, config.seed, config.data.shuffle)
        producer = Producer(config, order, Engines(engines), judges, buffer, self._reporter.phase)
        try:
            await collect(config, producer, buffer, self._claim.attempt, self._reports())
        finally:
            await producer.close()
        self._reporter.note(f"rollouts: {self._claim.run_dir / 'journal'}")
        return True

    def _reports(self) -> Reports:
        return Reports(
            step=self._step, note=self._reporter.note, event=self._event, phase=self._reporter.phase
        )

    def _step(self, metrics: Mapping[str, float]) -> None:
        if metrics["step"] > self._furthest:  # a step trained again is no progress
            self._furthest = metrics["step"]
            self._fleet.progress()
        self._reporter.step(metrics)

    def _tell(self, kind: str, actor: str, **fields: str | float) -> None:
        self._event(kind, actor=actor, **fields)

    def _event(self, kind: str, **fields: str | float) -> None:
        append_event(self._claim.run_dir, kind, attempt=self._claim.attempt, **fields)
        self._reporter.note(describe_event(kind, fields))


async def _interruptible(site: _Site, reporter: Reporter) -> int:
    """Do the work; the first SIGINT or SIGTERM ends it in order, a second ends the process at once."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(site.work())
    caught: list[int] = []

    def stop(number: int) -> None:
        caught.append(number)
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)
        if site.stop():
            reporter.note("stopping: a step that learns is finished, else it is dropped; then a checkpoint")
            loop.call_later(_STOP_LIMIT_S, task.cancel)
        else:
            reporter.note("stopping")
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not caught:
            raise
    return 128 + caught[0] if caught and not (task.done() and not task.cancelled() and task.result()) else 0
