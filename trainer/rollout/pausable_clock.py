"""A clock that stops while the engines are paused. The time limits of groups use it.

With `rollout.max_lag` 1 or more, groups are in flight during the learner's update. With schedule take_turns
the engines are paused meanwhile, which must not count against `rollout.group_timeout_s`. Used by
`trainer.rollout.producer`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Clock:
    """Seconds of the event loop's clock, without the time between `pause` and `resume`."""

    def __init__(self) -> None:
        self._skipped_s = 0.0
        self._paused_at: float | None = None
        self._open: dict[asyncio.Timeout, float] = {}

    def now(self) -> float:
        """The current time of this clock, in seconds."""
        at = asyncio.get_running_loop().time() if self._paused_at is None else self._paused_at
        return at - self._skipped_s

    def pause(self) -> None:
        """Stop the clock; no effect if it is stopped."""
        if self._paused_at is None:
            self._paused_at = asyncio.get_running_loop().time()
            self._reschedule()

    def resume(self) -> None:
        """Continue; no effect if the clock runs."""
        if self._paused_at is not None:
            self._skipped_s += asyncio.get_running_loop().time() - self._paused_at
            self._paused_at = None
            self._reschedule()

    @asynccontextmanager
    async def timeout_at(self, deadline: float) -> AsyncIterator[None]:
        """Raise TimeoutError if the block is not done when this clock reaches `deadline`."""
        async with asyncio.timeout(None) as timeout:
            self._open[timeout] = deadline
            self._reschedule()
            try:
                yield
            finally:
                del self._open[timeout]

    def _reschedule(self) -> None:
        """Move the open timeouts, which count the event loop's time, to their deadlines by this clock."""
        for timeout, deadline in self._open.items():
            # asyncio raises an error if an expired timeout is moved.
            if not timeout.expired():
                timeout.reschedule(None if self._paused_at is not None else deadline + self._skipped_s)
