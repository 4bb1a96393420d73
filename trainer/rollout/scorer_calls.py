"""How long scorers take: the times of their groups, and the metrics of a step made of them.

In: one `ScorerCall` per group that a scorer was asked for. Out: health/<name>/latency_s and others. Filled by
the proxies of scorers in `cluster`, read by the loop once a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

_MAX_CALLS: Final = 100_000
"""Calls kept until they are taken: a run that only samples never takes them."""


@dataclass(frozen=True, slots=True)
class ScorerCall:
    """One group: seconds until a replica had a place for it, and seconds until the answer after that.

    `score_s` is NaN for a group that was given up before it had a place.
    """

    queue_s: float
    score_s: float


class ScorerCalls:
    """The calls of one scorer since they were last taken."""

    def __init__(self) -> None:
        self._calls: deque[ScorerCall] = deque(maxlen=_MAX_CALLS)

    def add(self, call: ScorerCall) -> None:
        """Record a call that has ended."""
        self._calls.append(call)

    def take(self) -> list[ScorerCall]:
        """The calls so far, which are then forgotten."""
        taken = list(self._calls)
        self._calls.clear()
        return taken


def call_metrics(calls: Mapping[str, ScorerCalls]) -> dict[str, float]:
    """Metrics of each scorer's calls, which are taken; nothing of a scorer without calls.

    health/<name>/latency_s is the median time for a group, latency_p99_s the 99th percentile (of few groups
    the longest, nearly), queue_s the mean wait for a free place. All are in seconds.
    """
    metrics: dict[str, float] = {}
    for name, recorded in calls.items():
        taken = recorded.take()
        scored = [call.score_s for call in taken if np.isfinite(call.score_s)]
        if scored:
            middle, late = np.percentile(scored, [50.0, 99.0])
            metrics[f"health/{name}/latency_s"] = float(middle)
            metrics[f"health/{name}/latency_p99_s"] = float(late)
        if taken:
            metrics[f"health/{name}/queue_s"] = float(np.mean([call.queue_s for call in taken]))
    return metrics
