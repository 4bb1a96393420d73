"""Where a run's actors go: starts and supervises each under the run's config, placement and log folder.

Used by `cluster.actors` and `cluster.models`, which say what is started.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ray.util.placement_group import PlacementGroup

from actors.secrets import NO_SECRETS, Secrets
from cluster.actor_process import Blueprint, ProcessSetup, host_environment
from cluster.placement import Cores, Placement, Share
from cluster.secrets import secret_names
from cluster.spawn import Handle, spawn_local, spawn_ray
from cluster.supervise import Limits, ReportEvent, Supervised
from configs.bound import BoundRun
from configs.schema import RunConfig


@dataclass(slots=True, kw_only=True)
class Site:
    """Where a run's actors go: a placement and its reservation, or this process if `group` is None.

    Mutable: actors kept for another run are supervised and replaced under that run's config. Read the fields
    when an actor is started or an event reported, not before.
    """

    run: BoundRun
    placement: Placement
    group: PlacementGroup | None
    log_dir: Path
    report: ReportEvent
    in_actor: frozenset[str] = frozenset()
    """Own scorers that run in no sandbox (`cluster.user_code.UserCode`)."""

    @property
    def config(self) -> RunConfig:
        """The run's sections."""
        return self.run.config

    def spawn(
        self,
        label: str,
        plan: Blueprint,
        *,
        share: Share | None = None,
        threads: int = 1,
        cores: Cores | None = None,
        limited: bool = True,
        secrets: Secrets = NO_SECRETS,
        name: str = "",
    ) -> Handle:
        """Start an actor. Without `share` it reserves no CPU; if not `limited`, calls have no time limit.

        By `name`, if given, other processes of the run find it in Ray.
        """
        local = self.config.cluster.spawn == "local"
        on_gpu = share is not None and share.num_gpus > 0
        # In this process all actors see the same devices; elsewhere one that asks for no GPU sees none.
        sees_gpus = on_gpu or (local and self.placement.device == "cuda")
        setup = ProcessSetup(
            label=label,
            log_file="" if local else str(self.log_dir / f"{label}.log"),
            environment=host_environment(threads, "cuda" if sees_gpus else "cpu"),
            cores=cores,
            secrets=secrets,
            foreign_secrets=secret_names(self.config),
        )
        if local:
            return spawn_local(setup, plan)
        return spawn_ray(
            setup,
            plan,
            num_cpus=share.num_cpus if share else 0,
            num_gpus=share.num_gpus if share else 0,
            group=self.group if share else None,
            bundle=share.bundle if share else -1,
            limit_s=self.config.cluster.call_timeout_s if limited else None,
            name=name,
        )

    def log_of(self, label: str) -> str:
        """The log file of the actor with this label."""
        if self.config.cluster.spawn == "local":
            return "the output of this terminal"
        return str(self.log_dir / f"{label}.log")

    def supervise(self, label: str, start: Callable[[], Handle]) -> Supervised:
        """A supervised actor; `start` makes each of its processes."""
        return Supervised(label, start, Limits.of(self.config.cluster), self.report_event)

    def report_event(self, kind: str, actor: str, **fields: str | float) -> None:
        """Report an event of an actor to the run that uses it now."""
        self.report(kind, actor, **fields)
