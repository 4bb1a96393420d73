"""One writer at a time: an advisory lock on a file, which the kernel releases when its holder ends.

The driver holds `runs/<name>/lock`; the buffer holds `runs/<name>/journal/.lock`, so that the buffer of a
killed driver cannot write at the same time as the next one. The file's text names the holder, for messages.
The file is not deleted on release: another process could then lock a new file of the same name, while a third
still waits for the deleted one, and both would hold the lock.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final

_POLL_S: Final = 0.05


class RunLock:
    """The lock at `path` (its folder must exist), for `holder`; not acquired by the constructor.

    A `shared` lock is for readers: any number of them may hold it, but not while a writer does. As a context
    manager it is acquired without waiting and released at the end.
    """

    def __init__(self, path: Path, holder: str, shared: bool = False) -> None:
        self.path = path
        self._holder, self._shared = holder, shared
        self._descriptor: int | None = None

    def acquire(self, wait_s: float = 0.0) -> None:
        """Acquire the lock, waiting up to `wait_s` seconds; does nothing if it is already held.

        Raises:
            ValueError: another process, or another RunLock of this process, still holds it.
        """
        if self._descriptor is not None:
            return
        # O_CLOEXEC: a child that inherits the descriptor would share the lock.
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + wait_s
        try:
            while not _try_lock(descriptor, self._shared):
                if time.monotonic() >= deadline:
                    raise ValueError(self._refusal(descriptor))
                time.sleep(_POLL_S)
            # Readers do not sign: several may hold the lock, and one name would be wrong for the others.
            if not self._shared:
                self._sign(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def release(self) -> None:
        """Release the lock; does nothing if it is not held."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        # Explicitly: if a forked child still has the descriptor, closing it here would not release the lock.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _sign(self, descriptor: int) -> None:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"host": socket.gethostname(), "pid": os.getpid(), "holder": self._holder, "since": since}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(record) + "\n").encode(), 0)

    def _refusal(self, descriptor: int) -> str:
        try:
            record = json.loads(os.pread(descriptor, 4096, 0))
            who = f"{record['holder']} (pid {record['pid']}, host {record['host']}, since {record['since']})"
        except (ValueError, KeyError, TypeError):
            who = "another process"  # which has not written its name yet
        return f"run directory {self.path.parent} is in use by {who}"


def _try_lock(descriptor: int, shared: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
