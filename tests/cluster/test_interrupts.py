"""SIGINT and SIGTERM: work is asked to stop, or cancelled if it has not begun; a second signal ends it."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass, field

import pytest

from cluster import interrupts
from cluster.interrupts import interruptible

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@dataclass
class Work:
    """Work that sends this process `sent` once it runs, and ends when it is asked to, or by itself."""

    sent: tuple[signal.Signals, ...]
    begun: bool = True
    finishes: bool = False
    stops: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self) -> bool:
        self.stops += 1
        self.asked.set()
        return self.begun

    async def work(self) -> bool:
        for number in self.sent:
            os.kill(os.getpid(), number)
            await asyncio.sleep(0)
        if not self.begun:
            await asyncio.Event().wait()
        if self.sent:
            await asyncio.wait_for(self.asked.wait(), 20.0)
        return self.finishes or not self.sent


class Notes:
    """A reporter that keeps its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def ended(work: Work) -> tuple[int, list[str]]:
    """The exit code, and what was reported."""
    notes = Notes()
    return asyncio.run(interruptible(work, notes)), notes.notes  # type: ignore[arg-type]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_run_is_asked_to_stop(number: signal.Signals, code: int) -> None:
    """It ends by itself with a checkpoint; a repeated signal, as `timeout` sends it, counts once."""
    work = Work((number, number))
    found, notes = ended(work)
    assert found == code and work.stops == 1
    assert len(notes) == 1 and notes[0].startswith("stopping: an update in progress is finished")


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_what_has_not_begun_is_cancelled(number: signal.Signals, code: int) -> None:
    assert ended(Work((number,), begun=False)) == (code, ["stopping"])


def test_work_that_reaches_its_end_is_a_success() -> None:
    """Also if it was asked to stop during its last step."""
    assert ended(Work(())) == (0, [])
    assert ended(Work((signal.SIGTERM,), finishes=True))[0] == 0


def test_a_second_signal_gets_pythons_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A little later than the first one, so that who presses Ctrl-C again is obeyed."""
    monkeypatch.setattr(interrupts, "_TWICE_S", 0.01)

    class Stuck(Work):
        async def work(self) -> bool:
            os.kill(os.getpid(), signal.SIGINT)
            # From the loop: a task that raised it would be reported as one whose error nobody took.
            asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
            return True

    with pytest.raises(KeyboardInterrupt):
        ended(Stuck(()))
