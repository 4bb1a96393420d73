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
from cluster.attempt import Attempt, RunError, claimed
from cluster.checks import CheckedRun, InputChecks, device_without_cluster
from cluster.connect import connect, pick_device
from cluster.interrupts import interruptible
from cluster.job import Reporter, ResolvedRun
from cluster.placement import check
from cluster.run_directory import is_finished
from cluster.secrets import secret_names
from configs.schema import RunConfig
from configs.sources import NO_SOURCES, Provenance


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


def train_all(
    configs: Sequence[RunConfig],
    listener: Listener,
    reporter: Reporter,
    sources: Sequence[Provenance] | None = None,
) -> int:
    """Run all configs in order; returns the exit code: 0, 130 (SIGINT) or 143 (SIGTERM).

    Runs that are already finished are not repeated. `sources` has an entry for each config: which file set a
    key, for messages.

    Raises:
        ValueError: bad input, or a cluster too small; nothing was started.
    """
    if not configs:
        return 0
    checks = InputChecks(reporter.note)
    given = zip(configs, sources or [NO_SOURCES] * len(configs), strict=True)
    # All before the first starts: a typo in the last arm must not show after hours.
    runs = [checks.check(config, sources=each) for config, each in given]
    clustered = [config for config in configs if config.cluster.spawn == "ray"]
    if clustered:
        connect({name for config in configs for name in secret_names(config)})
    try:
        resolved_runs = [_place(run, listener.reporter(index)) for index, run in enumerate(runs)]
        return asyncio.run(interruptible(_Series(resolved_runs, listener), reporter))
    finally:
        if clustered:
            ray.shutdown()


def _place(run: CheckedRun, reporter: Reporter) -> ResolvedRun:
    """The run on its device; its placement is checked if it uses the cluster."""
    cluster = run.given.cluster
    if cluster.spawn != "ray":
        return run.on(device_without_cluster(run.given), reporter)
    resolved = run.on(pick_device(cluster.device), reporter)
    check(resolved.placement)
    return resolved


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
