"""Publishing weights and proving that they arrived: names and checksums on the way, then a logprob probe.

After every load, engine and learner score the same fixed sequences. The proof also measures its own power:
how far the learner's probe moved in this step, which is the gap a stale engine would show.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from configs.schema import RunConfig
from trainer.diagnose import Probe, gap
from trainer.roles import Generator, Learner, WeightsRef

TOLERANCE = {"fp32": 1.0e-3, "bf16": 5.0e-2}
"""Mean |engine - learner| logprob in nats that two right implementations stay under, by compute type."""
_RESOLUTION = {"fp32": 2.0e-5, "bf16": 0.2}
"""A probe that moved less than this in a step cannot tell the step before from this one."""


class WeightSyncError(RuntimeError):
    """Engine and learner hold different weights; the message names the fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The last publish: what the next one is compared with."""

    version: int
    weights: WeightsRef
    expected: np.ndarray
    """The learner's probe logprobs."""


def tolerance(config: RunConfig) -> float:
    """`sync.tolerance`, or the default of the model's dtype."""
    return config.sync.tolerance or TOLERANCE[config.model.dtype]


async def publish(
    version: int,
    learner: Learner,
    generator: Generator,
    probes: Sequence[Probe],
    previous: Published | None,
    config: RunConfig,
) -> tuple[Published, dict[str, float]]:
    """Send version `version` to every engine and prove it.

    Raises:
        WeightSyncError: an engine refused the weights, or its answers are not the learner's of this step.
    """
    weights = await learner.publish(version)
    try:
        _, expected = await asyncio.gather(generator.load(weights), _probe(learner, probes))
    except ValueError as error:
        raise WeightSyncError(f"weight sync to version {version} failed: {error}") from error
    published = Published(version=version, weights=weights, expected=expected)
    if not probes:
        return published, {}
    power = (
        gap(expected, previous.expected) if previous is not None and len(previous.expected) else float("nan")
    )
    worst = 0.0
    for engine, observed in enumerate(await generator.probe(probes)):
        found = gap(observed, expected)
        worst = max(worst, found)
        stale_alike = power > _RESOLUTION[config.model.dtype] and found > 0.25 * power
        if found > tolerance(config) or stale_alike or not np.isfinite(found):
            before = previous.weights if previous is not None else None
            fault = await learner.explain(probes, observed, weights, before)
            raise WeightSyncError(
                f"after weight sync to version {version}, engine {engine} and learner differ by {found:.2e} "
                f"nats on the probes (one stale step would show {power:.2e}): {fault}"
            )
    return published, {
        "sync/probe_gap": worst,
        "sync/probe_power": power,
        "sync/proven": float(power > _RESOLUTION[config.model.dtype]),
    }


async def _probe(learner: Learner, probes: Sequence[Probe]) -> np.ndarray:
    return await learner.probe(probes) if probes else np.zeros(0, np.float32)


def check_mismatch(mean_abs: float, config: RunConfig) -> None:
    """The gate at lag 0: sampler and learner must agree on the training tokens themselves.

    Raises:
        WeightSyncError: the mean absolute logprob difference is beyond the tolerance.
    """
    if config.rollout.max_lag == 0 and mean_abs > tolerance(config):
        raise WeightSyncError(
            f"sampler and learner logprobs differ by {mean_abs:.2e} nats on the training tokens "
            f"(tolerance {tolerance(config):.0e}): the samples are not from the policy being trained"
        )
