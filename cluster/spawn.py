"""Start actors and call them: in Ray processes, or all in this process for use with a debugger.

The rest of `cluster` uses an actor only through its `Handle`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.requests import EngineFailedError
from cluster.actor_process import Blueprint, Host, ProcessId, ProcessSetup, build, started_at

_MAX_CALLS: Final = 1_000_000
"""Calls that an actor may have in flight. By default Ray starts 1,000: with a group per call, a ping would
wait behind the groups of a large step or evaluation, and the actor would be taken for one that hangs."""


class ActorCallError(RuntimeError):
    """An actor failed permanently; the message has the reason."""


class ActorLostError(ActorCallError):
    """An actor died, hangs, or exceeded the time limit of a call. A replacement may succeed."""


class Handle(Protocol):
    """One actor.

    `call` returns a method's result. `call_ref` also waits for it, but leaves it on the actor's node and
    returns a reference, which can be an argument of calls to other actors.
    """

    label: str

    async def call(self, method: str, *arguments: object) -> Any: ...

    async def call_ref(self, method: str, *arguments: object) -> object: ...

    async def stalled_for_s(self) -> float: ...

    async def ready(self) -> Any: ...

    def kill(self, force: bool = False) -> None: ...


class RayHandle:
    """An actor in a Ray process."""

    def __init__(self, label: str, actor: Any, limit_s: float | None, log_file: str = "") -> None:
        self.label, self._actor, self._limit_s = label, actor, limit_s
        self._log_file = log_file
        self._process: ProcessId | None = None

    async def call(self, method: str, *arguments: object) -> Any:
        """Call `method` and return its result.

        Raises:
            ActorLostError: the actor died, can no longer be used or did not answer within the limit.
            Exception: what the method raised, with its own type.
        """
        return await self._wait(self._actor.call.remote(method, *arguments), method)

    async def call_ref(self, method: str, *arguments: object) -> object:
        """A reference to the result, once it exists; raises as `call`."""
        # Awaiting `result` would copy it to the driver; `done` is an empty second return of the same task.
        result, done = self._actor.call_ref.options(num_returns=2).remote(method, *arguments)
        await self._wait(done, method)
        return result

    async def stalled_for_s(self) -> float:
        """Seconds since the actor last made progress, as it measures that itself."""
        return await self._wait(self._actor.stalled_for_s.remote(), "stalled_for_s")  # type: ignore[no-any-return]

    async def ready(self) -> Any:
        """Wait for the constructor, then for the actor's `ready`; returns its result."""
        result = await self.call("ready")
        self._process = await self._wait(self._actor.process.remote(), "process")
        return result

    async def _wait(self, reference: Any, method: str) -> Any:
        try:
            return await asyncio.wait_for(_as_future(reference), self._limit_s)
        except ray.exceptions.RayTaskError as error:
            # The method's own exception, so that callers can catch it by type.
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, EngineFailedError):
                raise ActorLostError(f"{self.label}: {cause}") from error
            raise cause from error
        except ray.exceptions.RayActorError as error:
            raise ActorLostError(
                f"{self.label} died during {method}: {_why(error, self._log_file)}"
            ) from error
        except (
            ray.exceptions.RayError
        ) as error:  # its node failed, it was out of memory, or its result is lost
            raise ActorLostError(f"{self.label} was lost during {method}: {type(error).__name__}") from error
        except TimeoutError as error:
            raise ActorLostError(f"{self.label} did not answer {method} within {self._limit_s} s") from error

    def kill(self, force: bool = False) -> None:
        """End the process. `force` also sends SIGKILL, which ends even a stopped process (SIGSTOP)."""
        # By a message, to which a stopped process does not react.
        ray.kill(self._actor)
        process = self._process
        if force and process is not None and process.host == socket.gethostname():
            with suppress(ProcessLookupError):
                if started_at(process.pid) == process.started:  # else the pid now belongs to another process
                    os.kill(process.pid, signal.SIGKILL)


def _why(error: ray.exceptions.RayActorError, log_file: str) -> str:
    """What the constructor raised (the last line of its traceback), or where to look."""
    text = str(error).strip()
    if "creation task" in text:
        return text.splitlines()[-1].removeprefix("ValueError: ")  # what a reader can act on
    return f"its process has ended; see {log_file}" if log_file else "its process has ended"


async def _as_future(reference: Any) -> Any:
    """A coroutine for `asyncio.wait_for`: a Ray reference is only awaitable."""
    return await reference


class LocalHandle:
    """An actor in this process: plain methods run on its own thread, async methods on the caller's loop."""

    def __init__(self, label: str, actor: object) -> None:
        self.label, self._actor = label, actor
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix=label)

    async def call(self, method: str, *arguments: object) -> Any:
        """Call `method` and return its result. An actor in this process cannot be lost."""
        function = getattr(self._actor, method)
        if inspect.iscoroutinefunction(function):
            return await function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def call_ref(self, method: str, *arguments: object) -> object:
        """The result itself: actors in one process share memory."""
        return await self.call(method, *arguments)

    async def stalled_for_s(self) -> float:
        """Always 0.0: if the actor hung, so would this process."""
        return 0.0

    async def ready(self) -> Any:
        """The result of the actor's `ready`."""
        return await self.call("ready")

    def kill(self, force: bool = False) -> None:
        """Refuse further calls and release the actor's resources."""
        close = getattr(self._actor, "close", None)
        if close is not None and not inspect.iscoroutinefunction(close):
            close()
        self._thread.shutdown(wait=False, cancel_futures=True)


def spawn_ray(
    setup: ProcessSetup,
    blueprint: Blueprint,
    *,
    num_cpus: float,
    num_gpus: float,
    group: PlacementGroup | None,
    bundle: int,
    limit_s: float | None,
    name: str = "",
) -> RayHandle:
    """Start an actor process, with a `name` in Ray if given. Not detached, so Ray ends it with the driver.

    The environment is set before its Python starts: unpickling the arguments may import torch, whose OpenMP
    reads the environment only once.
    """
    strategy: Any = "DEFAULT"
    if group is not None:
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
    actor_class = ray.remote(Host)
    options = actor_class.options(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        scheduling_strategy=strategy,
        runtime_env={"env_vars": dict(setup.environment)},
        max_concurrency=_MAX_CALLS,
        name=name or None,
    )
    actor = options.remote(setup, blueprint)
    return RayHandle(setup.label, actor, limit_s, setup.log_file)


def spawn_local(setup: ProcessSetup, blueprint: Blueprint) -> LocalHandle:
    """Build the actor in this process. Its output goes to the terminal, its environment to this process."""
    os.environ.update(setup.environment)
    return LocalHandle(setup.label, build(blueprint))


async def wait_ready(handles: Sequence[Handle], limit_s: float) -> list[Any]:
    """Wait until every actor answers `ready`.

    Raises:
        ActorLostError: some did not within `limit_s` seconds; the message names them.
    """
    tasks = [asyncio.create_task(handle.ready(), name=handle.label) for handle in handles]
    try:
        _, waiting = await asyncio.wait(tasks, timeout=limit_s, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
        if waiting:
            names = ", ".join(sorted({task.get_name() for task in waiting}))
            raise ActorLostError(f"{names} did not start within cluster.ready_timeout_s = {limit_s:g}")
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
