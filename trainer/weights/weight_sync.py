"""Publishing weights and verifying them: names and checksums, then logprobs of fixed sequences (probes).

After every sync, engines and learner score the same probes. The check also measures its own power: the change
of the learner's probe logprobs in this step, which is the gap that stale weights would show.
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
"""Nats: if the probes changed less in a step, stale weights cannot be detected."""
_NOISE_MULTIPLE = 8.0
"""The same if they changed less than this multiple of the gap between equal weights (at the first sync)."""
_EXPLAIN_LIMIT_S = 120.0


class WeightSyncError(RuntimeError):
    """Engine and learner hold different weights; the message names the fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The result of a publish, which the next one is compared with."""

    version: int
    expected: np.ndarray
    """The learner's probe logprobs."""
    noise: float
    """Largest gap of any engine at the first sync, in nats: engine and learner had loaded the same files."""


def tolerance(config: RunConfig) -> float:
    """`sync.tolerance`, or the default for the model's dtype; nats."""
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
    """Sync the learner's weights, as `version`, to every engine, and verify them with the probes.

    Returns the record for the next publish, and the metrics sync/probe_gap and sync/probe_power (nats) and
    sync/proven (1 if stale weights would have been detected).

    Raises:
        WeightSyncError: an engine refused the weights, or its probe logprobs differ from the learner's.
    """
    # The learner's probe does not depend on the engines, so it runs during the transfer.
    try:
        diagnosis, expected = await asyncio.gather(transport.sync(version), _probe(learner, probes))
    except ValueError as error:
        raise WeightSyncError(f"weight sync to version {version} failed: {error}") from error
    observed = await generator.probe(probes) if probes else []
    gaps = [gap(logprobs, expected) for logprobs in observed]
    worst = max(gaps, default=0.0)
    noise = previous.noise if previous is not None else worst
    published = Published(version=version, expected=expected, noise=noise)
    if not probes:
        return published, {}
    power = gap(expected, previous.expected) if previous is not None else float("nan")
    proven = power > max(_FLOOR, _NOISE_MULTIPLE * noise)
    for engine, size in enumerate(gaps):
        # `not <=` so that NaN fails. A gap near the power means stale weights even within the tolerance.
        if not size <= tolerance(config) or (proven and size > 0.25 * power):
            fault = await _explain(diagnosis, probes, observed[engine])
            raise WeightSyncError(
                f"after weight sync to version {version}, engine {engine} and learner differ by {size:.2e} "
                f"nats on the probes (one stale step would show {power:.2e}): {fault}"
            )
    return published, {"sync/probe_gap": worst, "sync/probe_power": power, "sync/proven": float(proven)}


async def _explain(diagnosis: Diagnosis, probes: Sequence[Probe], observed: np.ndarray) -> str:
    """The sentence of the diagnosis. Its failure is only mentioned, because the gap must be reported."""
    try:
        async with asyncio.timeout(_EXPLAIN_LIMIT_S):
            return await diagnosis(probes, observed)
    except Exception as error:
        return f"not diagnosed ({type(error).__name__}: {error})"


async def _probe(learner: Learner, probes: Sequence[Probe]) -> np.ndarray:
    return await learner.probe(probes) if probes else np.zeros(0, np.float32)


def check_mismatch(mean_abs: float, config: RunConfig) -> None:
    """At max_lag 0, check that sampler and learner agree on the training tokens.

    `mean_abs` is the mean |behavior - proximal| in nats. With lag, a difference is expected.

    Raises:
        WeightSyncError: the mean absolute logprob difference is beyond the tolerance.
    """
    if config.rollout.max_lag == 0 and not mean_abs <= tolerance(config):  # NaN must not pass
        raise WeightSyncError(
            f"sampler and learner logprobs differ by {mean_abs:.2e} nats on the training tokens "
            f"(tolerance {tolerance(config):.0e}): the samples are not from the policy being trained"
        )
