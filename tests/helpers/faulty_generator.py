"""Generators with a known fault or a window to look through, for the tests of syncs and of failures."""

from __future__ import annotations

import threading
from collections.abc import Callable

from vllm.engine.arg_utils import EngineArgs
from vllm.outputs import RequestOutput

import actors.generator
import actors.weight_transfer
from actors.generator import GeneratorActor
from configs.schema import RunConfig


def _leave_stale(model: object) -> None:
    """What vLLM does by itself after a layerwise update on CPU."""


class StaleHeadGenerator(GeneratorActor):
    """Loads weights without `repack_tied_head`."""

    async def load(self, weights: object) -> None:
        actors.weight_transfer.repack_tied_head = _leave_stale
        await super().load(weights)  # type: ignore[arg-type]


class ObstructedGenerator(GeneratorActor):
    """Its engine can be made to hang in a step, to fail in one, and to pause after some."""

    def __init__(self, config: RunConfig, device: str) -> None:
        super().__init__(config, device)
        self._free, self._fails, self._steps_left = threading.Event(), False, 0
        self._free.set()
        step = self._engine.step

        def obstructed() -> object:
            self._free.wait()
            if self._fails:
                raise ValueError("no more")
            found = step()
            self._steps_left -= 1
            self._paused = self._paused or self._steps_left == 0
            return found

        self._engine.step = obstructed  # type: ignore[assignment,method-assign]

    async def hang(self) -> None:
        self._free.clear()

    async def go_on(self) -> None:
        self._free.set()

    async def fail(self) -> None:
        self._fails = True

    async def run_steps(self, number: int) -> None:
        """Go on for that many steps."""
        self._steps_left = number
        await self.resume()

    async def paused(self) -> bool:
        return self._paused

    async def num_queued(self) -> int:
        """Completions that wait for a seat."""
        return len(self._queued)


class CachingGenerator(ObstructedGenerator):
    """Keeps prefixes on CPU too, and tells how many tokens of each prompt it found in its cache."""

    def __init__(self, config: RunConfig, device: str) -> None:
        plain: Callable[[RunConfig, str], EngineArgs] = actors.generator.engine_args

        def caching(config: RunConfig, device: str) -> EngineArgs:
            args = plain(config, device)
            args.enable_prefix_caching, args.block_size = True, 32
            return args

        actors.generator.engine_args = caching
        self.num_cached: list[int] = []
        super().__init__(config, device)

    def _finish(self, output: RequestOutput) -> None:
        self.num_cached.append(output.num_cached_tokens or 0)
        super()._finish(output)

    async def cached(self) -> list[int]:
        return self.num_cached
