"""Tries to get out of the sandbox, and tells what it could do. Runs inside the sandbox, before any program.

``probe.py FOLDER LIMITS``. In: ``FOLDER/targets``, JSON with what the scorer has prepared: files to read and
to write, a port to connect to, processes to signal. Out: a line of JSON on standard output with what worked;
the scorer also looks for itself whether anything was written and the port was reached.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys

_here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, _here)
import limits  # type: ignore[import-not-found]  # noqa: E402

sys.path.remove(_here)


def _reads(path: str) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return bool(file.read(1))
    return False


def _writes(path: str) -> bool:
    with contextlib.suppress(OSError), open(path, "wb") as file:
        return file.write(b"x") == 1
    return False


def _connects(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _signals(pid: int) -> bool:
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        # In a process namespace of its own, the number may be that of a process inside.
        return pid not in (1, os.getpid(), os.getppid())
    return False


def _num_forks(most: int) -> int:
    """How many processes can be alive beside this one; they end when told."""
    read, write = os.pipe()
    count = 0
    with contextlib.suppress(OSError):
        while count < most:
            if os.fork() == 0:
                os.close(write)
                os.read(read, 1)
                os._exit(0)
            count += 1
    os.close(write)
    return count


def _allocates(num_bytes: int) -> bool:
    with contextlib.suppress(MemoryError):
        return len(bytearray(num_bytes)) > 0
    return False


def main() -> None:
    """Try everything once."""
    folder, words = sys.argv[1], sys.argv[2]
    limits.apply(words)
    with open(os.path.join(folder, "targets"), encoding="utf-8") as file:
        targets = json.load(file)
    found = {
        "descriptors": [fd for fd in range(4, 64) if _is_open(fd)],
        "read_file": any(_reads(path) for path in targets["read"]),
        "wrote_file": any(_writes(path) for path in targets["write"]),
        "connected": _connects(targets["port"]),
        "signalled": any(_signals(pid) for pid in targets["pids"]),
        "environment": sorted(set(os.environ) & set(targets["variables"])),
        "forks": _num_forks(targets["forks"]),
        "allocated": _allocates(targets["bytes"]),
    }
    print(json.dumps(found))


def _is_open(descriptor: int) -> bool:
    with contextlib.suppress(OSError):
        os.fstat(descriptor)
        return True
    return False


if __name__ == "__main__":
    main()
