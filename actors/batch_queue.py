"""A queue that collects items of several callers and passes them to a batched function in one call.

Used by `actors.scorer_targets` for scorers that are faster on many texts at once, such as a reward model.
Everything runs on one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

CANCEL_S = 2.0
"""Seconds that callers wait for a cancelled batch to end."""


@dataclass(slots=True, eq=False)
class _Entry(Generic[ItemT, ResultT]):
    """An item in the queue, its caller, the loop time at which it was added, and the future of its result."""

    item: ItemT
    caller: object
    asked_at: float
    result: asyncio.Future[ResultT]


class BatchQueue(Generic[ItemT, ResultT]):
    """Calls `function(items)` for the items of several callers, first come, first served.

    A batch starts when `max_items` are waiting, when the oldest has waited `max_wait_s`, or when all of
    `num_callers` (if above 0) are waiting, since no other caller can come. One batch runs at a time; a
    caller's items may be split over several. A batch that fails, or returns another number of results, fails
    every caller that has an item in it. Cancelling one caller does not affect the others; a batch whose
    callers are all cancelled is cancelled too.
    """

    def __init__(
        self,
        function: Callable[[list[ItemT]], Awaitable[Sequence[ResultT]]],
        max_items: int,
        max_wait_s: float,
        num_callers: int = 0,
    ) -> None:
        if max_items < 1:
            raise ValueError(f"max_items must be at least 1, got {max_items}")
        if not 0.0 <= max_wait_s < float("inf"):
            raise ValueError(f"max_wait_s must be a number of seconds, 0 or more, got {max_wait_s}")
        self._function, self._max_items, self._max_wait_s = function, max_items, max_wait_s
        self._num_callers = num_callers
        self._waiting: deque[_Entry[ItemT, ResultT]] = deque()
        self._running: list[_Entry[ItemT, ResultT]] = []
        self._call: asyncio.Future[list[ResultT]] | None = None
        self._changed = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._closed = False

    async def ask(self, items: Sequence[ItemT]) -> list[ResultT]:
        """Queue `items` and return their results, in the same order.

        Raises:
            RuntimeError: the queue was closed, or the function cancelled itself.
            ValueError: the function returned another number of results than items.
            Exception: what the function raised.
        """
        if self._closed:
            raise RuntimeError("the batch queue is closed")
        if not items:
            return []
        # A new object is an identity, by which `_is_full` counts callers.
        loop, caller = asyncio.get_running_loop(), object()
        mine = [_Entry(item, caller, loop.time(), loop.create_future()) for item in items]
        self._waiting.extend(mine)
        self._changed.set()
        if self._worker is None:
            self._worker = asyncio.create_task(self._work(), name="batch queue")
        try:
            return list(await asyncio.gather(*(entry.result for entry in mine)))
        finally:
            await self._leave(mine)

    async def close(self) -> None:
        """Cancel the running batch; all callers get a RuntimeError. Idempotent."""
        self._closed = True
        for entry in (*self._running, *self._waiting):
            _fail(entry, RuntimeError("the batch queue was closed"))
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait({self._worker}, timeout=CANCEL_S)

    async def _leave(self, mine: Sequence[_Entry[ItemT, ResultT]]) -> None:
        """Remove a caller's items, and cancel the running batch if none of its callers is left."""
        for entry in mine:
            # After a success this does nothing: a finished future cannot be cancelled.
            entry.result.cancel()
        self._waiting = deque(entry for entry in self._waiting if not entry.result.done())
        self._changed.set()
        call = self._call
        if call is not None and not call.done() and all(entry.result.done() for entry in self._running):
            call.cancel()
            await asyncio.wait({call}, timeout=CANCEL_S)

    async def _work(self) -> None:
        """Run one batch after the other until cancelled."""
        while True:
            await self._fill()
            number = min(self._max_items, len(self._waiting))
            self._running = [self._waiting.popleft() for _ in range(number)]
            if self._running:
                await self._answer(self._running)
            self._running = []

    async def _fill(self) -> None:
        """Return when a batch is full or its oldest item has waited for `max_wait_s`."""
        loop = asyncio.get_running_loop()
        while not self._is_full():
            rest_s = self._waiting[0].asked_at + self._max_wait_s - loop.time() if self._waiting else None
            if rest_s is not None and rest_s <= 0:
                return
            self._changed.clear()
            try:
                async with asyncio.timeout(rest_s):
                    await self._changed.wait()
            except TimeoutError:
                return

    def _is_full(self) -> bool:
        callers = {entry.caller for entry in self._waiting}
        return len(self._waiting) >= self._max_items or len(callers) >= self._num_callers > 0

    async def _answer(self, batch: Sequence[_Entry[ItemT, ResultT]]) -> None:
        """Run one batch and set each item's result, or the same exception for all of them."""
        # A separate task: if the function raises CancelledError itself, that must not end this worker.
        self._call = call = asyncio.ensure_future(self._results(batch))
        try:
            await asyncio.wait({call})
        finally:
            call.cancel()
        error = RuntimeError("the batch was cancelled") if call.cancelled() else call.exception()
        for index, entry in enumerate(batch):
            if error is not None:
                _fail(entry, error)
            elif not entry.result.done():
                entry.result.set_result(call.result()[index])

    async def _results(self, batch: Sequence[_Entry[ItemT, ResultT]]) -> list[ResultT]:
        results = list(await self._function([entry.item for entry in batch]))
        if len(results) != len(batch):
            raise ValueError(f"a batch of {len(batch)} must give as many results, got {len(results)}")
        return results


def _fail(entry: _Entry[ItemT, ResultT], error: BaseException) -> None:
    if not entry.result.done():
        entry.result.set_exception(error)
