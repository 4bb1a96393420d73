"""SIGINT and SIGTERM stop a run cleanly, a second signal at once. Called by `cluster.train` and `.series`."""

from __future__ import annotations

import asyncio
import signal
from typing import Protocol

from cluster.job import Reporter

_STOP_LIMIT_S = 300.0
"""Time to finish a step whose update has begun, and to write a checkpoint."""

_TWICE_S = 1.0
"""A signal repeated within this time counts once: `timeout` signals the process and then its whole group."""


class Stoppable(Protocol):
    """Work that can be stopped."""

    def stop(self) -> bool:
        """Ask it to stop; False if nothing has started, so that it can be cancelled at once."""
        ...

    async def work(self) -> bool:
        """Run to the end; returns False if it was stopped before."""
        ...


async def interruptible(stoppable: Stoppable, reporter: Reporter) -> int:
    """Run the work; returns the exit code: 0, 130 (SIGINT) or 143 (SIGTERM)."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(stoppable.work())
    caught: list[int] = []

    def stop(number: int) -> None:
        if caught:
            return
        caught.append(number)
        loop.call_later(_TWICE_S, hand_back)
        if stoppable.stop():
            reporter.note(
                "stopping: an update in progress is finished, any other step is dropped; "
                "then a checkpoint is written"
            )
            # Nothing waits for ever: a step that does not end in time is given up, and repeated after
            # resuming.
            loop.call_later(_STOP_LIMIT_S, task.cancel)
        else:
            reporter.note("stopping")
            task.cancel()

    def hand_back() -> None:
        # From now on Python's own handlers apply, so a second signal ends the process.
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not caught:
            raise  # cancelled by our caller, not by a signal
    # By convention 128 + the signal's number; work that reached its end all the same is a success.
    return 128 + caught[0] if caught and not (task.done() and not task.cancelled() and task.result()) else 0
