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
from cluster.answers import check_answers
from cluster.attempt import Attempt, RunError, claimed
from cluster.connect import connect, pick_device
from cluster.interrupts import interruptible
from cluster.job import Job, Reporter, ResolvedRun, check_job, load_prompts, local_model
from cluster.placement import check, plan
from cluster.run_directory import check_claimable, check_space, is_finished, reading
from cluster.secrets import check_secrets, secret_names
from cluster.setting_notes import note_settings
from cluster.user_code import NO_CODE, UserCode, check_user_code
from configs.bound import BoundRun, bind
from configs.load import dump_yaml
from configs.schema import RunConfig
from rewards.combine import check_tags
from trainer.model.checkpoint_format import check_cpu_attention

__all__ = ["Job", "Outcome", "RunError", "check_startable", "dry_run", "train"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended: exit code 0, 130 (interrupted) or 143 (terminated), and its folder."""

    exit_code: int
    run_dir: Path


def dry_run(config: RunConfig, reporter: Reporter) -> int:
    """Check a run without starting it: config, user code, model, prompts and disk space.

    Prints the resolved config and notes the resources that the run needs. Returns exit code 0.

    Raises:
        ValueError: something cannot be used.
    """
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        reporter.note(text)

    code = check_user_code(config, note)
    given, config = config, local_model(config)
    run = bind(config)
    check_startable(given, run, code)
    prompts = load_prompts(run, note)
    note_settings(run, note)
    check_answers(config, [each.prompt for each in prompts.train], note)
    # A dry run joins no cluster, so "auto" cannot be resolved; it is checked as CPU, which allows less.
    device = "cuda" if config.cluster.device == "cuda" else "cpu"
    if device == "cpu":
        check_cpu_attention(config.model)
    asked = ", ".join(
        f"{amount:g} {name}" for name, amount in plan(config, device).totals().items() if amount
    )
    sys.stdout.write(dump_yaml(config))
    for text in notes:  # again, because the config takes more lines than a screen has
        reporter.note(text)
    if address := os.environ.get("RAY_ADDRESS"):
        reporter.note(f"cluster: RAY_ADDRESS={address}, not contacted by --dry-run")
    reporter.note(f"{len(prompts.train)} training prompts; on {device} the run asks for {asked}")
    return 0


def check_startable(given: RunConfig, run: BoundRun, code: UserCode = NO_CODE) -> None:
    """Check that a run could start.

    Raises:
        ValueError: its folder cannot be claimed, the disk has no room, a secret is missing, or two scorers
            use the same tag.
    """
    check_claimable(given, code)
    check_space(run.config)
    check_secrets(run.config)
    check_tags({name: entry.common for name, entry in run.scorers.items()})


def train(config: RunConfig, reporter: Reporter, job: Job | None = None) -> Outcome:
    """Train to the end, or resume a run that was interrupted.

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
    code = check_user_code(config, reporter.note)
    given, config = config, local_model(config)
    check_job(config, job)
    run = bind(config)
    check_startable(given, run, code)
    if job.rollouts_of is not None:
        with reading(job.rollouts_of):  # fails now, not after the actors have started
            pass
    prompts = load_prompts(run, reporter.note)
    note_settings(run, reporter.note)
    if job.rollouts_of is None:
        check_answers(config, [each.prompt for each in prompts.train], reporter.note)

    def on(device: str) -> ResolvedRun:
        if device == "cpu":
            check_cpu_attention(config.model)
        placement = plan(config, device)
        return ResolvedRun(
            given=given,
            run=run,
            prompts=prompts,
            placement=placement,
            reporter=reporter,
            job=job,
            code=code,
        )

    if config.cluster.spawn == "local":
        note_inline(run, reporter.note)
        return asyncio.run(_train(on("cuda" if config.cluster.device == "cuda" else "cpu")))
    connect(secret_names(config))
    try:
        resolved = on(pick_device(config.cluster.device))
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
