"""A training run from config to finished run directory: checks, connection, claim, one attempt.

Called by the command line, which passes a reporter. For several runs in a row see `cluster.series`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import ray

from cluster.actor_pool import ActorPool
from cluster.actors import note_inline
from cluster.attempt import Attempt, RunError, claimed
from cluster.checks import InputChecks, device_without_cluster
from cluster.connect import connect, pick_device
from cluster.interrupts import interruptible
from cluster.job import Job, Reporter, ResolvedRun
from cluster.placement import check
from cluster.run_directory import is_finished
from cluster.secrets import secret_names
from configs.load import dump_yaml
from configs.schema import RunConfig
from configs.sources import NO_SOURCES, Provenance

__all__ = ["Job", "Outcome", "RunError", "dry_run", "train"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended: exit code 0, 130 (interrupted) or 143 (terminated), and its folder."""

    exit_code: int
    run_dir: Path


def dry_run(config: RunConfig, reporter: Reporter, sources: Provenance = NO_SOURCES) -> int:
    """Check a run without starting it: config, user code, model, prompts and disk space.

    Prints the resolved config and notes the resources that the run needs. Returns exit code 0. Messages name
    the file that `sources` has for a key.

    Raises:
        ValueError: something cannot be used.
    """
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        reporter.note(text)

    checked = InputChecks(note).check(config, sources=sources)
    # A dry run joins no cluster, so "auto" cannot be resolved; it is checked as CPU, which allows less.
    resolved = checked.on(device_without_cluster(config), reporter)
    placement = resolved.placement
    sys.stdout.write(dump_yaml(resolved.config))
    for text in notes:  # again, because the config takes more lines than a screen has
        reporter.note(text)
    if address := os.environ.get("RAY_ADDRESS"):
        reporter.note(f"cluster: RAY_ADDRESS={address}, not contacted by --dry-run")
    asked = f"on {placement.device} the run asks for {placement.describe()}"
    reporter.note(f"{len(resolved.prompts.train)} training prompts; {asked}")
    return 0


def train(
    config: RunConfig, reporter: Reporter, job: Job | None = None, sources: Provenance = NO_SOURCES
) -> Outcome:
    """Train to the end, or resume a run that was interrupted. Messages name files as `sources` has them.

    Raises:
        ValueError: bad input, or a cluster too small (`PlacementError`); nothing was started.
        RunError: the run had started and was stopped; its folder stays, and the same call resumes it.
    """
    job = job or Job()
    if is_finished(config, job.describe()):
        run_dir = (Path(config.runs_dir) / config.name).resolve()
        reporter.note(
            f"{run_dir} has made its {config.num_steps} steps already; set a higher num_steps to continue it"
        )
        return Outcome(exit_code=0, run_dir=run_dir)
    checked = InputChecks(reporter.note).check(config, job, sources)
    if config.cluster.spawn == "local":
        note_inline(checked.run, reporter.note)
        return asyncio.run(_train(checked.on(device_without_cluster(config), reporter)))
    connect(secret_names(config))
    try:
        resolved = checked.on(pick_device(config.cluster.device), reporter)
        check(resolved.placement)
        return asyncio.run(_train(resolved))
    finally:
        ray.shutdown()


async def _train(resolved: ResolvedRun) -> Outcome:
    with claimed(resolved) as claim:
        actor_pool = ActorPool()
        try:
            code = await interruptible(Attempt(resolved, claim, actor_pool), resolved.reporter)
        finally:
            await actor_pool.close()
    return Outcome(exit_code=code, run_dir=claim.run_dir)
