"""Stops a run whose updates repeatedly have no finite loss or gradient. Called after each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class NonFiniteError(RuntimeError):
    """The loss or gradient was not finite in too many updates in a row."""


class UpdateWatch:
    """Counts consecutive skipped updates (`in_a_row`, kept in checkpoints)."""

    def __init__(self, limit: int, event: Callable[..., None]) -> None:
        """`limit` is learner.max_nonfinite_updates; `event` is called for steps with skipped updates."""
        self._limit, self._event = limit, event
        self.in_a_row = 0

    def observe(self, applied: Sequence[bool], step: int) -> None:
        """Record which updates of `step` (from 1) were applied; those that are not finite were skipped.

        Raises:
            NonFiniteError: the limit of skipped updates in a row is reached.
        """
        for each in applied:
            # One bad batch may cause a skipped update; several in a row do not end by themselves.
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
