"""Starting actors and calling them: in Ray processes, or all in this process for a debugger.

A `Handle` is the only thing the rest of `cluster` knows of an actor. `call` waits for the result; `start`
returns a reference that can be handed to another actor's call, which then fetches it without a copy through
the driver.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import os
from collections.abc import Sequence
from typing import Any, Protocol

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.hosts import AsyncHost, Blueprint, ProcessSetup, SyncHost, build


class ActorCallError(RuntimeError):
    """An actor did not answer: it died, or took longer than the limit."""


class Handle(Protocol):
    """One actor."""

    label: str

    async def call(self, method: str, *arguments: object) -> Any: ...

    def start(self, method: str, *arguments: object) -> object: ...

    def kill(self) -> None: ...


class RayHandle:
    """An actor in a Ray process."""

    def __init__(self, label: str, actor: Any, limit_s: float) -> None:
        self.label, self._actor, self._limit_s = label, actor, limit_s

    def start(self, method: str, *arguments: object) -> object:
        return self._actor.call.remote(method, *arguments)

    async def call(self, method: str, *arguments: object) -> Any:
        """The result of `method`.

        Raises:
            ActorCallError: the actor died or did not answer within the limit.
            Exception: what the method raised, as it raised it.
        """
        reference = self.start(method, *arguments)
        try:
            return await asyncio.wait_for(_as_future(reference), self._limit_s)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from error
        except ray.exceptions.RayActorError as error:
            raise ActorCallError(f"{self.label} died during {method}: {_why(error)}") from error
        except TimeoutError as error:
            raise ActorCallError(
                f"{self.label} did not answer {method} within {self._limit_s:g} s"
            ) from error

    def kill(self) -> None:
        ray.kill(self._actor)


def _why(error: ray.exceptions.RayActorError) -> str:
    """What a constructor raised (the last line of its traceback), or where to look for anything else."""
    text = str(error).strip()
    return text.splitlines()[-1] if "creation task" in text else "its process is gone; its log may say why"


async def _as_future(reference: Any) -> Any:
    return await reference


class LocalHandle:
    """An actor in this process: plain methods on a thread of its own, async ones on the caller's loop."""

    def __init__(self, label: str, actor: object) -> None:
        self.label, self._actor = label, actor
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix=label)

    def start(self, method: str, *arguments: object) -> object:
        return asyncio.ensure_future(self.call(method, *arguments))

    async def call(self, method: str, *arguments: object) -> Any:
        ready = [await a if isinstance(a, asyncio.Future) else a for a in arguments]
        function = getattr(self._actor, method)
        if inspect.iscoroutinefunction(function):
            return await function(*ready)
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *ready)

    def kill(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def spawn_ray(
    setup: ProcessSetup,
    blueprint: Blueprint,
    *,
    is_async: bool,
    num_cpus: float,
    num_gpus: float,
    group: PlacementGroup | None,
    bundle: int,
    limit_s: float,
) -> RayHandle:
    """Start an actor process. It dies with the driver: nothing is detached.

    Its environment is set before its Python starts: reading the arguments may import torch, whose OpenMP
    looks at the environment only once.
    """
    host: type = AsyncHost if is_async else SyncHost
    strategy: Any = "DEFAULT"
    if group is not None:
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
    actor_class = ray.remote(host)
    options = actor_class.options(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        scheduling_strategy=strategy,
        runtime_env={"env_vars": dict(setup.environment)},
    )
    actor = options.remote(setup, blueprint)
    return RayHandle(setup.label, actor, limit_s)


def spawn_local(setup: ProcessSetup, blueprint: Blueprint) -> LocalHandle:
    """Build the actor here; its output stays on the terminal, its environment becomes this process's."""
    os.environ.update(setup.environment)
    return LocalHandle(setup.label, build(blueprint))


async def wait_ready(handles: Sequence[Handle], limit_s: float) -> list[Any]:
    """Wait until every actor answers `ready`.

    Raises:
        ActorCallError: naming those that did not within `limit_s`.
    """
    tasks = [asyncio.create_task(handle.call("ready"), name=handle.label) for handle in handles]
    try:
        _, waiting = await asyncio.wait(tasks, timeout=limit_s, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
        if waiting:
            names = ", ".join(sorted({task.get_name() for task in waiting}))
            raise ActorCallError(f"{names} did not start within cluster.ready_timeout_s = {limit_s:g}")
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
