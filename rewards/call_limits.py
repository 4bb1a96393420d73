"""Limits of the calls to a model: at the same time, a minute, and tokens a minute. One place for all of them.

Used by `rewards.endpoint_model` and `rewards.judge`. With several replicas of a scorer each has its share.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_MINUTE_S = 60.0


class NoRoomError(TimeoutError):
    """The limits leave no room for a call before its deadline."""


class _Pace:
    """Spaces calls evenly: a rate a minute is then never exceeded. 0 means no limit."""

    def __init__(self, per_minute: float) -> None:
        self._per_minute = per_minute
        self._free_at = 0.0

    def wait_s(self, now: float) -> float:
        """Seconds until the next call may begin."""
        return max(0.0, self._free_at - now)

    def take(self, amount: float, now: float) -> None:
        """Reserve the next place for `amount` calls or tokens."""
        if self._per_minute:
            # From now at the earliest: a quiet minute does not allow a burst after it.
            self._free_at = max(self._free_at, now) + amount * _MINUTE_S / self._per_minute

    def correct(self, amount: float) -> None:
        """Add to what the last calls took, or give back if negative."""
        if self._per_minute:
            self._free_at += amount * _MINUTE_S / self._per_minute


class CallLimits:
    """Calls of one process to one model. 0 requests or tokens a minute means no such limit."""

    def __init__(
        self,
        max_concurrent: int,
        requests_per_minute: float = 0.0,
        tokens_per_minute: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = asyncio.Semaphore(max_concurrent)
        self._requests, self._tokens = _Pace(requests_per_minute), _Pace(tokens_per_minute)
        self._clock, self._paused_until = clock, 0.0

    @asynccontextmanager
    async def place(self, num_tokens: int, deadline: float) -> AsyncIterator[None]:
        """Hold a place for a call of about `num_tokens` tokens during the block; `deadline` is by the clock.

        Raises:
            NoRoomError: there is no room before the deadline. Nothing is reserved then: calls that are given
                up must not delay those after them.
        """
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock())):
                await self._places.acquire()
        except TimeoutError as error:
            raise NoRoomError("no place was free before the deadline (max_concurrent)") from error
        try:
            await self._wait(num_tokens, deadline)
            yield
        finally:
            self._places.release()

    def correct(self, estimated: int, used: int) -> None:
        """Count the tokens that a call really used, in place of those it was begun with."""
        self._tokens.correct(used - estimated)

    def pause(self, seconds: float) -> None:
        """Begin no call for so long, because the server asked for it."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    async def _wait(self, num_tokens: int, deadline: float) -> None:
        now = self._clock()
        wait_s = max(self._requests.wait_s(now), self._tokens.wait_s(now), self._paused_until - now)
        if now + wait_s >= deadline:
            raise NoRoomError(
                f"the limits of calls and tokens a minute leave no room for {wait_s:.0f} s, past the deadline"
            )
        # Reserved before the wait, so that calls which come meanwhile queue behind this one.
        begins = max(now, now + wait_s)
        self._requests.take(1, begins)
        self._tokens.take(num_tokens, begins)
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        while (left := self._paused_until - self._clock()) > 0:  # a pause that began meanwhile
            if self._clock() + left >= deadline:
                raise NoRoomError(f"the server asked to wait {left:.0f} s, past the deadline")
            await asyncio.sleep(left)
