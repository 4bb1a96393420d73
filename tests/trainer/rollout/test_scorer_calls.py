"""The metrics of scorers' calls, by hand."""

from __future__ import annotations

import math

import pytest

from trainer.rollout.scorer_calls import ScorerCall, ScorerCalls, call_metrics


def test_call_metrics_by_hand() -> None:
    """101 groups of 0.00 to 1.00 s; a group that never had a place counts as a wait alone."""
    calls = ScorerCalls()
    for number in reversed(range(101)):
        calls.add(ScorerCall(0.5, number / 100))
    calls.add(ScorerCall(10.7, math.nan))
    idle, given_up = ScorerCalls(), ScorerCalls()
    given_up.add(ScorerCall(2.0, math.nan))
    recorded = {"judge": calls, "idle": idle, "lost": given_up}
    assert call_metrics(recorded) == {
        "health/judge/latency_s": pytest.approx(0.5),
        "health/judge/latency_p99_s": pytest.approx(0.99),
        "health/judge/queue_s": pytest.approx(0.6),
        "health/lost/queue_s": 2.0,
    }
    assert call_metrics(recorded) == {}, "they were taken"
