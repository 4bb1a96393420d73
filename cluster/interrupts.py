"""SIGINT and SIGTERM stop a run in order; a second ends the process at once. Called by `cluster.train`."""

from __future__ import annotations

import asyncio
import signal
from typing import Protocol

from cluster.job import Reporter

_STOP_LIMIT_S = 300.0
"""Time to finish a step that has begun to learn, and to write a checkpoint."""

_TWICE_S = 1.0
"""`timeout` and others send the same signal to a process and then to its group: that is one wish, not two."""


class Stoppable(Protocol):
    """Work that can be stopped."""

    def stop(self) -> bool:
        """Ask it to stop; False if nothing has started, so that all may be dropped at once."""
        ...

    async def work(self) -> bool:
        """Run to the end; False if it was stopped before."""
        ...


async def interruptible(stoppable: Stoppable, reporter: Reporter) -> int:
    """Run the work; the exit code: 0, 130 (SIGINT) or 143 (SIGTERM)."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(stoppable.work())
    caught: list[int] = []

    def stop(number: int) -> None:
        if caught:
            return
        caught.append(number)
        loop.call_later(_TWICE_S, hand_back)
        if stoppable.stop():
            reporter.note("stopping: a step that learns is finished, else it is dropped; then a checkpoint")
            loop.call_later(_STOP_LIMIT_S, task.cancel)
        else:
            reporter.note("stopping")
            task.cancel()

    def hand_back() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not caught:
            raise
    return 128 + caught[0] if caught and not (task.done() and not task.cancelled() and task.result()) else 0
