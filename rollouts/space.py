"""Room on the disk: asked for before a run writes, and recognised when it runs out all the same.

`check_free_space` is called before a run starts and before a checkpoint; `is_disk_full` where an OSError is
turned into the reason a run stopped.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Final

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_free_space(path: Path, needed_bytes: int, purpose: str) -> None:
    """Raise ValueError unless `needed_bytes` can be written under `path` (which need not exist yet)."""
    folder = path.absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise ValueError(
            f"{path}: {purpose} needs {_shown(needed_bytes)}, got {_shown(free)} free: "
            f"make room there, or choose another folder"
        )


def is_disk_full(error: OSError) -> bool:
    """Whether a write failed for want of room: disk full, quota reached, or the file too large for it."""
    return error.errno in _FULL


def _shown(num_bytes: int) -> str:
    """1536 -> '1.5 KiB'."""
    amount, units = float(num_bytes), iter(("bytes", "KiB", "MiB", "GiB"))
    for unit in units:
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
