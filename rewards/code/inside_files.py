"""The scripts that run in the sandbox, the folders of jobs, and what killed processes have left.

In: nothing. Out: the folder that every sandbox shows read-only, beside the job's own.
"""

from __future__ import annotations

import contextlib
import os
import py_compile
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

HARNESS: Final = Path(__file__).resolve().parent / "inside"
PREFIX: Final = "polyphony-box-"


@cache
def harness_folder() -> str:
    """The folder of the scripts, compiled if it may be written, so that each sandbox starts sooner."""
    for path in sorted(HARNESS.glob("*.py")):
        with contextlib.suppress(OSError):
            py_compile.compile(str(path), doraise=True)
    return str(HARNESS)


def new_job_folder() -> str:
    """An empty folder for one job, named after this process."""
    return tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")


def remove_left_folders() -> None:
    """Remove the job folders of processes of this user that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdecimal() and not Path("/proc", owner).exists():
            shutil.rmtree(folder, ignore_errors=True)
