"""The table of a run of hostile answers. In: `Trial`s. Out: a row per family, and what went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from benchmarks.hostile.run import Trial


def failed(trials: Sequence[Trial]) -> list[Trial]:
    """Those with an escape, a stuck worker, or a score that should not be missing."""
    return [trial for trial in trials if trial.problem()]


def summary(trials: Sequence[Trial]) -> list[dict[str, object]]:
    """A row per family, in order."""
    return [_row(family, list(group)) for family, group in groupby(trials, lambda trial: trial.family)]


def totals(trials: Sequence[Trial]) -> dict[str, object]:
    """The row of all."""
    return _row("all", trials)


def _row(name: str, trials: Sequence[Trial]) -> dict[str, object]:
    walls = sorted(trial.wall_s for trial in trials)
    outcomes = Counter(trial.outcome.partition(":")[0] or "0" for trial in trials)
    escapes = [trial for trial in trials if trial.breaches or (trial.score or 0.0) > 0.5]
    return {
        "family": name,
        "answers": len(trials),
        "escapes": len(escapes),
        "stuck": sum(trial.is_stuck() for trial in trials),
        "no score": sum(trial.is_missing() for trial in trials),
        "p50 s": f"{_quantile(walls, 0.5):.2f}",
        "p99 s": f"{_quantile(walls, 0.99):.2f}",
        "max s": f"{walls[-1]:.2f}" if walls else "",
        "outcomes": ", ".join(f"{outcome} {count}" for outcome, count in outcomes.most_common()),
    }


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    index = max(-int(-share * len(ordered) // 1) - 1, 0)
    return ordered[index] if ordered else 0.0
