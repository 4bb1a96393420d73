"""The C library's system calls that Python's own modules lack, and their errors as OSError.

Used by the files of `rewards.code` that set a sandbox up. Nothing here is called in the scorer's own process.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

libc: Final = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_CAPBSET_DROP: Final = 24
NOBODY: Final = 65534
_MAX_CAPABILITIES = 64


def checked(what: str, result: int) -> int:
    """`result` of a call of `libc`, unless it is -1.

    Raises:
        OSError: it is; the message has `what`.
    """
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def end_with_parent(signal_number: int) -> None:
    """Have the kernel send this process `signal_number` when the thread that forked it ends."""
    checked("prctl(PDEATHSIG)", libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0))


def become_nobody() -> bool:
    """As root, take the user and group of nobody, and no others. False if this process is not root."""
    if os.geteuid() != 0:
        return False
    if os.getgroups():
        os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    # Another user's /proc/self is closed to a process that has changed its user, and the set-up needs it.
    checked("prctl(DUMPABLE)", libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))
    return True


def drop_bounding_set() -> None:
    """Give up every capability for what this process executes, even as root. Needs CAP_SETPCAP."""
    for capability in range(_MAX_CAPABILITIES):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == -1:
            break  # past the last one that the kernel has


def system_call(name: str, number: int, *arguments: object) -> int:
    """A call by its number, where the C library has no function.

    Raises:
        OSError: it failed.
    """
    packed = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return checked(name, libc.syscall(ctypes.c_long(number), *packed))
