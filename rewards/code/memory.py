"""The memory of a process and all its descendants. In: a process id. Out: bytes, as /proc tells them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_MAX_PROCESSES = 4096


def resident_bytes(pid: int, depth: int) -> int:
    """Resident memory of descendants of `pid`, from `depth` generations on, without files and shared memory.

    Generation 0 is `pid` itself. What forks still share counts for each. Those that have ended are 0.
    """
    total, waiting = 0, [(pid, 0)]
    for _ in range(_MAX_PROCESSES):
        if not waiting:
            break
        number, generation = waiting.pop()
        process = Path("/proc", str(number))
        with contextlib.suppress(OSError, ValueError, IndexError):
            _, resident, shared = (int(word) for word in (process / "statm").read_text().split()[:3])
            total += max(resident - shared, 0) * _PAGE if generation >= depth else 0
        with contextlib.suppress(OSError):
            for children in process.glob("task/*/children"):
                waiting += [(int(word), generation + 1) for word in children.read_text().split()]
    return total
