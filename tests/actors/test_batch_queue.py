"""The queue that makes one call of what several callers ask: when, for whom, and what if it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from fake_actors import run

from actors.batch_queue import BatchQueue


class Doubler:
    """A batched function that keeps what it was called with; it waits for `gate` where there is one."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate: asyncio.Event | None = None
        self.cancelled = 0

    async def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(list(items))
        if 0 in items:
            raise KeyError("no zero")
        if 13 in items:
            raise asyncio.CancelledError
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return [2 * item for item in items if item != 7]


async def ask(queue: BatchQueue[int, int], *callers: Sequence[int]) -> list[Any]:
    """What each caller gets, all asking at once; an error instead of its results."""
    return list(await asyncio.gather(*(queue.ask(items) for items in callers), return_exceptions=True))


def test_callers_share_a_batch_and_get_their_own_back() -> None:
    """Three callers, one call, in the order in which they asked; nothing asked, nothing called."""

    async def work() -> None:
        function = Doubler()
        queue = BatchQueue(function, 8, 0.01)
        assert await ask(queue, [5, 3], [1], [], [4, 2, 6]) == [[10, 6], [2], [], [8, 4, 12]]
        assert function.batches == [[5, 3, 1, 4, 2, 6]]
        await queue.close()

    run(work())


def test_a_batch_has_at_most_so_many_items() -> None:
    """Five items in calls of two: a caller's items are split, and put together again."""

    async def work() -> None:
        function = Doubler()
        queue = BatchQueue(function, 2, 0.01)
        assert await ask(queue, [1, 2, 3], [4, 5]) == [[2, 4, 6], [8, 10]]
        assert function.batches == [[1, 2], [3, 4], [5]]
        await queue.close()

    run(work())


def test_a_batch_waits_for_others_but_not_for_ever() -> None:
    """Alone: called after `max_wait_s`. Full, or with all callers there: at once, however long that is."""

    async def work() -> None:
        loop, function = asyncio.get_running_loop(), Doubler()
        began = loop.time()
        patient = BatchQueue(function, 8, 0.05)
        assert await patient.ask([1]) == [2]
        assert loop.time() - began >= 0.05
        full = BatchQueue(function, 2, 1e6)
        assert await ask(full, [1], [2]) == [[2], [4]]
        everyone = BatchQueue(function, 8, 1e6, num_callers=2)
        assert await ask(everyone, [1], [2]) == [[2], [4]]
        assert function.batches == [[1], [1, 2], [1, 2]]
        for queue in (patient, full, everyone):
            await queue.close()

    run(work())


def test_what_comes_while_a_batch_runs_is_the_next_one() -> None:
    """One call at a time: five callers that come during the first share the second."""

    async def work() -> None:
        function = Doubler()
        function.gate = asyncio.Event()
        queue = BatchQueue(function, 8, 0.0)
        first = asyncio.ensure_future(queue.ask([1]))
        while not function.batches:
            await asyncio.sleep(0)
        rest = [asyncio.ensure_future(queue.ask([number])) for number in range(2, 7)]
        await asyncio.sleep(0.01)
        assert function.batches == [[1]]
        function.gate.set()
        assert [await task for task in (first, *rest)] == [[2 * number] for number in range(1, 7)]
        assert function.batches == [[1], [2, 3, 4, 5, 6]]
        await queue.close()

    run(work())


@pytest.mark.parametrize(
    ("poison", "error"),
    [(0, KeyError), (7, ValueError), (13, RuntimeError)],
    ids=["raises", "short", "cancels"],
)
def test_a_batch_that_fails_fails_all_in_it_and_nobody_else(poison: int, error: type[Exception]) -> None:
    """An exception, too few results and a cancellation from inside: told to both, and the next is served."""

    async def work() -> None:
        queue = BatchQueue(Doubler(), 2, 0.01)
        first, second, third = await ask(queue, [poison], [1], [2, 3])
        assert isinstance(first, error) and isinstance(second, error)
        assert third == [4, 6]
        assert await queue.ask([4]) == [8]
        await queue.close()

    run(work())


def test_a_caller_that_gives_up_leaves_the_others_alone() -> None:
    """While it waits its items are never called; while its batch runs, the others get their results."""

    async def work() -> None:
        function = Doubler()
        function.gate = asyncio.Event()
        queue = BatchQueue(function, 8, 0.0)
        running = [asyncio.ensure_future(queue.ask([number])) for number in (1, 2)]
        while not function.batches:
            await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(queue.ask([number])) for number in (3, 4)]
        await asyncio.sleep(0)
        running[0].cancel()
        waiting[0].cancel()
        await asyncio.sleep(0.01)
        function.gate.set()
        assert await running[1] == [4] and await waiting[1] == [8]
        assert function.batches == [[1, 2], [4]] and function.cancelled == 0
        assert running[0].cancelled() and waiting[0].cancelled()
        await queue.close()

    run(work())


def test_a_batch_that_nobody_waits_for_is_cancelled() -> None:
    """A call that hangs must not keep the next callers out when all of its own have given up."""

    async def work() -> None:
        function = Doubler()
        function.gate = asyncio.Event()
        queue = BatchQueue(function, 8, 0.0)
        hung = [asyncio.ensure_future(queue.ask([number])) for number in (1, 2)]
        while not function.batches:
            await asyncio.sleep(0)
        for task in hung:
            task.cancel()
        await asyncio.gather(*hung, return_exceptions=True)
        assert function.cancelled == 1
        function.gate = None
        assert await queue.ask([3]) == [6]
        await queue.close()

    run(work())


def test_close_tells_everyone() -> None:
    """In the running batch and in the queue: an error, not a wait without end; closing twice is fine."""

    async def work() -> None:
        function = Doubler()
        function.gate = asyncio.Event()
        queue = BatchQueue(function, 1, 0.0)
        asked = [asyncio.ensure_future(queue.ask([number])) for number in (1, 2)]
        while not function.batches:
            await asyncio.sleep(0)
        await queue.close()
        await queue.close()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(error) for error in found] == [RuntimeError, RuntimeError]
        assert function.cancelled == 1
        with pytest.raises(RuntimeError, match="closed"):
            await queue.ask([3])

    run(work())


def test_bad_arguments_are_named() -> None:
    """Before anything is asked."""
    with pytest.raises(ValueError, match="max_items must be at least 1, got 0"):
        BatchQueue(Doubler(), 0, 0.0)
    with pytest.raises(ValueError, match="max_wait_s must be a number of seconds"):
        BatchQueue(Doubler(), 1, float("nan"))
