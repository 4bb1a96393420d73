"""Baselines in processes of their own: start one, ask it for one timed round at a time.

A baseline is a module of this folder with a class that has `round`; `serve` answers for it in the child, with
a line of JSON per round. The child measures its own time, so communication does not count. It works on files
in a folder that `benchmarks.engines`, which calls this, fills from what the system works on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, cast

from configs.load import load_config
from configs.schema import RunConfig

ROOT = Path(__file__).resolve().parent.parent
Answer = Mapping[str, object]
PRESET = "debug"


class Side(Protocol):
    """A baseline. `round` does the work once and returns seconds by name, and what else is compared."""

    def round(self) -> Answer: ...


class BareProcess:
    """A child process that runs `module`, idle unless it is asked for a round. Use as a context manager.

    Raises:
        RuntimeError: the child has died; the message ends with the tail of its log.
    """

    def __init__(self, module: str, folder: Path, environment: Mapping[str, str]) -> None:
        self._log = folder / f"{module}.log"
        reading, writing = os.pipe()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(folder), str(writing)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(writing,),
                cwd=ROOT,
                env=os.environ | dict(environment),
            )
        os.close(writing)
        self._answers = os.fdopen(reading)
        self._read()  # the first line says that it is up

    def __enter__(self) -> BareProcess:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # the child ends with its input
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()

    def round(self) -> Answer:
        """One timed round."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"round\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Answer:
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"a baseline has died, see {self._log}:\n{self._log.read_text()[-2000:]}")
        return cast(Answer, json.loads(line))


def read_config(folder: Path) -> RunConfig:
    """The system's config, from the overrides it was made with: a written one has its secrets masked."""
    return load_config(PRESET, json.loads((folder / "overrides.json").read_text()))


def serve(make: Callable[[Path], Side]) -> None:
    """The child's main: build the baseline from folder argv[1], answer rounds on descriptor argv[2]."""
    side = make(Path(sys.argv[1]))
    with os.fdopen(int(sys.argv[2]), "w") as answers:
        answers.write("{}\n")
        answers.flush()
        for _ in sys.stdin:
            answers.write(json.dumps(side.round()) + "\n")
            answers.flush()
