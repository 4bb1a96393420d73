"""Fast starts of drivers: one process imports the engines once, and each driver is a fork of it.

    python -m benchmarks.faults.warm     reads a JSON object a line, answers each with one

In: {"arguments": [...], "log": path, "run_dir": path, "calls": path, "stop": {sequence, number, when}}.
Out: {"code": what the process ended with, negative for a signal}. Used by `benchmarks.faults.crash`, whose
cases start hundreds of drivers; a fork differs from a fresh `python -m polyphony` in its imports alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.faults.stops import Stop


class Warm:
    """Handle of the process that imports. As a context manager it ends with its forks."""

    def __enter__(self) -> Warm:
        from benchmarks.faults.common import ROOT
        from cluster.actor_process import host_environment

        environment = {**os.environ, **host_environment(1, "cpu")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.faults.warm"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(
        self, arguments: Sequence[str], run_dir: Path, log: Path, stop: Stop | None = None, calls: str = ""
    ) -> int:
        """Run the command to its end, or to its stop. Returns the exit code, negative for a signal."""
        assert self._process.stdin is not None and self._process.stdout is not None
        where = None
        if stop is not None:
            where = {"sequence": stop.sequence, "number": stop.number, "when": stop.when}
        asked = {
            "arguments": [*arguments, "cluster.spawn=local"],
            "run_dir": str(run_dir),
            "log": str(log),
            "stop": where,
            "calls": calls,
        }
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the warm process ended with {self._process.wait()}")
        return int(json.loads(answer)["code"])


def main() -> int:
    """Import, then serve until there is no more input."""
    _import_engines()
    # A lock that another thread holds at the fork stays locked in the child for ever.
    assert threading.active_count() == 1, "a fork has only the thread that forks"
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _drive(json.loads(line))
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)
    return 0


def _import_engines() -> None:
    for name in ("buffer", "generator", "learner", "scorer"):
        import_module(f"actors.{name}")
    for name in ("cluster.train", "polyphony.cli", "viewer.report"):
        import_module(name)


def _drive(asked: dict[str, Any]) -> None:
    """The fork: do as `python -m polyphony` would, and end the process."""
    from benchmarks.faults.stops import install
    from polyphony.cli import main as command

    code = 1
    try:
        signal.alarm(600)  # its own limit: nothing else ends it
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        stop = Stop(**asked["stop"]) if asked["stop"] else None
        install(Path(asked["run_dir"]), stop, asked["calls"])
        code = command(asked["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # what the engines would do at exit is not part of the run, and their threads may not end
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
