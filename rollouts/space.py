"""Disk space: checked before a run writes, and recognized in errors when it runs out.

`check_free_space` is called before a run starts and before a checkpoint; `is_disk_full` when an OSError has
stopped a run.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Final

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_free_space(path: Path, needed_bytes: int, purpose: str) -> None:
    """Check that `needed_bytes` can be written under `path`, which need not exist yet.

    Raises:
        ValueError: there is less free space; the message has both numbers and `purpose`.
    """
    folder = path.absolute()
    # The run directory may not exist yet; its parent is on the same disk.
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise ValueError(
            f"{path}: {purpose} needs {_readable(needed_bytes)}, got {_readable(free)} free: "
            "make room there, or choose another folder (runs_dir=...)"
        )


def is_disk_full(error: OSError) -> bool:
    """Whether a write failed for lack of space: disk full, quota reached, or file size limit."""
    return error.errno in _FULL


def _readable(num_bytes: int) -> str:
    """1536 -> '1.5 KiB'."""
    amount, units = float(num_bytes), iter(("bytes", "KiB", "MiB", "GiB"))
    for unit in units:
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
