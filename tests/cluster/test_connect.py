"""Joining a cluster that is not there, one that goes away, and signals that reach a whole process group."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import connect
from cluster.connect import _hidden_from, check_reachable, lost_for
from cluster.interrupts import interruptible
from polyphony.cli import main


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine that nothing listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_an_address_that_nothing_answers_at_is_refused_at_once(closed_port: int) -> None:
    """host:port and ray:// alike, and a name that does not exist; by address, host, port and what to do."""
    for address in (
        f"127.0.0.1:{closed_port}",
        f"ray://127.0.0.1:{closed_port}",
        "no-such-host.invalid:6379",
    ):
        started = time.monotonic()
        with pytest.raises(ValueError) as caught:
            check_reachable(address)
        assert time.monotonic() - started < 10
        assert f"RAY_ADDRESS must name a running Ray cluster, got '{address}': no connection to" in str(
            caught.value
        )
        assert "unset RAY_ADDRESS to run on this machine alone" in str(caught.value)


def test_an_address_that_answers_is_not_refused() -> None:
    """Whether it is Ray is for Ray to find out."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_reachable(f"127.0.0.1:{server.getsockname()[1]}")
        check_reachable(f"ray://localhost:{server.getsockname()[1]}")
    check_reachable("auto")


@pytest.mark.parametrize(
    "address", ["head", "head:", "head:port", "http://head:8265", ":6379", "head:6379000", "[::1"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    """Before anything is asked of the network."""
    with pytest.raises(
        ValueError, match="RAY_ADDRESS must be host:port, ray://host:port, auto or local, got"
    ):
        check_reachable(address)


def test_the_command_ends_with_one_line(
    closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a user meets it: exit code 2, no warnings of Ray's, and no run folder."""
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    assert main(["train", "debug", f"runs_dir={tmp_path / 'runs'}"]) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith(
        f"polyphony: RAY_ADDRESS must name a running Ray cluster, got '127.0.0.1:{closed_port}'"
    )
    assert not (tmp_path / "runs").exists()


def test_a_local_cluster_that_does_not_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a machine that is too busy Ray gives up with an exception of no type of its own."""

    def init(**options: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(connect.ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(["train", "debug", f"runs_dir={tmp_path / 'runs'}"]) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith("polyphony: Ray could not start on this machine: The current node timed out")
    assert not (tmp_path / "runs").exists()


def test_a_cluster_is_lost_after_a_while_without_it() -> None:
    """Gone for longer than the limit: lost; a shorter gap or a driver that has finished: not."""
    gone = iter([True, True, False])
    assert lost_for(lambda: next(gone), lambda: True, limit_s=0.0, every_s=0.0)
    answers, uses = iter([True, False, True, False, True]), iter([True] * 5 + [False])
    assert not lost_for(lambda: next(answers), lambda: next(uses), limit_s=60.0, every_s=0.0)
    finished_meanwhile = iter([True, False])
    assert not lost_for(lambda: False, lambda: next(finished_meanwhile), limit_s=0.0, every_s=0.0)


def test_a_clusters_processes_do_not_receive_a_signal_to_the_group() -> None:
    """Nor do those that they start; the driver itself receives it again afterwards."""
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    shown = "import signal; print(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    command = [sys.executable, "-c", child, shown]
    with _hidden_from(signal.SIGTERM):
        hidden = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    plain = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert (hidden.strip(), plain.strip()) == ("True", "False")
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


class Work:
    """Ends a while after it is asked to."""

    def __init__(self) -> None:
        self.stops, self._asked = 0, asyncio.Event()

    def stop(self) -> bool:
        self.stops += 1
        self._asked.set()
        return True

    async def work(self) -> bool:
        await self._asked.wait()
        await asyncio.sleep(0.1)
        return False


class Quiet:
    """A reporter that keeps its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_signal_to_process_and_group_counts_once() -> None:
    """`timeout` sends it to both: the second must not end the process in the middle of its stop."""
    reporter = Quiet()

    async def run() -> tuple[int, int]:
        work = Work()
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
        loop.call_later(0.08, os.kill, os.getpid(), signal.SIGTERM)
        return await interruptible(work, reporter), work.stops  # type: ignore[arg-type]

    assert asyncio.run(run()) == (143, 1)
    assert len(reporter.notes) == 1
