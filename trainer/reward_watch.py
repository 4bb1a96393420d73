"""Notices completions without a reward, and ends a run that gets none. Used by the loop and by `collect`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

MAX_UNREWARDED_STEPS: Final = 3
FAILED: Final = "failed/"
"""Metrics failed/<scorer>/<status> count the scores that could not be had."""


class NoRewardError(RuntimeError):
    """Several steps in a row, or all steps of a run, brought no reward at all."""


class RewardWatch:
    """Counts the steps in a row in which no completion had a reward (`in_a_row`, kept in checkpoints).

    A run may not have `MAX_UNREWARDED_STEPS` of them, nor consist of them. `log_of` gives the log file of a
    scorer by its name.
    """

    def __init__(self, num_steps: int, note: Callable[[str], None], log_of: Callable[[str], str]) -> None:
        self._limit = min(MAX_UNREWARDED_STEPS, num_steps)
        self._note, self._log_of = note, log_of
        self.in_a_row = 0

    def observe(self, metrics: Mapping[str, float], step: int) -> None:
        """Note which scorers failed in `step` (from 1), by reward/null_share and failed/* of its metrics.

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
        told = f"step {step}: {missing:.0%} of completions have no reward{why}"
        self._note(told)
        if self.in_a_row >= self._limit:
            raise NoRewardError(f"{told}, {self._steps()}: there is nothing to learn from. {_REMEDY}")

    def finish(self, step: int) -> None:
        """The run ends after `step`.

        Raises:
            NoRewardError: no step of it had a reward.
        """
        if 0 < step <= self.in_a_row:
            raise NoRewardError(f"no completion of the run has a reward, {self._steps()}. {_REMEDY}")

    def _steps(self) -> str:
        return f"{self.in_a_row} steps in a row" if self.in_a_row > 1 else "the only step"


_REMEDY: Final = (
    "Saved groups keep their missing rewards: mend the scorer or the data, then train under another name "
    "(name=...)"
)
