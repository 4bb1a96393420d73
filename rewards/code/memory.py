"""The memory of a process and all its descendants. In: a process id. Out: bytes, as /proc tells them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_MAX_PROCESSES = 4096


def resident_bytes(pid: int, depth: int) -> int:
    """Resident memory of descendants of `pid`, from `depth` generations on, without files and shared memory.

    Generation 0 is `pid` itself. What forks still share counts for each. Those that have ended are 0. A fork
    of this process that has yet to become the program, at generation `depth`, is 0 too: all its memory is a
    copy of this process's, which may be larger than any limit of a program.
    """
    total, waiting = 0, [(pid, 0)]
    own_command = Path("/proc/self/cmdline").read_bytes()
    for _ in range(_MAX_PROCESSES):
        if not waiting:
            break
        number, generation = waiting.pop()
        process = Path("/proc", str(number))
        with contextlib.suppress(OSError, ValueError, IndexError):
            _, resident, shared = (int(word) for word in (process / "statm").read_text().split()[:3])
            # Only this generation is spared: a program that takes on this command line hides one process,
            # which has a limit of its own.
            if generation > depth or (
                generation == depth and (process / "cmdline").read_bytes() != own_command
            ):
                total += max(resident - shared, 0) * _PAGE
        with contextlib.suppress(OSError):
            for children in process.glob("task/*/children"):
                waiting += [(int(word), generation + 1) for word in children.read_text().split()]
    return total
