"""Starting a run's actors and binding them to their roles. Called by `cluster.train`."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.requests import RankPlace
from cluster.bind import BufferProxy, Engines, LearnerGroup, ScorerReplicas
from cluster.hosts import Blueprint, ProcessSetup, host_environment
from cluster.placement import Placement, Share
from cluster.spawn import Handle, spawn_local, spawn_ray
from configs.entries import loss_options, scorer_options
from configs.schema import RunConfig
from trainer.loop import Roles
from trainer.objective import BoundLoss
from trainer.rollout import Judges


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a run's actors go: a placement and its reservation, or this process when there is no `group`."""

    config: RunConfig
    placement: Placement
    group: PlacementGroup | None
    log_dir: Path

    def spawn(
        self,
        label: str,
        target: str,
        arguments: tuple[object, ...],
        share: Share | None,
        threads: int,
        is_async: bool,
    ) -> Handle:
        """Start one actor; without a share it asks for no CPU."""
        blueprint = Blueprint(target=target, arguments=arguments)
        local = self.config.cluster.spawn == "local"
        setup = ProcessSetup(
            label=label,
            log_file="" if local else str(self.log_dir / f"{label}.log"),
            environment=host_environment(threads, self.placement.device),
        )
        if local:
            return spawn_local(setup, blueprint)
        return spawn_ray(
            setup,
            blueprint,
            is_async=is_async,
            num_cpus=share.num_cpus if share else 0,
            num_gpus=share.num_gpus if share else 0,
            group=self.group if share else None,
            bundle=share.bundle if share else -1,
            limit_s=self.config.cluster.call_timeout_s,
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def rendezvous(site: Site) -> str:
    """Where learner ranks meet: a file if all bundles are on one node, else a port of rank 0's node."""
    homes: dict[int, str] = {}
    if site.group is not None:
        homes = ray.util.placement_group_table(site.group)["bundles_to_node_id"]
    if len(set(homes.values())) <= 1:
        site.log_dir.mkdir(parents=True, exist_ok=True)
        return f"file://{site.log_dir}/rendezvous"
    bundle = site.placement.ranks[0].bundle
    strategy = PlacementGroupSchedulingStrategy(site.group, placement_group_bundle_index=bundle)
    task = ray.remote(_free_port).options(num_cpus=0, scheduling_strategy=strategy)
    port: int = ray.get(task.remote(), timeout=60)
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    return f"tcp://{addresses[homes[bundle]]}:{port}"


def bound_losses(config: RunConfig) -> dict[str, BoundLoss]:
    """The losses of a config, by origin."""
    losses = {}
    for origin, entry in config.loss.items():
        common, options, kind = loss_options(entry)
        losses[origin] = BoundLoss(common=common, kind=kind, options=options)
    return losses


def spawn_learner(site: Site) -> list[Handle]:
    """All learner ranks. On CPU they split the machine's cores: engines wait while they learn."""
    config = site.config
    meeting_point = rendezvous(site)
    num_ranks = config.learner.num_ranks
    threads = max(1, len(os.sched_getaffinity(0)) // num_ranks)
    handles = []
    for rank, share in enumerate(site.placement.ranks):
        place = RankPlace(
            rank=rank,
            world_size=num_ranks,
            rendezvous=meeting_point,
            device=site.placement.device,
            num_threads=threads,
        )
        arguments = (config, bound_losses(config), place)
        handles.append(
            site.spawn(f"learner-{rank}", "actors.learner:LearnerRank", arguments, share, threads, False)
        )
    return handles


def spawn_engines(site: Site) -> list[Handle]:
    """All engines, one thread each on CPU (a second brings nothing)."""
    arguments = (site.config, site.placement.device)
    target = "actors.generator:GeneratorActor"
    return [
        site.spawn(f"generator-{k}", target, arguments, share, 1, True)
        for k, share in enumerate(site.placement.engines)
    ]


def spawn_scorers(site: Site) -> tuple[Judges, list[Handle]]:
    """All scorers with their replicas."""
    scorers, commons, handles = {}, {}, []
    for name, entry in site.config.scorers.items():
        common, options, _ = scorer_options(entry)
        replicas = [
            site.spawn(
                f"scorer-{name}-{k}", "actors.scorer:ScorerActor", (common.kind, options), None, 1, False
            )
            for k in range(site.config.cluster.scorer_replicas)
        ]
        scorers[name], commons[name] = ScorerReplicas(replicas), common
        handles.extend(replicas)
    return Judges(scorers=scorers, commons=commons), handles


def spawn_run(site: Site, run_dir: Path) -> tuple[Roles, Mapping[str, Sequence[Handle]]]:
    """Every actor of a training run, started at once, with the roles they play."""
    engines = spawn_engines(site)
    ranks = spawn_learner(site)
    judges, scorers = spawn_scorers(site)
    keeper = site.spawn(
        "buffer", "actors.buffer:BufferActor", (str(run_dir), site.config.name), None, 1, False
    )
    buffer = BufferProxy(keeper)
    roles = Roles(
        generator=Engines(engines), judges=judges, learner=LearnerGroup(ranks, buffer), buffer=buffer
    )
    return roles, {"engines": engines, "ranks": ranks, "scorers": scorers, "buffer": [keeper]}
