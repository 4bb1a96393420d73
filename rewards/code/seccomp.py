"""A seccomp filter: which system calls the program in the sandbox, and all it starts, may make.

In: what may be started, and whether processes outside are visible. Out: a BPF program, installed for the rest
of the process's life. Called by `rewards.code.isolation` between fork and exec. See seccomp(2).
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from rewards.code.linux import PR_SET_PDEATHSIG, checked, libc
from rewards.code.syscalls import ALLOWED, CHANGES_ANY_FILE, STARTS_PROCESS

_MACHINES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> (column of `ALLOWED`, the kernel's AUDIT_ARCH number)."""
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _ABOVE, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_X32 = 0x40000000
_CLONE3 = 435
_NEWEST = 462
"""Later calls do not exist for the program: libraries then take older ones."""
_CLONE_THREAD, _CLONE_NEW = 0x00010000, 0x7E020080
_AF_UNIX = 1
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2

Code = list[tuple[int, int, int, int]]
"""BPF instructions: (operation, instructions to skip if true, if false, operand)."""


def is_supported() -> bool:
    """Whether `filter_bytes` knows this machine's system calls."""
    return platform.machine() in _MACHINES


def filter_bytes(*, may_fork: bool, shares_processes: bool, pid: int = 0) -> bytes:
    """The filter as an array of ``struct sock_filter``.

    Without `may_fork` the program may start threads, and no process. With `shares_processes` processes
    outside the sandbox are visible, so signals may go to `pid` alone, the program itself, and calls that
    Landlock does not restrict are refused.
    """
    column, arch = _MACHINES[platform.machine()]
    left_out = set(CHANGES_ANY_FILE) if shares_processes else set()
    left_out |= set() if may_fork else set(STARTS_PROCESS)
    numbers = {name: found[column] for name, found in ALLOWED.items() if name not in left_out}
    special = _special(may_fork, pid if shares_processes else 0)
    code: Code = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for name, rule in special.items():
        if (number := numbers.pop(name, None)) is not None:
            code += [(_EQUAL, 0, len(rule), number), *rule]
    for low, high in _ranges([number for number in numbers.values() if number is not None]):
        code += [(_AT_LEAST, 0, 2, low), (_ABOVE, 1, 0, high), (_RETURN, 0, 0, _ALLOW)]
    missing = _ERRNO | errno.ENOSYS
    code += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, missing)]
    code += [(_ABOVE, 0, 1, _NEWEST), (_RETURN, 0, 0, missing), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def install(program: bytes) -> None:
    """Apply a filter to this process for good, and give up gaining rights by exec.

    Raises:
        OSError: the kernel refuses it.
    """
    forbid_new_rights()
    held = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(held))
    checked("seccomp", libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, header, 0, 0))


def forbid_new_rights() -> None:
    """Set no_new_privs: no exec gives this process or its children rights, set-user-id files included."""
    checked("no_new_privs", libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _special(may_fork: bool, own_pid: int) -> dict[str, Code]:
    """Calls that depend on an argument: what runs after their number has matched. Each ends in a return."""
    allow, refuse = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    if may_fork:
        clone: Code = [_argument(0), (_ANY_BIT, 0, 1, _CLONE_NEW), refuse, allow]
    else:
        clone = [_argument(0), (_ANY_BIT, 0, 1, _CLONE_NEW), refuse, (_ANY_BIT, 1, 0, _CLONE_THREAD), refuse]
        clone += [allow]
    own: Code = [_argument(0), (_EQUAL, 1, 0, own_pid), refuse, allow]
    signals: dict[str, Code] = {"kill": own, "tgkill": own} if own_pid else {}
    # A pid of 0 is the caller. Without a filter, limits of other processes of the user could be lowered.
    limits: Code = [_argument(0), (_EQUAL, 2, 0, 0), (_EQUAL, 1, 0, own_pid), refuse, allow]
    pair: Code = [_argument(0), (_EQUAL, 1, 0, _AF_UNIX), refuse, allow]
    # Only to the socket's own peer: an address could name a service outside.
    send: Code = [_argument(4), (_EQUAL, 0, 2, 0), _argument(4, high=True), (_EQUAL, 1, 0, 0), refuse, allow]
    # The kernel would send a signal of the caller's choice to any process of the user when a file is ready.
    owner = {"fcntl": _refused(1, (8, 10, 15)), "ioctl": _refused(1, (0x8901, 0x8902))}
    # The program must not outlive the scorer that started it.
    stays = {"prctl": _refused(0, (PR_SET_PDEATHSIG,))}
    return {
        "clone": clone, **signals, **owner, **stays, "prlimit64": limits, "socketpair": pair, "sendto": send,
    }  # fmt: skip


def _refused(argument: int, values: Sequence[int]) -> Code:
    """Refuse the call for these values of an argument, and allow it for others."""
    refuse, allow = (_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)
    last = len(values)
    checks = [(_EQUAL, last - place, 0, value) for place, value in enumerate(values)]
    return [_argument(argument), *checks, allow, refuse]


def _argument(number: int, *, high: bool = False) -> tuple[int, int, int, int]:
    """Load the low or high half of an argument; both machines are little-endian."""
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * number + (4 if high else 0))


def _ranges(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers as (first, last)."""
    ordered = sorted(set(numbers))
    first = last = ordered[0]
    for number in ordered[1:]:
        if number != last + 1:
            yield first, last
            first = number
        last = number
    yield first, last
