"""The limits of the process that runs a program, set before the program is read. Runs inside the sandbox.

In: "cpu seconds,bytes of memory,processes,bytes of files" as the scorer gives them on the command line.
"""

from __future__ import annotations

import math
import resource

_OPEN_FILES = 64


def apply(words: str) -> None:
    """Lower every limit, soft and hard, so that nothing in this process can raise it again."""
    cpu_s, memory, processes, file_bytes = (float(word) for word in words.split(","))
    seconds = max(math.ceil(cpu_s), 1)
    _lower(resource.RLIMIT_CPU, seconds)
    _lower(resource.RLIMIT_AS, int(memory))
    _lower(resource.RLIMIT_FSIZE, int(file_bytes))
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_MEMLOCK, 0)
    if processes > 1:
        _lower(resource.RLIMIT_NPROC, int(processes) + 2)


def _lower(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))
