"""Actors kept alive between runs: started for one run, and reused by the next if its config allows it.

Starting an engine and a learner takes longer than many small runs. Settings that an actor was built with
cannot be changed (`built_in`): if one differs, new actors are started. Otherwise the actors are reset: the
ranks return to the weights of step 0 and publish them to the engines, a scorer is kept if its kind and
options are the same, and the buffer is always new, because it belongs to a run's folder. Called by
`cluster.attempt`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Final

from ray.util.placement_group import remove_placement_group

from cluster.actors import (
    ScorerPool,
    scorer_set,
    spawn_buffer,
    spawn_engines,
    spawn_learner,
    spawn_scorers,
)
from cluster.calls import ScorerActor, call_once
from cluster.job import ResolvedRun
from cluster.models import ModelPool, clients, spawn_models
from cluster.placement import reserve
from cluster.role_proxies import BufferProxy, Engines, LearnerGroup, NoEngines
from cluster.run_directory import Claim
from cluster.site import Site
from cluster.spawn import ActorCallError, wait_ready
from cluster.supervise import Fleet, ReportEvent, Supervised
from cluster.weight_transport import HostTransport, NoTransport
from configs.bound import BoundRun
from configs.fields import ACTORS, settings_of
from configs.schema import RunConfig
from rewards.model_calls import Model
from trainer.loop import Roles
from trainer.roles import LearnerLostError, WeightTransport
from trainer.rollout.rollouter import ScorerSet

BUILT_IN: Final = tuple(key for key, setting in settings_of(RunConfig) if ACTORS in setting.effect)
"""Settings that engines and learner ranks are built with: another value needs new actors."""
_CLOSE_LIMIT_S = 5.0


def built_in(before: RunConfig, after: RunConfig) -> list[str]:
    """Keys of `BUILT_IN` in which two configs differ. If none do, the actors of one can serve the other."""
    return [key for key in BUILT_IN if attrgetter(key)(before) != attrgetter(key)(after)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingActors:
    """The actors of a run that only samples."""

    generator: Engines
    scorers: ScorerSet
    buffer: BufferProxy
    models: Mapping[str, Model]
    """The frozen models as the driver uses them, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingActors:
    """The actors of a run that learns, in their roles, and the size of its model."""

    roles: Roles
    buffer: BufferProxy
    num_parameters: int
    models: Mapping[str, Model]
    """The frozen models as the driver uses them, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Actors:
    """All actors of a run that learns; engines, models and scorers are none if nothing is sampled."""

    engines: Sequence[Supervised]
    generator: Engines | NoEngines
    model_pools: Mapping[str, ModelPool]
    scorer_pools: Mapping[str, ScorerPool]
    learner: LearnerGroup
    transport: WeightTransport
    buffer: BufferProxy
    buffer_actor: Supervised
    log_dir: Path
    """Log folder of the run that started them."""

    @property
    def others(self) -> tuple[Supervised, ...]:
        """All actors but the learner's ranks; the buffer is the last."""
        models = (replica for pool in self.model_pools.values() for replica in pool.replicas)
        scorers = (replica for scorer_pool in self.scorer_pools.values() for replica in scorer_pool.replicas)
        return (*self.engines, *models, *scorers, self.buffer_actor)


class ActorPool:
    """Starts actors, watches them during a run, keeps them alive between runs, ends them."""

    def __init__(self) -> None:
        self._site: Site | None = None
        self._actors: _Actors | None = None
        self._scorers: tuple[Supervised, ...] = ()
        self._scorer_logs: Mapping[str, str] = {}
        self._fleet = Fleet(())

    async def for_training(
        self, resolved: ResolvedRun, claim: Claim, report: ReportEvent, samples: bool
    ) -> TrainingActors:
        """All actors of a run that learns, ready and watched; no engines and scorers when `samples` is false.

        Actors of the last run are used again if they can be reset for this one, and replaced otherwise.
        """
        renewed = await self._renewed(resolved, claim, report) if samples else None
        if renewed is None:
            await self.close()
            renewed = await self._start(await self._open(resolved, claim, report), claim.run_dir, samples)
        actors, size = renewed
        self._fleet.watch()
        scorers = (
            scorer_set(resolved.run, actors.scorer_pools, resolved.reporter.note)
            if samples
            else ScorerSet(scorers={}, common_keys={})
        )
        roles = Roles(
            generator=actors.generator,
            scorers=scorers,
            learner=actors.learner,
            transport=actors.transport,
            buffer=actors.buffer,
        )
        models = clients(actors.model_pools)
        return TrainingActors(roles=roles, buffer=actors.buffer, num_parameters=size, models=models)

    async def for_sampling(self, resolved: ResolvedRun, claim: Claim, report: ReportEvent) -> SamplingActors:
        """The actors of a run that only samples, ready and watched. They are not kept for the next run."""
        await self.close()
        site = await self._open(resolved, claim, report)
        engines, model_pools = spawn_engines(site), spawn_models(site)
        scorer_pools, note = spawn_scorers(site, model_pools), resolved.reporter.note
        buffer, buffer_actor = spawn_buffer(site, claim.run_dir)
        self._scorers = tuple(
            replica for scorer_pool in scorer_pools.values() for replica in scorer_pool.replicas
        )
        self._scorer_logs = _logs(scorer_pools)
        models = [replica for pool in model_pools.values() for replica in pool.replicas]
        everyone = (*engines, *models, *self._scorers, buffer_actor)
        self._fleet = Fleet(everyone)
        await wait_ready(everyone, site.config.cluster.ready_timeout_s)
        self._fleet.watch()
        return SamplingActors(
            generator=Engines(engines),
            scorers=scorer_set(site.run, scorer_pools, note),
            buffer=buffer,
            models=clients(model_pools),
        )

    def scorer_log(self, name: str) -> str:
        """Where the scorer called `name` writes its log."""
        return self._scorer_logs.get(name, f"the log of scorer {name}")

    def progress(self) -> None:
        """Report that a step was finished, which resets the counts of failures."""
        self._fleet.progress()

    async def rest(self) -> None:
        """End the run: its buffer is ended, the other actors stay alive for the next run, unsupervised."""
        await self._fleet.rest()
        if self._site is not None and self._actors is not None:
            self._site.report = _report_nothing
            # The buffer holds the lock on this run's journal, which the next attempt needs.
            self._actors.buffer_actor.kill()

    async def close(self) -> None:
        """End all actors and release their resources."""
        await _close(self._scorers)
        await self._fleet.close()
        if self._site is not None and self._site.group is not None:
            # After the actors: Ray would kill those that still run in the group without closing them.
            remove_placement_group(self._site.group)
        self._site = self._actors = None
        self._fleet, self._scorers = Fleet(()), ()

    async def _renewed(
        self, resolved: ResolvedRun, claim: Claim, report: ReportEvent
    ) -> tuple[_Actors, int] | None:
        """The last run's actors, reset for this run, and their number of parameters; None if not reusable."""
        note, site, before = resolved.reporter.note, self._site, self._actors
        if site is None or before is None or not before.engines:
            return None
        others = built_in(site.config, resolved.config)
        if others:
            note(f"starting new actors: {', '.join(others)} differ from the run before")
            return None
        if site.placement != resolved.placement:
            note("starting new actors: scorers or models need other CPUs or GPUs than in the run before")
            return None
        actors = await self._fitted(site, before, resolved, claim, report)
        limit_s = resolved.config.cluster.ready_timeout_s
        try:
            # The actors are not supervised yet, and calls to an engine have no time limit of their own.
            async with asyncio.timeout(limit_s):
                size = await self._reset(actors, resolved.run)
        except TimeoutError:
            note(f"starting new actors: those of the run before did not answer within {limit_s:g} s")
            return None
        except (LearnerLostError, ActorCallError) as error:
            note(f"starting new actors: {error}")
            return None
        note(f"reusing the actors of the run before; their logs are in {before.log_dir}")
        return actors, size

    async def _open(self, resolved: ResolvedRun, claim: Claim, report: ReportEvent) -> Site:
        config, group = resolved.config, None
        if config.cluster.spawn == "ray":
            group = await reserve(resolved.placement, config.cluster.ready_timeout_s)
        self._site = Site(
            run=resolved.run,
            placement=resolved.placement,
            group=group,
            log_dir=claim.log_dir,
            report=report,
            in_actor=resolved.code.in_actor,
        )
        resolved.reporter.note(f"starting actors; their logs are in {claim.log_dir}")
        return self._site

    async def _start(self, site: Site, run_dir: Path, samples: bool) -> tuple[_Actors, int]:
        engines = spawn_engines(site) if samples else []
        model_pools = spawn_models(site) if samples else {}
        scorer_pools = spawn_scorers(site, model_pools) if samples else {}
        buffer, buffer_actor = spawn_buffer(site, run_dir)
        learner = spawn_learner(site, buffer)
        generator = Engines(engines) if samples else NoEngines()
        transport = HostTransport(learner, generator) if isinstance(generator, Engines) else NoTransport()
        actors = _Actors(
            engines=engines,
            generator=generator,
            model_pools=model_pools,
            scorer_pools=scorer_pools,
            learner=learner,
            transport=transport,
            buffer=buffer,
            buffer_actor=buffer_actor,
            log_dir=site.log_dir,
        )
        self._take(actors)
        limit_s = site.config.cluster.ready_timeout_s
        size, _ = await asyncio.gather(actors.learner.ready(), wait_ready(actors.others, limit_s))
        return actors, size

    async def _fitted(
        self, site: Site, before: _Actors, resolved: ResolvedRun, claim: Claim, report: ReportEvent
    ) -> _Actors:
        """The engines and ranks of `before`, with this run's models, scorers and buffer; those are ready."""
        # `site` is shared with actors that stay: what they start or report from now on belongs to this run.
        site.run, site.log_dir, site.report = resolved.run, claim.log_dir, report
        site.in_actor = resolved.code.in_actor
        model_pools = spawn_models(site, before.model_pools)
        scorer_pools = spawn_scorers(site, model_pools, before.scorer_pools)
        buffer, buffer_actor = spawn_buffer(site, claim.run_dir)
        actors = replace(
            before,
            model_pools=model_pools,
            scorer_pools=scorer_pools,
            buffer=buffer,
            buffer_actor=buffer_actor,
        )
        self._take(actors)  # before anything is awaited: if that fails, `close` must end the new ones too
        await _end([each for each in before.others[:-1] if each not in actors.others])
        new = [each for each in actors.others if each not in before.others]
        await wait_ready(new, resolved.config.cluster.ready_timeout_s)
        return actors

    async def _reset(self, actors: _Actors, run: BoundRun) -> int:
        """Reset engines and ranks as if just started for this run: weights of step 0, no requests.

        Returns the number of parameters.
        """
        learner = actors.learner
        self._fleet.progress()
        await learner.reset(run, actors.buffer)
        # Loading version 0 into an engine that has a later one also drops its running requests.
        await actors.transport.sync(0)
        await actors.generator.resume()
        return await learner.ready()

    def _take(self, actors: _Actors) -> None:
        """Make these the actors to supervise and, at the end, to kill."""
        self._actors = actors
        self._scorer_logs = _logs(actors.scorer_pools)
        self._scorers = tuple(
            replica for scorer_pool in actors.scorer_pools.values() for replica in scorer_pool.replicas
        )
        self._fleet = Fleet((actors.learner, *actors.others))


def _logs(scorer_pools: Mapping[str, ScorerPool]) -> dict[str, str]:
    return {name: scorer_pool.log for name, scorer_pool in scorer_pools.items()}


def _report_nothing(kind: str, actor: str, **fields: str | float) -> None:
    """Drop an event: between two runs there is no run directory to write it to."""


async def _end(scorers: Sequence[Supervised]) -> None:
    await _close(scorers)
    for scorer in scorers:
        scorer.kill()


async def _close(scorers: Sequence[Supervised]) -> None:
    """Ask scorers to end their child processes, which would survive a SIGKILL of the scorer."""
    with suppress(Exception):
        async with asyncio.timeout(_CLOSE_LIMIT_S):
            await asyncio.gather(
                *(call_once(each, ScorerActor.close) for each in scorers), return_exceptions=True
            )
