"""Start the frozen models of a run: supervised replicas, and clients for the driver and for scorers.

In: a site and the entries of `models` that some option names. Out: a `ModelPool` for each. Called by
`cluster.actor_pool`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count

from cluster.calls import ClassifierServer, ModelServer, blueprint
from cluster.model_client import LocalReplica, ModelClient, NamedReplica, Replica
from cluster.model_files import used_endpoints, used_models
from cluster.site import Site
from cluster.spawn import Handle
from cluster.supervise import Supervised
from configs.kinds.models import ModelOptions
from rewards.endpoint_model import EndpointClient, EndpointConfig
from rewards.model_calls import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPool:
    """A frozen model of a run: what its replicas were built with, the replicas, and its clients."""

    built_with: tuple[object, ...]
    prefix: str
    """Begins the Ray names of its replicas; unique to this pool."""
    replicas: tuple[Supervised, ...]
    for_driver: Model
    for_scorers: Model
    """Can be sent to other processes."""


def spawn_models(site: Site, kept: Mapping[str, ModelPool] | None = None) -> dict[str, ModelPool]:
    """Start the replicas of all models that some option names; pools in `kept` of the same are reused."""
    local = site.config.cluster.spawn == "local"
    pools = {}
    for name, options in used_models(site.run):
        pool = (kept or {}).get(name)
        if pool is None or pool.built_with != (options, local):
            pool = _spawn(site, name, options, local)
        pools[name] = pool
    return pools | {name: _endpoint(name, options) for name, options in used_endpoints(site.run)}


def _endpoint(name: str, options: ModelOptions) -> ModelPool:
    """A model of a server outside of the run: clients alone."""
    config = EndpointConfig(url=options.endpoint, model=options.path, extra=options.extra)
    client = EndpointClient(f"model {name}", config, options.api_key, options.max_num_seqs)
    # Scorers that were built with the same endpoint can be kept.
    prefix = f"endpoint-{options.endpoint}-{options.path}"
    return ModelPool(
        built_with=(options, False), prefix=prefix, replicas=(), for_driver=client, for_scorers=client
    )


def clients(pools: Mapping[str, ModelPool]) -> dict[str, Model]:
    """The models as the driver uses them."""
    return {name: pool.for_driver for name, pool in pools.items()}


def _spawn(site: Site, name: str, options: ModelOptions, local: bool) -> ModelPool:
    prefix = f"model-{name}-{uuid.uuid4().hex[:12]}"
    starts = [partial(_start, site, name, k, f"{prefix}-{k}-", count()) for k in range(options.replicas)]
    replicas = tuple(site.supervise(f"model-{name}-{k}", start) for k, start in enumerate(starts))
    cluster = site.config.cluster
    # As long as the driver may take to replace it.
    wait_s = cluster.hang_timeout_s + cluster.ready_timeout_s + cluster.restart_backoff_s
    found: list[Replica] = [
        LocalReplica(replica) if local else NamedReplica(f"{prefix}-{k}-", replica.label, wait_s)
        for k, replica in enumerate(replicas)
    ]
    return ModelPool(
        built_with=(options, local),
        prefix=prefix,
        replicas=replicas,
        for_driver=ModelClient(name, replicas, options.max_num_seqs),
        for_scorers=ModelClient(name, found, options.max_num_seqs),
    )


def _start(site: Site, name: str, k: int, prefix: str, lives: Iterator[int]) -> Handle:
    """Start replica `k` of a model under a new name: that of its last life may not be free yet."""
    options, shares = site.run.models[name], site.placement.models.get(name)
    server = ClassifierServer if options.backend == "transformers" else ModelServer
    return site.spawn(
        f"model-{name}-{k}",
        blueprint(server, options, "cuda" if options.num_gpus else "cpu"),
        share=shares[k] if shares else None,
        threads=max(1, int(options.num_cpus)),
        limited=False,  # requests may wait long in the queue; `stalled_for_s` detects an engine that hangs
        name=f"{prefix}{next(lives)}",
    )
