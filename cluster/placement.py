"""The resources a run needs, whether the cluster has them, and a placement group that reserves them.

If the cluster is too small, the run fails at once with a table of what is needed and what is there. Ray alone
would leave the placement group pending for ever.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from configs.bound import BoundRun
from configs.kinds.models import ModelOptions
from configs.kinds.scorers import ScorerCommon
from configs.schema import RunConfig

_LEARNER_LEAST: Final = 0.1
"""The part of its GPU that a rank keeps in any case."""
_RESOLUTION: Final = 1e-4
"""Ray counts resources in these units."""
_ROUNDING: Final = 1e-9


class PlacementError(ValueError):
    """The cluster does not have the resources that the run needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The resources of one actor: the index of its bundle, and its part of the bundle's CPUs and GPUs."""

    bundle: int
    num_cpus: float
    num_gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Bundles, and each actor's share of them. The buffer needs no reserved resources."""

    device: str
    bundles: tuple[Mapping[str, float], ...]
    engines: tuple[Share, ...]
    ranks: tuple[Share, ...]
    scorers: Mapping[str, tuple[Share, ...]] = field(default_factory=dict)
    """By name, a share for each replica. Scorers without reserved resources are left out."""
    models: Mapping[str, tuple[Share, ...]] = field(default_factory=dict)
    """The same of frozen models; those that no option names are left out, too."""

    def totals(self) -> dict[str, float]:
        """CPUs and GPUs of all bundles together."""
        return {name: sum(bundle.get(name, 0.0) for bundle in self.bundles) for name in ("CPU", "GPU")}

    def describe(self) -> str:
        """The totals in words, and which scorers and models are on a GPU of an engine or a rank."""
        parts = [", ".join(f"{amount:g} {name}" for name, amount in self.totals().items() if amount)]
        training = {share.bundle for share in (*self.engines, *self.ranks)}
        named = {f"scorers.{name}": shares for name, shares in self.scorers.items()}
        named |= {f"models.{name}": shares for name, shares in self.models.items()}
        for name, shares in named.items():
            if beside := [share for share in shares if share.bundle in training]:
                number = f"{len(beside)} replica{'s' if len(beside) > 1 else ''}"
                each = f"{beside[0].num_gpus:g} of a GPU each"
                parts.append(f"{name} shares GPUs with engines or learner ({number}, {each})")
        return "; ".join(parts)


def plan(run: BoundRun, device: str) -> Placement:
    """The placement of a run on `device`.

    With `cluster.schedule: take_turns`, engine k and rank k share a bundle, each with half of its CPU or GPU.
    With `overlap`, or if an engine spans several GPUs, each has its own bundle. A replica of a scorer or of a
    frozen model (one that some option names) that asks for less than one GPU is placed on the GPU of an
    engine or a rank that has room; any other replica with `num_cpus` or `num_gpus` has its own bundle.
    """
    placement = _plan_training(run.config, device)
    room = _gpu_room(placement, run.config.generator.gpu_memory_utilization)
    bundles, used = [dict(bundle) for bundle in placement.bundles], run.used_models()

    def shares(asked: ScorerCommon | ModelOptions) -> tuple[Share, ...]:
        cpus, gpus = asked.num_cpus, asked.num_gpus
        number = asked.replicas if cpus or gpus else 0
        return tuple(
            Share(bundle=_bundle_for(gpus, cpus, bundles, room), num_cpus=cpus, num_gpus=gpus)
            for _ in range(number)
        )

    scorers = {name: shares(entry.common) for name, entry in run.scorers.items()}
    models = {name: shares(options) for name, options in run.models.items() if name in used}
    placement = replace(
        placement,
        bundles=tuple(bundles),
        scorers={name: own for name, own in scorers.items() if own},
        models={name: own for name, own in models.items() if own},
    )
    return replace(
        placement,
        engines=tuple(_beside_scorers(share, placement) for share in placement.engines),
        ranks=tuple(_beside_scorers(share, placement) for share in placement.ranks),
    )


def _gpu_room(placement: Placement, engine_share: float) -> dict[int, float]:
    """Bundle -> the part of its GPU that others may have: what an engine and a learner's least leave.

    Only bundles of one GPU: Ray gives an actor several GPUs whole or not at all.
    """
    engines = {share.bundle for share in placement.engines}
    ranks = {share.bundle for share in placement.ranks}
    return {
        index: 1.0 - (engine_share if index in engines else 0.0) - (_LEARNER_LEAST if index in ranks else 0.0)
        for index, bundle in enumerate(placement.bundles)
        if bundle.get("GPU") == 1.0
    }


def _bundle_for(
    num_gpus: float, num_cpus: float, bundles: list[dict[str, float]], room: dict[int, float]
) -> int:
    """The bundle of a replica: the one with the most `room` if it is enough, else a new one."""
    index = max(room, key=lambda each: room[each], default=-1)
    if not (0.0 < num_gpus < 1.0 and index >= 0 and room[index] >= num_gpus - _ROUNDING):
        bundles.append(_bundle(num_gpus, num_cpus))
        return len(bundles) - 1
    room[index] -= num_gpus
    bundles[index]["CPU"] += num_cpus
    return index


def _beside_scorers(share: Share, placement: Placement) -> Share:
    """The share of an engine or a rank, reduced by what scorers and models have of the same GPU."""
    lent = sum(
        each.num_gpus
        for of_one in (*placement.scorers.values(), *placement.models.values())
        for each in of_one
        if each.bundle == share.bundle
    )
    # Rounded down to Ray's resolution, so that all shares of a bundle fit into it.
    num_gpus = (
        math.floor(share.num_gpus * (1.0 - lent) / _RESOLUTION + _ROUNDING) * _RESOLUTION
        if lent
        else share.num_gpus
    )
    return replace(share, num_gpus=num_gpus)


def _plan_training(config: RunConfig, device: str) -> Placement:
    """The placement of engines and ranks."""
    engines, ranks = config.generator.num_engines, config.learner.num_ranks
    wide = config.generator.tensor_parallel
    gpu = device == "cuda"
    if (gpu and wide > 1) or config.cluster.schedule == "overlap":
        many, one = (float(wide), 1.0) if gpu else (0.0, 0.0)
        bundles = [_bundle(many)] * engines + [_bundle(one)] * ranks
        return Placement(
            device=device,
            bundles=tuple(bundles),
            engines=tuple(Share(bundle=i, num_cpus=1.0, num_gpus=many) for i in range(engines)),
            ranks=tuple(Share(bundle=engines + i, num_cpus=1.0, num_gpus=one) for i in range(ranks)),
        )
    # Half each, only so that Ray lets two actors on one GPU: it does not limit their memory.
    half = 0.5 if gpu else 0.0
    return Placement(
        device=device,
        bundles=(_bundle(2 * half),) * max(engines, ranks),
        engines=tuple(Share(bundle=i, num_cpus=0.5, num_gpus=half) for i in range(engines)),
        ranks=tuple(Share(bundle=i, num_cpus=0.5, num_gpus=half) for i in range(ranks)),
    )


def _bundle(num_gpus: float, num_cpus: float = 1.0) -> dict[str, float]:
    asked = {"CPU": num_cpus, "GPU": num_gpus}
    return {name: amount for name, amount in asked.items() if amount}


Cores = tuple[int, int]
"""(first, number) among the cores of a machine."""


def split_cores(config: RunConfig, device: str, num_cores: int) -> tuple[list[Cores], list[Cores]]:
    """Cores of each engine and of each rank if they work at the same time on CPUs; empty lists otherwise.

    An engine has one core, since a second does not speed it up; the ranks share the others.

    Raises:
        PlacementError: the machine has fewer cores than engines and ranks.
    """
    engines, ranks = config.generator.num_engines, config.learner.num_ranks
    if device != "cpu" or config.cluster.schedule != "overlap":
        return [], []
    if num_cores < engines + ranks:
        raise PlacementError(
            f"cluster.schedule overlap needs a core for each of {engines} engines and {ranks} ranks, "
            f"got {num_cores}: use take_turns, or fewer of them"
        )
    each = (num_cores - engines) // ranks
    return [(k, 1) for k in range(engines)], [(engines + k * each, each) for k in range(ranks)]


def table(asked: Mapping[str, float], total: Mapping[str, float], free: Mapping[str, float]) -> str:
    """Needed, total and free resources as an aligned table."""
    lines = [f"{'resource':<10}{'needed':>10}{'in cluster':>12}{'free now':>10}"]
    for name in ("CPU", "GPU"):
        lines.append(f"{name:<10}{asked.get(name, 0):>10g}{total.get(name, 0):>12g}{free.get(name, 0):>10g}")
    return "\n".join(lines)


def check(placement: Placement) -> None:
    """Check that the cluster is large enough.

    Raises:
        PlacementError: the whole cluster is too small, or no single node can hold a bundle. The message has
            the table.
    """
    asked, total, free = placement.totals(), ray.cluster_resources(), ray.available_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    short = [name for name in ("CPU", "GPU") if asked[name] > total.get(name, 0.0)]
    unplaceable = [bundle for bundle in placement.bundles if not any(_fits(bundle, node) for node in nodes)]
    if short or unplaceable:
        bundle = dict(unplaceable[0]) if unplaceable else {}
        why = f"not enough {' and '.join(short)}" if short else f"no node holds a bundle of {bundle}"
        raise PlacementError(
            f"the cluster cannot place this run ({why}):\n{table(asked, total, free)}\n"
            "lower generator.num_engines, generator.tensor_parallel, learner.num_ranks or the resources of "
            "scorers and models (num_gpus, num_cpus, replicas), set cluster.device=cpu, or add nodes; a "
            "share of a GPU fits beside engine and rank up to 1 - generator.gpu_memory_utilization - "
            f"{_LEARNER_LEAST:g}"
        )


def _fits(bundle: Mapping[str, float], node: Mapping[str, float]) -> bool:
    return all(node.get(name, 0.0) >= amount for name, amount in bundle.items())


async def reserve(placement: Placement, limit_s: float) -> PlacementGroup:
    """Reserve the bundles.

    Raises:
        PlacementError: they did not become free within `limit_s` seconds (another job holds them).
    """
    group = placement_group([dict(bundle) for bundle in placement.bundles], strategy="PACK")
    try:
        await asyncio.wait_for(_ready(group), limit_s)
    except TimeoutError as error:
        remove_placement_group(group)
        resources = table(placement.totals(), ray.cluster_resources(), ray.available_resources())
        raise PlacementError(
            f"the cluster's resources did not become free within cluster.ready_timeout_s = {limit_s:g} s; "
            f"another job may hold them:\n{resources}"
        ) from error
    return group


async def _ready(group: PlacementGroup) -> None:
    await group.ready()
