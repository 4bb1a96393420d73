"""The processes actors live in: set up the process, then import and build the actor, then pass calls on.

An actor's module (torch, vLLM, DeepSpeed) is imported only after environment and log file are set,
because all of them read the environment once, at import.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSetup:
    """What an actor's process needs before its imports."""

    label: str
    log_file: str
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """Which plain class to build ("module:Class") with which arguments."""

    target: str
    arguments: tuple[object, ...]


def prepare_process(setup: ProcessSetup) -> None:
    """Apply environment and output redirection to this process."""
    os.environ.update(setup.environment)
    if setup.log_file:
        os.makedirs(os.path.dirname(setup.log_file), exist_ok=True)
        descriptor = os.open(setup.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)


def build(blueprint: Blueprint) -> object:
    """Import the class and construct it."""
    module, _, name = blueprint.target.partition(":")
    return getattr(importlib.import_module(module), name)(*blueprint.arguments)


class SyncHost:
    """Hosts an actor with plain methods; calls run one after the other in the order they were made."""

    def __init__(self, setup: ProcessSetup, blueprint: Blueprint) -> None:
        prepare_process(setup)
        self._label = setup.label
        self._actor = build(blueprint)

    def call(self, method: str, *arguments: object) -> object:
        return getattr(self._actor, method)(*arguments)

    def __repr__(self) -> str:
        return self._label


class AsyncHost:
    """Hosts an actor with async methods; calls interleave."""

    def __init__(self, setup: ProcessSetup, blueprint: Blueprint) -> None:
        prepare_process(setup)
        self._label = setup.label
        self._actor = build(blueprint)

    async def call(self, method: str, *arguments: object) -> object:
        return await getattr(self._actor, method)(*arguments)

    def __repr__(self) -> str:
        return self._label


def host_environment(threads: int, device: str) -> dict[str, str]:
    """Environment of every engine and learner process: quiet, offline-safe, and CPU-safe on CPU."""
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
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
            # Compiling the sampler takes 20 s on the first call and brings nothing at these sizes.
            "TORCHDYNAMO_DISABLE": "1",
            # An idle OpenMP team that spins would take the core from whoever's turn it is.
            "KMP_BLOCKTIME": "0",
            # glibc gives a second thread an arena that hands its memory back after every engine step.
            "MALLOC_ARENA_MAX": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
    return environment
