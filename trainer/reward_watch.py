"""Reports why scores are missing, and stops a run without any reward.

Used by the loop, by `collect` and, for each score, by `trainer.rollout.rollouter`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from rollouts.records import Judgement

MAX_UNREWARDED_STEPS: Final = 3
_MAX_REASON_CHARS: Final = 300
FAILED: Final = "failed/"
"""Metrics failed/<scorer>/<status> count the scores that a scorer could not give."""


class NoRewardError(RuntimeError):
    """Several steps in a row, or all steps of a run, had no reward at all."""


class FirstFailures:
    """Notes the first reason of each scorer and status for which there is no score, with the scorer's log.

    `log_of` returns the log file of a scorer by its name. The metrics count all failures.
    """

    def __init__(self, note: Callable[[str], None], log_of: Callable[[str], str]) -> None:
        self._note, self._log_of = note, log_of
        self._noted: set[tuple[str, str]] = set()

    def observe(self, scorer: str, judgement: Judgement) -> None:
        """Look at a judgement of `scorer`; does nothing if it has a score."""
        if judgement.status == "ok" or (scorer, judgement.status) in self._noted:
            return
        self._noted.add((scorer, judgement.status))
        detail = " ".join(judgement.detail.split()) or "no reason was given"
        shown = detail if len(detail) <= _MAX_REASON_CHARS else f"{detail[:_MAX_REASON_CHARS]}..."
        self._note(
            f"scorer {scorer} could not score a completion ({judgement.status}): {shown}. "
            f"Others with this status are only counted, in {FAILED}{scorer}/{judgement.status}; "
            f"log: {self._log_of(scorer)}"
        )


class RewardWatch:
    """Counts consecutive steps in which no completion had a reward (`in_a_row`, kept in checkpoints).

    A run stops after `MAX_UNREWARDED_STEPS` such steps, or if all its steps are such. `log_of` returns the
    log file of a scorer by its name.
    """

    def __init__(self, num_steps: int, note: Callable[[str], None], log_of: Callable[[str], str]) -> None:
        self._limit = min(MAX_UNREWARDED_STEPS, num_steps)
        self._note, self._log_of = note, log_of
        self.in_a_row = 0

    def observe(self, metrics: Mapping[str, float], step: int) -> None:
        """Report the scorers that failed in `step` (from 1), by its metrics reward/null_share and failed/*.

        Raises:
            NoRewardError: too many steps in a row had no reward.
        """
        missing = metrics["reward/null_share"]
        self.in_a_row = self.in_a_row + 1 if missing == 1.0 else 0
        if not missing:
            return
        counts = {name.removeprefix(FAILED): n for name, n in metrics.items() if name.startswith(FAILED)}
        failed = ", ".join(f"{name} {count:.0f}" for name, count in counts.items())
        logs = ", ".join(dict.fromkeys(self._log_of(name.partition("/")[0]) for name in counts))
        why = f" ({failed}; the reasons are in {logs})" if counts else ""
        message = f"step {step}: {missing:.0%} of completions have no reward{why}"
        self._note(message)
        if self.in_a_row >= self._limit:
            raise NoRewardError(f"{message}, {self._steps()}: there is nothing to learn from. {_REMEDY}")

    def finish(self, step: int) -> None:
        """Check a run that ends after `step`.

        Raises:
            NoRewardError: none of its steps had a reward.
        """
        if 0 < step <= self.in_a_row:
            raise NoRewardError(f"no completion of the run has a reward, {self._steps()}. {_REMEDY}")

    def _steps(self) -> str:
        return f"{self.in_a_row} steps in a row" if self.in_a_row > 1 else "the only step"


_REMEDY: Final = (
    "Saved groups keep their missing rewards: fix the scorer or the data, then train under another name "
    "(name=...)"
)
