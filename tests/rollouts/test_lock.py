"""The lock of a run: one holder, anyone else gets its name, and a holder that ends gives it back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from rollouts.lock import RunLock

ROOT = Path(__file__).resolve().parents[2]

CONTENDER = """
import sys
from pathlib import Path
from rollouts.lock import RunLock
lock = RunLock(Path(sys.argv[1]), "contender")
for line in sys.stdin:
    if line == "take\\n":
        try:
            lock.acquire(0.0)
            print("held", flush=True)
        except ValueError:
            print("refused", flush=True)
    else:
        lock.release()
        print("free", flush=True)
"""


class Contender:
    """A process that takes and releases a lock when told."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CONTENDER, str(path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _pipe(self, pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    def tell(self, word: str) -> None:
        stdin = self._pipe(self.process.stdin)
        stdin.write(word + "\n")
        stdin.flush()

    def answer(self) -> str:
        return self._pipe(self.process.stdout).readline().strip()

    def end(self) -> None:
        """Kill it, as kill -9 does."""
        self.process.kill()
        self.process.wait()
        self._pipe(self.process.stdin).close()
        self._pipe(self.process.stdout).close()


def test_two_drivers_never_hold_it_together(tmp_path: Path) -> None:
    """100 rounds: told at the same time, exactly one of two processes gets it, and it is free afterwards."""
    contenders = [Contender(tmp_path / "lock") for _ in range(2)]
    try:
        for _ in range(100):
            for contender in contenders:
                contender.tell("take")
            assert sorted(contender.answer() for contender in contenders) == ["held", "refused"]
            for contender in contenders:
                contender.tell("release")
            assert [contender.answer() for contender in contenders] == ["free", "free"]
    finally:
        for contender in contenders:
            contender.end()


def test_a_killed_holder_gives_it_back(tmp_path: Path) -> None:
    """Nothing has to be cleaned up after a kill; until then the refusal says who holds it."""
    path = tmp_path / "run" / "lock"
    path.parent.mkdir()
    contender = Contender(path)
    try:
        contender.tell("take")
        assert contender.answer() == "held"
        lock = RunLock(path, "me")
        who = rf"run directory .*run is in use by contender \(pid {contender.process.pid}, host .*, since 2"
        with pytest.raises(ValueError, match=who):
            lock.acquire(0.12)
    finally:
        contender.end()
    with lock:
        record = json.loads(path.read_text(encoding="utf-8"))
        assert (record["holder"], record["pid"]) == ("me", os.getpid())
    assert path.exists()


def test_holding_twice_and_releasing_twice(tmp_path: Path) -> None:
    """Both are fine for the holder; another lock object of the same process is another holder."""
    lock, other = RunLock(tmp_path / "lock", "a"), RunLock(tmp_path / "lock", "b")
    lock.release()
    lock.acquire()
    with lock, pytest.raises(ValueError, match="is in use by a"):
        other.acquire()
    lock.release()
    with other:
        pass
    num_open = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with lock, pytest.raises(ValueError):
            other.acquire()
    assert len(os.listdir("/proc/self/fd")) == num_open


def test_a_child_process_does_not_keep_it(tmp_path: Path) -> None:
    """Neither one that runs another program nor a plain fork: actors outlive a driver by a moment."""
    lock = RunLock(tmp_path / "lock", "a")
    lock.acquire()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        lock.release()
        with RunLock(tmp_path / "lock", "b"):
            pass
    finally:
        os.close(writer)
        os.waitpid(child, 0)


def test_an_unsigned_lock_still_refuses(tmp_path: Path) -> None:
    """The text is for people: without it the lock is as good."""
    with RunLock(tmp_path / "lock", "a"):
        (tmp_path / "lock").write_bytes(b"")
        with pytest.raises(ValueError, match="is in use by another process"):
            RunLock(tmp_path / "lock", "b").acquire()


def test_readers_share_and_keep_a_writer_out(tmp_path: Path) -> None:
    """Two readers at once; a writer waits for both, and no reader comes beside it."""
    first, second = (RunLock(tmp_path / "lock", "reader", shared=True) for _ in range(2))
    writer = RunLock(tmp_path / "lock", "writer")
    first.acquire()
    second.acquire()
    with pytest.raises(ValueError, match="in use by another process"):
        writer.acquire()
    first.release()
    with pytest.raises(ValueError, match="in use"):
        writer.acquire()
    second.release()
    writer.acquire()
    with pytest.raises(ValueError, match=r"in use by writer \(pid"):
        first.acquire()
    writer.release()
