"""Several runs in a row on the same actors: all are checked first, then each is an ordinary run.

In: configs and a listener. Out: run directories. A run that fails is reported, and the series continues.
Called by `lab.compare`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import ray

from cluster.actor_pool import ActorPool
from cluster.answers import check_answers
from cluster.attempt import Attempt, RunError, claimed
from cluster.connect import connect, pick_device
from cluster.interrupts import interruptible
from cluster.job import Job, Prompts, Reporter, ResolvedRun, load_prompts, local_model
from cluster.placement import check, plan
from cluster.run_directory import is_finished
from cluster.secrets import secret_names
from cluster.train import check_startable
from cluster.user_code import UserCode, check_user_code, own_targets
from configs.bound import bind
from configs.origins import SFT
from configs.schema import RunConfig
from trainer.model.checkpoint_format import check_cpu_attention


class Listener(Protocol):
    """Receives the progress of the runs, by their number in the series."""

    def reporter(self, index: int) -> Reporter:
        """The reporter of this run."""
        ...

    def begins(self, index: int) -> None:
        """The run begins."""
        ...

    def finished(self, index: int, run_dir: Path) -> None:
        """The run has made all its steps."""
        ...

    def failed(self, index: int, reason: str) -> None:
        """The run was stopped by an error. Calling `train_all` again resumes it."""
        ...


def train_all(configs: Sequence[RunConfig], listener: Listener, reporter: Reporter) -> int:
    """Run all configs in order; returns the exit code: 0, 130 (SIGINT) or 143 (SIGTERM).

    Runs that are already finished are not repeated.

    Raises:
        ValueError: bad input, or a cluster too small; nothing was started.
    """
    if not configs:
        return 0
    codes = _check_code(configs, reporter)
    local = [local_model(config) for config in configs]
    runs = [bind(config) for config in local]
    # Arms of a comparison mostly share prompts and scorers: each combination is loaded and checked once.
    loaded: dict[str, Prompts] = {}
    checked: set[str] = set()
    prompts = []
    for given, config, run, code in zip(configs, local, runs, codes, strict=True):
        check_startable(given, run, code)
        key = repr((config.data, config.model, config.rollout, config.eval.every == 0, _sft_key(config)))
        if key not in loaded:
            loaded[key] = load_prompts(run, reporter.note)
        prompts.append(loaded[key])
        if (scored_key := repr((key, config.scorers))) not in checked:
            checked.add(scored_key)
            check_answers(config, [each.prompt for each in loaded[key].train], reporter.note)
    clustered = any(config.cluster.spawn == "ray" for config in local)
    if clustered:
        connect({name for config in local for name in secret_names(config)})
    try:
        resolved_runs = []
        for index, config in enumerate(local):
            if _device(config) == "cpu":
                check_cpu_attention(config.model)
            resolved = ResolvedRun(
                given=configs[index],
                run=runs[index],
                prompts=prompts[index],
                placement=plan(config, _device(config)),
                reporter=listener.reporter(index),
                job=Job(),
                code=codes[index],
            )
            if config.cluster.spawn == "ray":
                check(resolved.placement)
            resolved_runs.append(resolved)
        return asyncio.run(interruptible(_Series(resolved_runs, listener), reporter))
    finally:
        if clustered:
            ray.shutdown()


def _check_code(configs: Sequence[RunConfig], reporter: Reporter) -> list[UserCode]:
    """The user's own code of each run; what several runs share is imported once."""
    known: dict[str, UserCode] = {}
    codes = []
    for config in configs:
        key = repr((sorted(own_targets(config).items()), config.allow))
        if key not in known:
            known[key] = check_user_code(config, reporter.note)
        codes.append(known[key])
    return codes


def _sft_key(config: RunConfig) -> object:
    """What a run's demonstrations depend on, apart from model and rollout; None without demonstrations."""
    return (config.name, config.sft) if SFT in config.loss else None


def _device(config: RunConfig) -> str:
    if config.cluster.spawn == "ray":
        return pick_device(config.cluster.device)
    return "cuda" if config.cluster.device == "cuda" else "cpu"


class _Series:
    """The runs one after another, on the actors of one pool."""

    def __init__(self, resolved_runs: Sequence[ResolvedRun], listener: Listener) -> None:
        self._resolved_runs, self._listener = resolved_runs, listener
        self._actor_pool = ActorPool()
        self._attempt: Attempt | None = None
        self._stopping = False

    def stop(self) -> bool:
        """Ask the current run to stop; False if there is none, or it has not begun."""
        self._stopping = True
        return self._attempt is not None and self._attempt.stop()

    async def work(self) -> bool:
        """Make all runs; returns False if stopped before the end."""
        try:
            for index, resolved in enumerate(self._resolved_runs):
                if self._stopping:
                    return False
                self._listener.begins(index)
                try:
                    run_dir = await self._run(resolved)
                    if run_dir is None:
                        return False
                    self._listener.finished(index, run_dir)
                except (RunError, ValueError) as error:
                    await self._actor_pool.close()  # their state is unknown: the next run starts new ones
                    self._listener.failed(index, str(error))
            return True
        finally:
            await self._actor_pool.close()

    async def _run(self, resolved: ResolvedRun) -> Path | None:
        """The run's folder once it is finished; None if it was stopped."""
        if is_finished(resolved.given, resolved.job.describe()):
            return (Path(resolved.config.runs_dir) / resolved.config.name).resolve()
        with claimed(resolved) as claim:
            self._attempt = Attempt(resolved, claim, self._actor_pool)
            try:
                finished = await self._attempt.work()
            except BaseException:
                await self._actor_pool.close()  # before the lock is released: the buffer may still write
                raise
            finally:
                self._attempt = None
        return claim.run_dir if finished else None
