"""A generator with a known fault, for the tests of the weight proof: its tied head is never repacked."""

from __future__ import annotations

import actors.weight_transfer
from actors.generator import GeneratorActor


def _leave_stale(model: object) -> None:
    """What vLLM does by itself after a layerwise update on CPU."""


class StaleHeadGenerator(GeneratorActor):
    """Loads weights without `repack_tied_head`."""

    async def load(self, weights: object) -> None:
        actors.weight_transfer.repack_tied_head = _leave_stale
        await super().load(weights)  # type: ignore[arg-type]
