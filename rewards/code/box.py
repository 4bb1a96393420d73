"""One program in one sandbox: start it, read what it writes, hold it to its limits, and end all of it.

In: a `Job` and a method of isolation. Out: an `Ending`. Nothing here waits longer than the job's clock allows
plus `DRAIN_S`. Used by `rewards.code.runs`; the sandboxes themselves are in `rewards.code.isolation`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NoReturn

from rewards.code.inside_files import new_job_folder
from rewards.code.linux import end_with_parent
from rewards.code.memory import resident_bytes

DRAIN_S: Final = 2.0
"""Seconds in which every process of a sandbox must be gone once it was killed."""
MEMORY_POLL_S: Final = 0.05
REPLY_BYTES: Final = 1 << 22
"""Most that a program may send back as results, beside its output."""
_STDERR_KEPT = 4096
_FIRST_FREE_FD = 64

Killed = Literal["", "done", "timeout", "output_limit", "memory"]
"""Why a sandbox was killed; ``done``: nothing more was wanted of it."""


class SandboxBrokenError(Exception):
    """The sandbox, not the program in it, has failed: there is no result."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use. Bytes, seconds, and a number of processes; 1 means threads only."""

    cpu_s: float
    memory_bytes: int
    processes: int
    file_bytes: int
    output_bytes: int


@dataclass(frozen=True, slots=True)
class Job:
    """`script` of `rewards.code.inside` with the files it reads.

    `stdin` is the text of descriptor 0, and `descriptors` are what the program gets from 4 on. Its replies,
    descriptor 3, go to the parent.
    """

    script: str
    files: Mapping[str, str]
    limits: Limits
    stdin: str = ""
    descriptors: Sequence[int] = ()
    replies: int | None = None
    """Where its replies go instead of to the parent."""


@dataclass(slots=True)
class Ending:
    """How a program ended. `status` is as of wait(2), or None if the sandbox was killed."""

    status: int | None = None
    killed: Killed = ""
    stdout: bytes = b""
    stderr: bytes = b""
    replies: list[bytes] = field(default_factory=list)
    """The lines that the harness, or the program in its place, has sent."""


Enter = Callable[[str, Job, int], NoReturn]
"""(the job's folder, the job, descriptor for the report): restrict this process and run the script."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A method of isolation: `enter`, and how many generations below the forked process the program is."""

    enter: Enter
    depth: int


@dataclass(slots=True)
class Clock:
    """When everything must have ended, on `time.monotonic`; what reads replies may move it."""

    deadline: float


class Box:
    """A started sandbox, and the program in it."""

    def __init__(self, job: Job, sandbox: Sandbox) -> None:
        self.job, self.ending = job, Ending()
        self._depth = sandbox.depth
        self._folder = new_job_folder()
        self.sinks: dict[int, bytearray] = {}
        self._num_replied = self.pid = 0
        try:
            self._write_files()
            self._start(sandbox.enter)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def _write_files(self) -> None:
        os.chmod(self._folder, 0o755)  # the program may run as another user
        for name, text in {**self.job.files, "stdin": self.job.stdin}.items():
            path = os.path.join(self._folder, name)
            with open(path, "w", encoding="utf-8", errors="replace", newline="") as file:
                file.write(text)
            os.chmod(path, 0o644)

    def _start(self, enter: Enter) -> None:
        pipes = {name: os.pipe() for name in ("stdout", "stderr", "replies", "report")}
        stdin = os.open(os.path.join(self._folder, "stdin"), os.O_RDONLY)
        replies = pipes["replies"][1] if self.job.replies is None else self.job.replies
        inherited = [stdin, pipes["stdout"][1], pipes["stderr"][1], replies, *self.job.descriptors]
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _become(inherited, pipes["report"][1], lambda report: enter(self._folder, self.job, report))
            # A descriptor can be polled with the pipes: no signal handler, no thread that waits for the
            # child.
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:
            self._give_up([read for read, _ in pipes.values()])
            raise
        finally:
            for descriptor in (stdin, *(write for _, write in pipes.values())):
                os.close(descriptor)
        self.fds = {name: read for name, (read, _) in pipes.items()}
        self.sinks = {read: bytearray() for read in self.fds.values()}

    def _give_up(self, descriptors: Sequence[int]) -> None:
        """Nothing could be started, or not be watched: leave no process and no descriptor."""
        for descriptor in descriptors:
            os.close(descriptor)
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def read(self, descriptor: int) -> list[bytes] | None:
        """Take what has arrived: complete lines if it is a reply, else []. None at the end of the stream."""
        data = os.read(descriptor, 1 << 16)
        if not data:
            os.close(descriptor)
            return None
        sink = self.sinks[descriptor]
        sink += data
        if descriptor == self.fds["stderr"]:
            self.ending.stderr = bytes(sink[-_STDERR_KEPT:])
        is_reply = descriptor == self.fds["replies"]
        self._num_replied += len(data) if is_reply else 0
        # Counted over all replies: a program that writes without end must not fill the memory of this
        # process.
        if self._num_replied > REPLY_BYTES or (not is_reply and len(sink) > self.job.limits.output_bytes):
            self.kill("output_limit")
        if not is_reply or self.ending.killed:
            return []
        *lines, rest = bytes(sink).split(b"\n")
        self.sinks[descriptor] = bytearray(rest)
        self.ending.replies += lines
        return lines

    def kill(self, reason: Killed) -> None:
        """Kill the sandbox and all in it. The first reason is kept."""
        if not self.ending.killed and self.pid:
            self.ending.killed = reason
        if self.pid:
            # The group has all that the program started. Before the child has called setsid there is none.
            for send in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    send(self.pid, signal.SIGKILL)

    def check_memory(self) -> None:
        """Kill the sandbox if all processes in it together use more than one may."""
        if self.pid and resident_bytes(self.pid, self._depth) > self.job.limits.memory_bytes:
            self.kill("memory")

    def reap(self) -> None:
        """Collect the first process, which has ended."""
        _, status = os.waitpid(self.pid, 0)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # without namespaces, what it has left behind
        self.pid = 0
        os.close(self.pidfd)
        self.ending.status = status

    def discard(self) -> None:
        """Kill the sandbox, and leave nothing of it."""
        self.kill("done")
        if self.pid:
            os.waitpid(self.pid, 0)
            self.pid = 0
        for descriptor in (*self.sinks, self.pidfd):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        shutil.rmtree(self._folder, ignore_errors=True)

    def finish(self) -> None:
        """Read the report, keep the output, remove the folder."""
        report = bytes(self.sinks[self.fds["report"]])
        self.ending.stdout = bytes(self.sinks[self.fds["stdout"]])
        shutil.rmtree(self._folder, ignore_errors=True)
        if self.ending.killed:
            self.ending.status = None
        elif report.startswith(b"!"):
            raise SandboxBrokenError(f"the sandbox did not start: {report[1:].decode(errors='replace')}")
        elif report:
            self.ending.status = int(report)


def _become(inherited: Sequence[int], report: int, enter: Callable[[int], NoReturn]) -> NoReturn:
    """In the fork: give the process its descriptors and nothing else of the parent's, then `enter`."""
    try:
        os.setsid()
        end_with_parent(signal.SIGKILL)
        for number in range(1, signal.NSIG):
            with contextlib.suppress(OSError, ValueError, TypeError):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        # Moved out of the way first: dup2 onto 0, 1, 2 ... would close one that is still to be moved.
        high = [fcntl.fcntl(each, fcntl.F_DUPFD, _FIRST_FREE_FD) for each in inherited]
        report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD + len(high))
        for number, descriptor in enumerate(high):
            os.dup2(descriptor, number)
        os.closerange(len(high), report)
        os.closerange(report + 1, os.sysconf("SC_OPEN_MAX"))
        enter(report)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(report, f"!{type(error).__name__}: {error}"[:500].encode(errors="replace"))
    os._exit(121)


def supervise(
    boxes: Sequence[Box], clock: Clock, on_line: Callable[[Box, bytes], None] | None = None
) -> list[Ending]:
    """Read until every box has ended, or kill them when the clock says so.

    `on_line` gets each reply; it may move the clock or kill a box.

    Raises:
        SandboxBrokenError: a sandbox did not start, or its processes do not die.
    """
    try:
        return _supervise(boxes, clock, on_line)
    except BaseException:
        for box in boxes:
            box.discard()
        raise


def _supervise(
    boxes: Sequence[Box], clock: Clock, on_line: Callable[[Box, bytes], None] | None
) -> list[Ending]:
    poller = select.poll()
    open_fds: dict[int, Box] = {}
    for box in boxes:
        for descriptor in (*box.sinks, box.pidfd):
            poller.register(descriptor, select.POLLIN)
            open_fds[descriptor] = box
    # The kernel limits the memory of each process. Of several together only this loop knows.
    watched = [box for box in boxes if box.job.limits.processes > 1]
    drained = 0.0
    while open_fds:
        now = time.monotonic()
        if now >= clock.deadline or drained:
            for box in boxes:
                box.kill("timeout")
            drained = drained or now + DRAIN_S
            if now >= drained:
                raise SandboxBrokenError(f"processes of the sandbox outlived it by {DRAIN_S:g} s")
        until = drained or clock.deadline
        wait_s = min(until - now, MEMORY_POLL_S) if watched else until - now
        for descriptor, _ in poller.poll(max(wait_s, 0.0) * 1000 + 1):
            _serve(open_fds[descriptor], descriptor, poller, open_fds, on_line)
        for box in watched:
            box.check_memory()
        # All have ended. A process that they left behind may hold a pipe open, and is not waited for.
        if not drained and all(not box.pid for box in boxes):
            clock.deadline = min(clock.deadline, time.monotonic() + DRAIN_S)
    for box in boxes:
        box.finish()
    return [box.ending for box in boxes]


def _serve(
    box: Box,
    descriptor: int,
    poller: select.poll,
    open_fds: dict[int, Box],
    on_line: Callable[[Box, bytes], None] | None,
) -> None:
    """Handle one descriptor that can be read."""
    if descriptor == box.pidfd:
        poller.unregister(descriptor)
        del open_fds[descriptor]
        box.reap()
        return
    lines = box.read(descriptor)
    if lines is None:
        poller.unregister(descriptor)
        del open_fds[descriptor]
        return
    for line in lines:
        if on_line and not box.ending.killed:
            on_line(box, line)
