"""Ends a run whose updates have no finite loss or gradient any more. Called by the loop after each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class NonFiniteError(RuntimeError):
    """Too many updates in a row had a loss or gradient that is not finite."""


class UpdateWatch:
    """Counts the updates in a row that were skipped; `in_a_row` is kept in checkpoints."""

    def __init__(self, limit: int, event: Callable[..., None]) -> None:
        """`limit` is learner.max_nonfinite_updates; `event` is told of steps with skipped updates."""
        self._limit, self._event = limit, event
        self.in_a_row = 0

    def observe(self, applied: Sequence[bool], step: int) -> None:
        """Whether each update of `step` (from 1) was applied: a loss or gradient that is not finite is not.

        Raises:
            NonFiniteError: as many in a row as the limit says were not.
        """
        for each in applied:
            self.in_a_row = 0 if each else self.in_a_row + 1
        skipped = len(applied) - sum(applied)
        if skipped:
            self._event("updates_skipped", step=step, updates=skipped)
        if self.in_a_row >= self._limit:
            raise NonFiniteError(
                f"{self.in_a_row} updates in a row had a loss or gradient that is not finite "
                f"(learner.max_nonfinite_updates = {self._limit}); "
                f"the rows of step {step} are in its rollouts folder"
            )
