"""Publishing weights and verifying that they arrived: names and checksums, then logprobs of fixed sequences.

After every sync, engines and learner score the same sequences (probes). The check also measures its own
power: how far the learner's logprobs moved in this step, which is the gap that stale weights would show.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from configs.schema import PROBE_TOLERANCE, RunConfig
from trainer.roles import Diagnosis, Generator, Learner, WeightTransport
from trainer.step_records import Probe
from trainer.weights.diagnose import gap

_FLOOR = 2.0e-5
"""Nats: probes that moved less in a step moved too little to detect stale weights."""
_NOISE_MULTIPLE = 8.0
"""So did probes that moved less than this many times the gap of equal weights, measured at the first sync."""
_EXPLAIN_LIMIT_S = 120.0


class WeightSyncError(RuntimeError):
    """Engine and learner hold different weights; the message names the fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What the next publish is compared with."""

    version: int
    expected: np.ndarray
    """The learner's probe logprobs."""
    noise: float
    """Largest gap of any engine at the first sync, when engine and learner had read the same file."""


def tolerance(config: RunConfig) -> float:
    """`sync.tolerance`, or the default of the model's dtype."""
    return config.sync.tolerance or PROBE_TOLERANCE[config.model.dtype]


async def publish(
    version: int,
    transport: WeightTransport,
    learner: Learner,
    generator: Generator,
    probes: Sequence[Probe],
    previous: Published | None,
    config: RunConfig,
) -> tuple[Published, dict[str, float]]:
    """Sync the learner's weights, as `version`, to every engine, and verify it by the probes.

    Raises:
        WeightSyncError: an engine refused the weights, or its answers are not the learner's of this step.
    """
    try:
        diagnosis, expected = await asyncio.gather(transport.sync(version), _probe(learner, probes))
    except ValueError as error:
        raise WeightSyncError(f"weight sync to version {version} failed: {error}") from error
    found = await generator.probe(probes) if probes else []
    gaps = [gap(observed, expected) for observed in found]
    worst = max(gaps, default=0.0)
    noise = previous.noise if previous is not None else worst
    published = Published(version=version, expected=expected, noise=noise)
    if not probes:
        return published, {}
    power = gap(expected, previous.expected) if previous is not None else float("nan")
    proven = power > max(_FLOOR, _NOISE_MULTIPLE * noise)
    for engine, size in enumerate(gaps):
        if not size <= tolerance(config) or (proven and size > 0.25 * power):
            fault = await _explain(diagnosis, probes, found[engine])
            raise WeightSyncError(
                f"after weight sync to version {version}, engine {engine} and learner differ by {size:.2e} "
                f"nats on the probes (one stale step would show {power:.2e}): {fault}"
            )
    return published, {"sync/probe_gap": worst, "sync/probe_power": power, "sync/proven": float(proven)}


async def _explain(diagnosis: Diagnosis, probes: Sequence[Probe], observed: np.ndarray) -> str:
    """What the diagnosis finds; whatever happens to it, the gap itself must be reported."""
    try:
        async with asyncio.timeout(_EXPLAIN_LIMIT_S):
            return await diagnosis(probes, observed)
    except Exception as error:
        return f"not diagnosed ({type(error).__name__}: {error})"


async def _probe(learner: Learner, probes: Sequence[Probe]) -> np.ndarray:
    return await learner.probe(probes) if probes else np.zeros(0, np.float32)


def check_mismatch(mean_abs: float, config: RunConfig) -> None:
    """The gate at lag 0: sampler and learner must agree on the training tokens themselves.

    Raises:
        WeightSyncError: the mean absolute logprob difference is beyond the tolerance.
    """
    if config.rollout.max_lag == 0 and not mean_abs <= tolerance(config):  # NaN must not pass
        raise WeightSyncError(
            f"sampler and learner logprobs differ by {mean_abs:.2e} nats on the training tokens "
            f"(tolerance {tolerance(config):.0e}): the samples are not from the policy being trained"
        )
