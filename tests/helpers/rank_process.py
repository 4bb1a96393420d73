"""Learner ranks in processes of their own, each reused for one configuration after the other.

Importing DeepSpeed takes longer than all that one test does with it, so the tests of the learner share three
processes: a group of one rank and a group of two. Light imports only: the environment is set before torch.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from cluster.actor_process import Blueprint, ProcessSetup, build, host_environment, prepare_process
from configs.kinds.base import load_target

LIMIT_S = 120.0


def serve(connection: Connection, setup: ProcessSetup) -> None:
    """Answer (method, arguments) until None: "build" makes the actor, "module:function" runs a function."""
    prepare_process(setup)
    actor: object = None
    while (message := connection.recv()) is not None:
        method, arguments = message
        try:
            if method == "build":
                actor = None
                gc.collect()  # the last configuration's engine, before the next one takes its memory
                actor, answer = build(arguments[0]), None
            else:
                target = load_target(method) if ":" in method else getattr(actor, method)
                answer = target(*arguments)
        except Exception as error:
            connection.send((False, error))
        else:
            connection.send((True, answer))


class RankProcess:
    """A `cluster.spawn.Handle` to an actor in a child process, called through a pipe."""

    def __init__(self, label: str, log_dir: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.label = label
        self._connection, theirs = context.Pipe()
        setup = ProcessSetup(
            label=label, log_file=str(log_dir / f"{label}.log"), environment=host_environment(1, "cpu")
        )
        self._process = context.Process(target=serve, args=(theirs, setup), daemon=True)
        self._process.start()
        theirs.close()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix=label)

    def _exchange(self, method: str, arguments: tuple[object, ...]) -> object:
        self._connection.send((method, arguments))
        if not self._connection.poll(LIMIT_S):
            raise TimeoutError(f"{self.label} must answer {method} within {LIMIT_S:g} s")
        succeeded, answer = self._connection.recv()
        if not succeeded:
            raise answer
        return answer

    async def call(self, method: str, *arguments: object) -> object:
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._exchange, method, arguments
        )

    async def call_ref(self, method: str, *arguments: object) -> object:
        return await self.call(method, *arguments)

    async def stalled_for_s(self) -> float:
        return 0.0

    async def ready(self) -> object:
        return await self.call("ready")

    def kill(self, force: bool = False) -> None:
        self._process.kill()
        self._process.join()
        self._thread.shutdown(wait=False, cancel_futures=True)


async def build_all(handles: Sequence[RankProcess], blueprints: Sequence[Blueprint]) -> None:
    """Build one actor in each process at once, as ranks that meet in their constructor need it."""
    pairs = zip(handles, blueprints, strict=True)
    await asyncio.gather(*(handle.call("build", blueprint) for handle, blueprint in pairs))
