"""A sandbox without namespaces: Landlock for files, TCP and signals, beside the seccomp filter for the rest.

In: what may be read. Out: nothing; the calling process is restricted for the rest of its life. Called by
`rewards.code.box` in a fork, where a container forbids namespaces. Needs Linux 5.13. Nothing can be written,
no process started, and no socket opened. See landlock(7).
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Sequence

from rewards.code.linux import become_nobody, drop_bounding_set, libc, system_call

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_VERSION = 1
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""From this ABI on: the number of rights on files."""
_TCP_ABI, _SCOPE_ABI = 4, 6


def abi() -> int:
    """The kernel's version of Landlock; 0 if it has none or it is turned off."""
    found = libc.syscall(ctypes.c_long(_CREATE), None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION))
    return max(int(found), 0)


def enter(readable: Sequence[str], needs_root: bool) -> None:
    """Leave this process the right to read and execute `readable`, to use /dev/null, and no other on files.

    As root it becomes nobody first, or, if `needs_root`, root without capabilities.

    Raises:
        OSError: the kernel refuses.
    """
    opened = [os.open(path, os.O_PATH) for path in readable]
    if needs_root and os.geteuid() == 0:
        drop_bounding_set()
    else:
        become_nobody()
    version = abi()
    num_rights = next(count for since, count in reversed(_FILE_RIGHTS.items()) if version >= since)
    handled = struct.pack(
        "=QQQ", (1 << num_rights) - 1, 3 if version >= _TCP_ABI else 0, 3 if version >= _SCOPE_ABI else 0
    )
    size = 24 if version >= _SCOPE_ABI else 16 if version >= _TCP_ABI else 8
    rules = system_call("landlock", _CREATE, ctypes.create_string_buffer(handled, 24), size, 0)
    for descriptor in opened:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        _allow(rules, descriptor, _EXECUTE | _READ_FILE | (_READ_DIR if folder else 0))
        os.close(descriptor)
    null = os.open("/dev/null", os.O_PATH)
    _allow(rules, null, _READ_FILE | _WRITE_FILE)
    os.close(null)
    system_call("landlock_restrict_self", _RESTRICT, rules, 0)
    os.close(rules)


def _allow(rules: int, descriptor: int, rights: int) -> None:
    rule = struct.pack("=Qi", rights, descriptor)
    held = ctypes.create_string_buffer(rule, len(rule))
    system_call("landlock_add_rule", _ADD_RULE, rules, _PATH_BENEATH, held, 0)
