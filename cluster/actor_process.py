"""An actor's process: set it up, import and build the actor, forward calls to it.

An actor's module is imported only after the environment and the log file are set, because torch, vLLM and
DeepSpeed read the environment once, at import.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import socket
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from actors.secrets import NO_SECRETS, Secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSetup:
    """What an actor's process needs before its imports."""

    label: str
    log_file: str
    environment: Mapping[str, str] = field(default_factory=dict)
    cores: tuple[int, int] | None = None
    """(first, number) among the cores this process may use; None for all of them."""
    secrets: Secrets = NO_SECRETS
    """Secrets that this process receives, as an argument: Ray shows a `runtime_env` in its dashboard."""
    foreign_secrets: tuple[str, ...] = ()
    """Names of other scorers' secrets, removed in case the cluster's environment has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """The class to build ("module:Class") and the arguments of its constructor."""

    target: str
    arguments: tuple[object, ...]


def prepare_process(setup: ProcessSetup) -> None:
    """Apply cores, environment and output redirection to this process."""
    if setup.cores is not None:
        first, number = setup.cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[first : first + number])
    for name in setup.foreign_secrets:
        os.environ.pop(name, None)
    os.environ.update(setup.environment)
    setup.secrets.enter_environment()
    setup.secrets.mask_output()
    if setup.log_file:
        os.makedirs(os.path.dirname(setup.log_file), exist_ok=True)
        # Appended to: a replaced actor has the same label, and its last words explain why it was replaced.
        descriptor = os.open(setup.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        sys.stdout.flush()
        sys.stderr.flush()
        # The descriptors, not sys.stdout: output of C++ libraries and of child processes goes there too.
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)


def build(blueprint: Blueprint) -> object:
    """Import the class and construct it."""
    module, _, name = blueprint.target.partition(":")
    return getattr(importlib.import_module(module), name)(*blueprint.arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """Identifies a process even after its pid is reused: `started` is in clock ticks since boot."""

    host: str
    pid: int
    started: int


def started_at(pid: int) -> int | None:
    """Start time of process `pid` on this machine, in clock ticks since boot; None if it has ended."""
    try:
        # Field 2, the command's name in parentheses, may hold spaces and parentheses: split after the last.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def this_process() -> ProcessId:
    """The current process."""
    return ProcessId(host=socket.gethostname(), pid=os.getpid(), started=started_at(os.getpid()) or 0)


class Host:
    """Hosts one actor. Plain methods run one at a time on the thread that built it; async methods interleave.

    The event loop stays free while a plain method runs, so that the process still answers pings.
    """

    def __init__(self, setup: ProcessSetup, blueprint: Blueprint) -> None:
        prepare_process(setup)
        self._label = setup.label
        # One thread for building and all calls: torch keeps the CUDA device and autograd modes per thread.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=setup.label)
        self._actor = self._thread.submit(build, blueprint).result()

    async def call(self, method: str, *arguments: object) -> object:
        """Call a method of the actor and return its result."""
        function = getattr(self._actor, method)
        if inspect.iscoroutinefunction(function):
            return await function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def call_ref(self, method: str, *arguments: object) -> tuple[object, None]:
        """As `call`, with a second result None: waiting for it does not fetch the first from its node."""
        return await self.call(method, *arguments), None

    async def stalled_for_s(self) -> float:
        """Seconds since the actor last made progress, if it measures that; else 0.0."""
        own = getattr(self._actor, "stalled_for_s", None)
        return await own() if own is not None else 0.0

    async def process(self) -> ProcessId:
        """The process that hosts the actor."""
        return this_process()

    def __repr__(self) -> str:
        return self._label


def host_environment(threads: int, device: str) -> dict[str, str]:
    """Environment of an actor's process: few log lines, no telemetry, and on CPU settings that suit it."""
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        # vLLM's engine stays in the actor's process: killing the actor then leaves no child behind.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "DO_NOT_TRACK": "1",
    }
    if device == "cpu":
        environment |= {
            "CUDA_VISIBLE_DEVICES": "",
            "DS_ACCELERATOR": "cpu",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # Compiling the sampler takes 20 s on the first call and saves nothing at these sizes.
            "TORCHDYNAMO_DISABLE": "1",
            # Idle OpenMP threads would otherwise spin, and take the core from the actor that works.
            "KMP_BLOCKTIME": "0",
            # A second glibc arena would return its memory to the system, and fault it in again, every step.
            "MALLOC_ARENA_MAX": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
    return environment
