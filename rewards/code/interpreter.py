"""What a program in the sandbox needs to run: the interpreter, its standard library and the C libraries.

In: nothing. Out: paths that are shown read-only, and the command that starts Python. Site packages, the
virtual environment of this process, home folders and configuration are not among them.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")


@dataclass(frozen=True, slots=True)
class Interpreter:
    """`shown` are existing files and folders, none inside another; `links` are (link, what it points at)."""

    executable: str
    shown: tuple[str, ...]
    links: tuple[tuple[str, str], ...]

    def command(self, script: str, *arguments: str) -> list[str]:
        """Start `script`: isolated, without site packages, nothing compiled to disk, text as UTF-8."""
        return [self.executable, "-I", "-S", "-B", "-X", "utf8", script, *arguments]


@cache
def find_interpreter() -> Interpreter:
    """The Python that this process runs on, outside its virtual environment."""
    executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    library = os.path.join(os.path.realpath(sys.base_prefix), "lib")
    links = [(path, os.readlink(path)) for path in _LIBRARIES if os.path.islink(path)]
    wanted = [executable, library, *(path for path in _LIBRARIES if not os.path.islink(path))]
    existing = {os.path.realpath(path) for path in wanted if os.path.exists(path)}
    shown = [path for path in existing if not any(Path(path).is_relative_to(o) for o in existing - {path})]
    return Interpreter(executable=executable, shown=tuple(sorted(shown)), links=tuple(links))
