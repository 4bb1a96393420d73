"""A sandbox of Linux namespaces: its own users, files, processes, network and IPC, without any privilege.

In: what to show, the job's folder and a size. Out: nothing; the calling process becomes the sandbox's first
process, or the one that waits for it. Called by `rewards.code.box` in a fork. See namespaces(7).
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from rewards.code.interpreter import Interpreter
from rewards.code.linux import NOBODY, become_nobody, checked, end_with_parent, libc, system_call

BOX: Final = "/box"
"""Where the job's folder is, read-only."""
HARNESS: Final = "/harness"
_NEW_ALL: Final = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000
"""CLONE_NEWUSER, NEWNS, NEWPID, NEWNET, NEWIPC, NEWUTS and NEWCGROUP."""
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_MOUNT_SETATTR, _PIVOT_ROOT = 442, {"x86_64": 155, "aarch64": 41}
_AT_RECURSIVE = 0x8000
_READ_ONLY: Final = struct.pack("=QQQQ", 1 | 2 | 4, 0, 0, 0)
"""struct mount_attr: set read-only, nosuid and nodev."""
DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_STAGE: Final = "/usr"


def enter(
    interpreter: Interpreter,
    folders: Sequence[tuple[str, str]],
    size_bytes: int,
    report_fd: int,
    run: Callable[[], NoReturn],
) -> NoReturn:
    """Call `run` inside a new sandbox, in a child of its first process; wait for it, and end.

    `folders` are (source, place inside) and shown read-only, as `interpreter` is; ``/tmp`` is private, in
    memory, and holds `size_bytes`. How `run` ended is written to `report_fd`. When this process
    dies, so does every process inside.
    """
    shown = {path: path for path in interpreter.shown} | {place: source for source, place in folders}
    _new_namespaces()
    go_read, go_write = os.pipe()
    first = os.fork()
    if first == 0:
        try:
            os.close(go_write)
            end_with_parent(signal.SIGKILL)
            # Had the parent died before the line above, its end of the pipe would be closed.
            if os.read(go_read, 1) == b"g":
                _build(interpreter, shown, size_bytes)
                _wait_inside(report_fd, run)
        except BaseException as error:
            os.write(report_fd, f"!{type(error).__name__}: {error}".encode(errors="replace"))
        os._exit(1)
    os.write(go_write, b"g")
    _, status = os.waitpid(first, 0)
    if status != 0:
        os.write(report_fd, b"!the first process of the sandbox has died")
    os._exit(0)


def _new_namespaces() -> None:
    """Enter them. Inside, the program is nobody: as root a user of its own, else this process's user."""
    user, group = os.geteuid(), os.getegid()
    if user != 0:
        checked("unshare", libc.unshare(_NEW_ALL))
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{NOBODY} {user} 1")
        _write("/proc/self/gid_map", f"{NOBODY} {group} 1")
        return
    os.setgroups([])
    ready, done = os.pipe(), os.pipe()
    pid = os.getpid()
    if os.fork() == 0:  # only a process that stays outside may map a second user
        try:
            os.close(ready[1])
            if os.read(ready[0], 1) == b"k":  # else the other side could not leave, and has ended
                for name in ("uid_map", "gid_map"):
                    _write(f"/proc/{pid}/{name}", f"0 0 1\n{NOBODY} {NOBODY} 1\n")
                os.write(done[1], b"k")
        finally:
            os._exit(0)
    checked("unshare", libc.unshare(_NEW_ALL))
    os.write(ready[1], b"k")
    os.close(done[1])
    if os.read(done[0], 1) != b"k":
        raise OSError("the users of the sandbox could not be mapped")
    os.wait()


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _build(interpreter: Interpreter, shown: dict[str, str], size_bytes: int) -> None:
    """Make a file system that holds only what is `shown` (place -> source) the root, for good."""
    _mount("", "/", "", _MS_REC | _MS_PRIVATE)
    devices = [path for path in DEVICES if os.path.exists(path)]
    opened = {place: os.open(source, os.O_PATH) for place, source in shown.items()}
    opened |= {path: os.open(path, os.O_PATH) for path in devices}
    # On a folder that is always there. It is covered in this mount namespace alone, until the root changes.
    _mount("tmpfs", _STAGE, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,nr_inodes=4096,mode=755")
    for place, source in opened.items():
        _show(_STAGE + place, source, writable=place in devices)
        os.close(source)
    for link, target in interpreter.links:
        os.makedirs(os.path.dirname(_STAGE + link), exist_ok=True)
        os.symlink(target, _STAGE + link)
    os.mkdir(_STAGE + "/tmp")
    os.chdir(_STAGE)
    here = ctypes.c_char_p(b".")
    system_call("pivot_root", _PIVOT_ROOT[os.uname().machine], here, here)
    checked("umount", libc.umount2(b".", _MNT_DETACH))
    os.chdir("/")
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={size_bytes},nr_inodes=1024,mode=1777")
    _set_read_only("/", recursive=False)
    os.chdir("/tmp")


def _show(place: str, source: int, *, writable: bool) -> None:
    """Bind the file or folder open as `source` to `place`."""
    opened = f"/proc/self/fd/{source}"
    if os.path.isdir(opened):
        os.makedirs(place, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(opened, place, "", _MS_BIND | _MS_REC)
    if not writable:
        _set_read_only(place, recursive=True)


def _set_read_only(place: str, *, recursive: bool) -> None:
    flags = _AT_RECURSIVE if recursive else 0
    attributes = ctypes.create_string_buffer(_READ_ONLY, len(_READ_ONLY))
    system_call("mount_setattr", _MOUNT_SETATTR, -1, place.encode(), flags, attributes, len(_READ_ONLY))


def _mount(source: str, place: str, kind: str, flags: int, data: str = "") -> None:
    what = f"mount {kind or source} on {place}"
    words = (
        source.encode(),
        place.encode(),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    checked(what, libc.mount(*words))


def _wait_inside(report_fd: int, run: Callable[[], NoReturn]) -> NoReturn:
    """As the sandbox's first process: start the program, wait, report. Ending ends all others inside."""
    program = os.fork()
    if program == 0:
        become_nobody()
        run()
    while True:
        ended, status = os.wait()  # orphans too, which become children of the first process
        if ended == program:
            os.write(report_fd, str(status).encode())
            os._exit(0)
