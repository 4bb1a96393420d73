"""How weights travel from the learner's ranks to the engines: `trainer.roles.WeightTransport` over actors.

A transport owns both sides of a sync, and loads the weights into an engine that replaces a lost one. Through
host memory, the learner writes first and the engines read later; a broadcast needs both at the same time.

To write another transport, use `LearnerGroup.all` (ends all ranks when one is lost), `cluster.calls.call`
(repeats the call on an engine's replacement), `call_once` (does not repeat it) and `Engines.on_replaced`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cluster.calls import GeneratorActor, call
from cluster.role_proxies import Engines, LearnerGroup
from cluster.spawn import Handle
from trainer.roles import Diagnosis
from trainer.step_records import Probe
from trainer.weights.packed import PackedWeights


class HostTransport:
    """Transport through host memory: rank 0 packs all weights into one buffer, which each engine loads.

    The buffer of the last sync is kept for replaced engines. The one before it is kept as long as the caller
    keeps the diagnosis.
    """

    def __init__(self, learner: LearnerGroup, engines: Engines) -> None:
        self._learner, self._engines = learner, engines
        self._weights: PackedWeights | None = None
        engines.on_replaced = self._bring_up

    async def sync(self, version: int) -> Diagnosis:
        """See `trainer.roles.WeightTransport`."""
        # Kept before the engines load: an engine replaced in the middle then gets the new weights.
        before = self._weights
        weights = self._weights = await self._learner.publish(version)
        await self._engines.load(weights)

        # Keeps the weights of two versions alive only as long as somebody may ask which of them an engine
        # has.
        async def explain(probes: Sequence[Probe], observed: np.ndarray) -> str:
            return await self._learner.explain(probes, observed, weights, before)

        return explain

    async def _bring_up(self, engine: Handle) -> None:
        """Load the weights of the last sync; before the first, an engine has those of the model folder."""
        if self._weights is not None:
            await call(engine, GeneratorActor.load, self._weights)


class NoTransport:
    """The transport of a run on saved rollouts, which has no engines to send weights to."""

    async def sync(self, version: int) -> Diagnosis:
        """See `trainer.roles.WeightTransport`."""
        return _nothing_to_explain


async def _nothing_to_explain(probes: Sequence[Probe], observed: np.ndarray) -> str:
    raise AssertionError("without engines there are no probes to explain")
