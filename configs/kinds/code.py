"""Options of the scorer `code`, which runs programs against tests in a sandbox (docs/scorers/code.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from configs.errors import Broken
from configs.fields import NOT_NEGATIVE, NOTHING, POSITIVE, Rule, at_least, one_of, option
from configs.kinds.base import Kind, Options

_URL: Final = Rule(
    lambda url: not url or url.startswith(("http://", "https://")), "must begin with http:// or https://"
)
_START_S: Final = 10.0
"""Seconds for what is not the program: the sandboxes of its last test, and their removal."""


@dataclass
class CodeOptions(Options):
    """1 when the program in the answer passes the tests of its prompt, run in a sandbox."""

    language: str = option("python", one_of("python", "lab"))
    """Language of the programs: python, or lab, the lab's format code."""
    reward: str = option("all", one_of("all", "share"))
    """all: 1 if every test passes, else 0. share: the share of the tests that pass."""
    max_tests: int = option(0, NOT_NEGATIVE)
    """Run the first `max_tests` tests of a prompt; 0 runs all."""
    bare: bool = True
    """Take an answer without any fenced block as the program."""
    tolerance: float = option(0.0, NOT_NEGATIVE)
    """Most by which numbers may differ, absolute or relative; 0 compares them exactly."""
    in_place: bool = False
    """Let tests that are source see what the program has changed in their arguments."""
    wall_s: float = option(6.0, POSITIVE)
    """Seconds for one test, the start of the program included."""
    total_s: float = option(30.0, POSITIVE)
    """Seconds for all tests of one program; those left over are timeouts."""
    cpu_s: float = option(10.0, at_least(1))
    """Seconds of processor time of one start of the program, rounded up."""
    memory_mb: int = option(512, at_least(64))
    """MiB of address space of each process of the program."""
    processes: int = option(1, at_least(1))
    """Processes that the program may have. 1: it may start threads and no process."""
    files_mb: int = option(16, at_least(1))
    """MiB that the program may write to its own /tmp, which is in memory."""
    output_bytes: int = option(1 << 20, at_least(1024))
    """Most bytes of output of one test."""
    isolation: str = option("auto", one_of("auto", "bubblewrap", "namespaces", "landlock", "none"), NOTHING)
    """How programs are kept in. auto: the first that holds here of bubblewrap, namespaces and landlock."""
    url: str = option("", _URL, NOTHING)
    """Address of a service with the interface of Sandbox Fusion, used instead of this machine."""
    num_processes: int = option(1, POSITIVE, NOTHING)
    """Programs that each replica runs at a time."""

    @property
    def limit_s(self) -> float:
        """Seconds after which the process that watches over the program is killed too."""
        return self.total_s + self.wall_s + _START_S

    def check(self) -> Iterator[Broken]:
        if self.isolation == "landlock" and self.processes > 1:
            yield "isolation", "must be bubblewrap or namespaces with processes above 1"
        if self.url and self.isolation not in ("auto", "none"):
            yield "isolation", "must be auto with a url: the service isolates the programs"
        if self.total_s < self.wall_s:
            yield "total_s", f"must be at least wall_s ({self.wall_s:g})"

    def notes(self) -> Iterator[str]:
        if self.isolation == "none" and not self.url:
            yield "isolation is none: programs of the policy run with your rights, files and network"


CODE_SCORERS: Final[dict[str, Kind]] = {
    "code": Kind(
        CodeOptions,
        "rewards.code.scorer:code",
        answers=True,
        isolated=True,
        warm_up="rewards.code.scorer:warm_up",
        tags=("code",),
        outcomes=True,
    ),
}
