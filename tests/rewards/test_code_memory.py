"""The memory of a sandbox: what counts, and what does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from rewards.code.memory import resident_bytes

BALLAST = 64 << 20


def test_a_fork_of_this_process_counts_only_where_a_program_may_be() -> None:
    """At the program's generation it has yet to become the program; a later one was forked by the program."""
    ballast = bytearray(os.urandom(1024) * (BALLAST // 1024))
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        assert len(ballast) == BALLAST
        assert resident_bytes(pid, 0) == 0
        assert resident_bytes(os.getpid(), 0) >= BALLAST, "the fork is generation 1 of this process"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_program_counts_with_all_that_it_has_forked() -> None:
    """Two processes of 64 MiB each."""
    code = f"import os; x = bytearray(os.urandom(1024) * {BALLAST // 1024}); os.fork(); os.write(1, b'1\\n')"
    code += "; input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == [b"1\n"] * 2
        assert resident_bytes(process.pid, 0) >= 2 * BALLAST
        assert BALLAST <= resident_bytes(process.pid, 1) < 2 * BALLAST
        process.kill()
