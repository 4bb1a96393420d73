"""A clock that stands still while the engines are paused; the limits of groups are told by it.

At `rollout.max_lag` 1 and more, groups are in flight while a step learns. Taking turns, the engines are
paused for that long, which must not count against `rollout.group_timeout_s`. Used by
`trainer.rollout.producer`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Clock:
    """Seconds of the running event loop, without those between `pause` and `resume`."""

    def __init__(self) -> None:
        self._skipped_s = 0.0
        self._paused_at: float | None = None
        self._open: dict[asyncio.Timeout, float] = {}

    def now(self) -> float:
        """Seconds by this clock."""
        at = asyncio.get_running_loop().time() if self._paused_at is None else self._paused_at
        return at - self._skipped_s

    def pause(self) -> None:
        """Stand still; paused already is fine."""
        if self._paused_at is None:
            self._paused_at = asyncio.get_running_loop().time()
            self._reschedule()

    def resume(self) -> None:
        """Go on; going already is fine."""
        if self._paused_at is not None:
            self._skipped_s += asyncio.get_running_loop().time() - self._paused_at
            self._paused_at = None
            self._reschedule()

    @asynccontextmanager
    async def timeout_at(self, deadline: float) -> AsyncIterator[None]:
        """TimeoutError if the block is not done when this clock shows `deadline`."""
        async with asyncio.timeout(None) as timeout:
            self._open[timeout] = deadline
            self._reschedule()
            try:
                yield
            finally:
                del self._open[timeout]

    def _reschedule(self) -> None:
        for timeout, deadline in self._open.items():
            if not timeout.expired():
                timeout.reschedule(None if self._paused_at is not None else deadline + self._skipped_s)
