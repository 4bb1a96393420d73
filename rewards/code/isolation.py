"""Methods of isolation: which there are, what each does to a process, and whether it holds on this machine.

In: a name from a config. Out: a `Sandbox` for `rewards.code.box`. A method is used only after `prove` has
watched a hostile program fail in it. Strongest first: bubblewrap and namespaces (own files, processes and
network), then Landlock (the same files and processes, but closed to the program), each with a seccomp filter.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from rewards.code import landlock, namespaces, seccomp
from rewards.code.box import Job, Sandbox
from rewards.code.inside_files import harness_folder
from rewards.code.interpreter import Interpreter, find_interpreter
from rewards.code.linux import NOBODY, become_nobody, libc

NONE: Final = "none"
_BUBBLEWRAP = "bwrap"


def sandbox(method: str) -> Sandbox:
    """The sandbox called `method`, a key of `METHODS`."""
    enter = METHODS[method]
    python, harness = find_interpreter(), harness_folder()
    return Sandbox(
        lambda folder, job, report: enter(python, harness, folder, job, report), _DEPTHS.get(method, 0)
    )


def _namespaces(python: Interpreter, harness: str, folder: str, job: Job, report: int) -> NoReturn:
    shown = [(folder, namespaces.BOX), (harness, namespaces.HARNESS)]

    def run() -> NoReturn:
        seccomp.install(seccomp.filter_bytes(may_fork=job.limits.processes > 1, shares_processes=False))
        _execute(python, namespaces.HARNESS, namespaces.BOX, job)

    namespaces.enter(python, shown, job.limits.file_bytes, report, run)


def _landlock(python: Interpreter, harness: str, folder: str, job: Job, report: int) -> NoReturn:
    os.chdir("/")
    # A user without rights cannot read an interpreter below a closed home folder.
    needs_root = not all(_open_to_nobody(path) for path in (*python.shown, harness))
    seccomp.forbid_new_rights()
    landlock.enter([*python.shown, folder, harness], needs_root)
    # Processes cannot be counted or gathered without namespaces, so none may be started.
    seccomp.install(seccomp.filter_bytes(may_fork=False, shares_processes=True, pid=os.getpid()))
    _execute(python, harness, folder, job)


def _bubblewrap(python: Interpreter, harness: str, folder: str, job: Job, report: int) -> NoReturn:
    """See bwrap(1). Its exit status is the program's."""
    program = shutil.which(_BUBBLEWRAP)
    assert program is not None
    if all(_open_to_nobody(path) for path in (*python.shown, harness)):
        become_nobody()
    shown = [(path, path) for path in python.shown] + [
        (folder, namespaces.BOX),
        (harness, namespaces.HARNESS),
    ]
    files = [word for source, place in shown for word in ("--ro-bind", source, place)]
    files += [word for link, target in python.links for word in ("--symlink", target, link)]
    devices = [word for each in namespaces.DEVICES for word in ("--dev-bind", each, each)]
    filtered = seccomp.filter_bytes(may_fork=job.limits.processes > 1, shares_processes=False)
    # bwrap reads the filter from a descriptor. A file in memory leaves nothing to clean up.
    descriptor = os.memfd_create("filter", 0)
    os.write(descriptor, filtered)
    os.lseek(descriptor, 0, os.SEEK_SET)
    command = [program, "--unshare-all", "--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    command += ["--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL", *files, *devices]
    command += [
        "--size",
        str(job.limits.file_bytes),
        "--tmpfs",
        "/tmp",
        "--remount-ro",
        "/",
        "--chdir",
        "/tmp",
    ]
    command += ["--seccomp", str(descriptor), "--"]
    os.execve(program, [*command, *_command(python, namespaces.HARNESS, namespaces.BOX, job)], {})


def _none(python: Interpreter, harness: str, folder: str, job: Job, report: int) -> NoReturn:
    os.chdir(folder)
    seccomp.forbid_new_rights()
    _execute(python, harness, folder, job)


METHODS: Final[dict[str, Callable[[Interpreter, str, str, Job, int], NoReturn]]] = {
    "bubblewrap": _bubblewrap,
    "namespaces": _namespaces,
    "landlock": _landlock,
    NONE: _none,
}
"""Name -> what a forked process does to enter it. ``none`` has limits, an empty environment, and no more."""


_DEPTHS: Final = {"bubblewrap": 2, "namespaces": 2}


def missing(method: str, processes: int) -> str:
    """Why `method` cannot work here whatever is tried; "" if it may."""
    if method == NONE:
        return ""
    if not seccomp.is_supported():
        return f"its system call filter does not know this machine ({os.uname().machine})"
    if method == "bubblewrap" and shutil.which(_BUBBLEWRAP) is None:
        return "there is no bwrap on the PATH"
    if method == "landlock" and landlock.abi() < 1:
        return "this kernel has no Landlock (Linux 5.13), or it is turned off"
    if method == "landlock" and processes > 1:
        return "it cannot hold more than one process; set processes to 1"
    if method == "namespaces" and not hasattr(libc, "unshare"):
        return "the C library has no unshare"
    return ""


def _execute(python: Interpreter, harness: str, folder: str, job: Job) -> NoReturn:
    os.execve(python.executable, _command(python, harness, folder, job), {})


def _command(python: Interpreter, harness: str, folder: str, job: Job) -> list[str]:
    limits = job.limits
    words = (limits.cpu_s, limits.memory_bytes, limits.processes, limits.file_bytes)
    return python.command(os.path.join(harness, job.script), folder, ",".join(map(str, words)))


def _open_to_nobody(path: str) -> bool:
    """Whether a user with no rights of its own may reach and read `path`."""
    parents = all(parent.stat().st_mode & stat.S_IXOTH for parent in Path(path).parents)
    return parents and bool(os.stat(path).st_mode & stat.S_IROTH)
