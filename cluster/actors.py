"""Start a run's actors and bind them to their roles. Called by `cluster.actor_pool`."""

from __future__ import annotations

import math
import os
import socket
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.requests import RankPlace
from actors.secrets import Secrets
from cluster.actor_process import Blueprint
from cluster.calls import BufferActor, GeneratorActor, LearnerRank, ScorerActor, blueprint
from cluster.models import ModelPool
from cluster.placement import Cores, split_cores
from cluster.role_proxies import BufferProxy, LearnerGroup
from cluster.score_limits import score_limit_s
from cluster.scorer_replicas import ScorerReplicas
from cluster.secrets import secrets_of
from cluster.site import Site
from cluster.spawn import Handle
from cluster.supervise import Limits, Supervised
from configs.bound import BoundRun
from trainer.reward_watch import FirstFailures
from trainer.rollout.dynamic_sampling import submissions_per_step
from trainer.rollout.rollouter import ScorerSet


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def rendezvous(site: Site) -> str:
    """URL where learner ranks meet (torch.distributed `init_method`).

    A file if all bundles are on one node, which opens no port; else a free port of rank 0's node.
    """
    homes: dict[int, str] = {}
    if site.group is not None:
        homes = ray.util.placement_group_table(site.group)["bundles_to_node_id"]
    if len(set(homes.values())) <= 1:
        site.log_dir.mkdir(parents=True, exist_ok=True)
        # A new file for every start: restarted ranks must not read the entries of the ranks before them.
        return f"file://{site.log_dir}/rendezvous-{uuid.uuid4().hex[:8]}"
    bundle = site.placement.ranks[0].bundle
    strategy = PlacementGroupSchedulingStrategy(site.group, placement_group_bundle_index=bundle)
    task = ray.remote(_free_port).options(num_cpus=0, scheduling_strategy=strategy)
    port: int = ray.get(task.remote(), timeout=60)
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    return f"tcp://{addresses[homes[bundle]]}:{port}"


def start_ranks(site: Site) -> list[Handle]:
    """Start all learner ranks. On CPU they split the machine's cores, less those of the engines."""
    config, num_ranks = site.config, site.config.learner.num_ranks
    # Made anew for each start: ranks that restart must not meet those of the start before.
    meeting_point = rendezvous(site)
    num_cores = len(os.sched_getaffinity(0))
    _, cores = split_cores(config, site.placement.device, num_cores)
    handles = []
    for rank, share in enumerate(site.placement.ranks):
        own = cores[rank] if cores else None
        threads = own[1] if own else max(1, num_cores // num_ranks)
        place = RankPlace(
            rank=rank,
            world_size=num_ranks,
            rendezvous=meeting_point,
            device=site.placement.device,
            num_threads=threads,
        )
        plan = blueprint(LearnerRank, site.run, place)
        handles.append(site.spawn(f"learner-{rank}", plan, share=share, threads=threads, cores=own))
    return handles


def _start_engine(site: Site, k: int, cores: Cores | None) -> Handle:
    return site.spawn(
        f"generator-{k}",
        blueprint(GeneratorActor, site.config, site.placement.device),
        share=site.placement.engines[k],
        cores=cores,
        limited=False,  # a request may wait long in the queue; `stalled_for_s` detects an engine that hangs
    )


def spawn_engines(site: Site) -> list[Supervised]:
    """Start all engines. On CPU each has one thread: a second does not speed up small batches."""
    cores, _ = split_cores(site.config, site.placement.device, len(os.sched_getaffinity(0)))
    return [
        site.supervise(f"generator-{k}", partial(_start_engine, site, k, cores[k] if cores else None))
        for k in range(len(site.placement.engines))
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerPool:
    """One scorer of a run: what its replicas were built with, the replicas, and the role they play."""

    built_with: tuple[object, ...]
    replicas: tuple[Supervised, ...]
    role: ScorerReplicas
    log: str
    """Where its replicas log, for messages."""


def spawn_scorers(
    site: Site, models: Mapping[str, ModelPool], kept: Mapping[str, ScorerPool] | None = None
) -> dict[str, ScorerPool]:
    """Start the replicas of all scorers; each gets the `models` that its options name.

    Pools in `kept` that were built with the same options, secrets and models are reused, with this run's time
    limit.
    """
    scorer_pools = {}
    for name, entry in site.run.scorers.items():
        common, options = entry.common, entry.options
        secrets = secrets_of(site.config, name)
        inline = site.config.cluster.spawn == "local"
        limit_s = score_limit_s(site.config, entry, site.in_actor)
        if inline and entry.own_code():
            limit_s = math.inf  # it may stop at a breakpoint
        # Weight and combination are applied by the driver: a replica need not be rebuilt for another.
        used = {model: models[model] for model in options.model_names().values()}
        prefixes = tuple(pool.prefix for pool in used.values())
        built_with = (replace(common, weight=0.0, combine=""), options, secrets, inline, prefixes)
        scorer_pool = (kept or {}).get(name)
        if scorer_pool is not None and scorer_pool.built_with == built_with:
            scorer_pool.role.limit_s = limit_s
            scorer_pools[name] = scorer_pool
            continue
        asked = {model: pool.for_scorers for model, pool in used.items()}
        starts = []
        for k in range(common.replicas):
            # A limit of the whole scorer, such as requests per minute, is divided over its replicas.
            own = options.for_replica(k, common.replicas)
            plan = blueprint(ScorerActor, common.kind, own, common.concurrency, secrets, inline, asked)
            starts.append(partial(_start_scorer, site, name, k, plan, secrets))
        replicas = [site.supervise(f"scorer-{name}-{k}", start) for k, start in enumerate(starts)]
        scorer_pools[name] = ScorerPool(
            built_with=built_with,
            replicas=tuple(replicas),
            role=ScorerReplicas(replicas, limit_s, common.concurrency, entry.kind.reports or entry.is_own),
            log=site.log_of(f"scorer-{name}-{'0' if common.replicas == 1 else '*'}"),
        )
    return scorer_pools


def note_inline(run: BoundRun, note: Callable[[str], None]) -> None:
    """Note which scorers run the user's own code in this process, with `cluster.spawn=local`."""
    keys = ", ".join(entry.key for entry in run.scorers.values() if entry.own_code())
    if keys:
        note(
            f"cluster.spawn=local: {keys} in this process, without limit_s, so that breakpoint() works; "
            "rollout.group_timeout_s still applies to a group"
        )


def _start_scorer(site: Site, name: str, k: int, plan: Blueprint, secrets: Secrets) -> Handle:
    """Start replica `k` of a scorer. `ScorerReplicas` limits the time of its calls."""
    shares = site.placement.scorers.get(name)
    share = shares[k] if shares else None
    return site.spawn(f"scorer-{name}-{k}", plan, share=share, limited=False, secrets=secrets)


def scorer_set(
    run: BoundRun, scorer_pools: Mapping[str, ScorerPool], note: Callable[[str], None]
) -> ScorerSet:
    """The scorers as a role, with the weights of this run; `note` gets the first reason of each failure."""
    return ScorerSet(
        scorers={name: scorer_pools[name].role for name in run.scorers},
        common_keys={name: entry.common for name, entry in run.scorers.items()},
        after=run.scored_after(),
        calls={name: scorer_pools[name].role.calls for name in run.scorers},
        observe=FirstFailures(note, lambda name: scorer_pools[name].log).observe,
        failure_limits={name: entry.options.failure_limit() for name, entry in run.scorers.items()},
    )


def spawn_buffer(site: Site, run_dir: Path) -> tuple[BufferProxy, Supervised]:
    """Start the buffer of the run."""
    config = site.config
    plan = blueprint(BufferActor, str(run_dir), config.name, submissions_per_step(config))
    start = partial(site.spawn, "buffer", plan)
    buffer_actor = site.supervise("buffer", start)
    return BufferProxy(buffer_actor), buffer_actor


def spawn_learner(site: Site, buffer: BufferProxy) -> LearnerGroup:
    """Start all learner ranks, as one learner that fetches its rows from `buffer`."""
    return LearnerGroup(partial(start_ranks, site), buffer, Limits.of(site.config.cluster), site.report_event)
