"""Durable files: everything a run must not lose is written through here.

A file appears whole or not at all: temporary name in the same folder, write, fsync, rename, fsync of the
folder. Called by the journal, the store, and everything that writes a run's JSON. Any step may raise OSError
naming the file, most often for a full disk; the target then still has its former content, or already the
whole new one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
Bytes: TypeAlias = bytes | memoryview

PARTIAL_SUFFIX: Final = ".partial"
"""Ends the names of files that are being written; what a crash leaves behind under it is worthless."""


def write_bytes_atomic(path: Path, content: Bytes) -> None:
    """Replace `path` by `content`, durably. The folder must exist."""
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        write_bytes_synced(partial, content)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def write_json_atomic(path: Path, value: Json) -> None:
    """Replace `path` by `value` as JSON, durably.

    Raises:
        ValueError: `value` holds NaN or an infinity, which JSON has no words for.
    """
    write_bytes_atomic(path, encode_json(value, path.name))


def encode_json(value: Json, source: str) -> bytes:
    """`value` as indented UTF-8 JSON; ValueError naming `source` when it holds NaN or an infinity."""
    try:
        return (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()
    except ValueError as error:
        raise ValueError(f"{source} must hold finite numbers and Unicode text: {error}") from error


def write_bytes_synced(path: Path, content: Bytes) -> None:
    """Write and fsync, under the final name at once: for files in a folder that is itself renamed later."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        _write_all(descriptor, path, content)
        _fsync(descriptor, path)
    finally:
        os.close(descriptor)


def rename_dir_synced(source: Path, target: Path) -> None:
    """Make the folder `source` appear as `target`, durably; OSError if `target` is a folder with content."""
    os.replace(source, target)
    fsync_dir(target.parent)


def move_dir_synced(source: Path, parent: Path) -> Path:
    """Move the folder `source` into the folder `parent`, durably: as its name, or name.1, name.2, ..."""
    target, number = parent / source.name, 0
    while target.exists():
        number += 1
        target = parent / f"{source.name}.{number}"
    rename_dir_synced(source, target)
    fsync_dir(source.parent)
    return target


def fresh_dir(path: Path) -> None:
    """Make `path` an empty folder, whatever a crash left there; its name is not made durable."""
    if path.exists():
        shutil.rmtree(path)
    os.mkdir(path)


def make_dir_synced(path: Path) -> None:
    """Create `path` (its parent must exist) and make its name durable; an existing folder is left alone."""
    try:
        os.mkdir(path)
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    fsync_dir(path.parent)


def fsync_dir(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _fsync(descriptor, path)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make a file durable that somebody else wrote, and have its next reader read the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _fsync(descriptor, path)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _fsync(descriptor: int, path: Path) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)  # it knows only a number
        raise


def append_line(path: Path, line: str) -> None:
    """Append `line` and a newline in one write, without fsync: for logs that can be rebuilt.

    One writer at a time. A line that a crash cut short is removed first, so that the file only ever holds
    whole lines.

    Raises:
        ValueError: `line` contains a newline.
    """
    if "\n" in line:
        raise ValueError(f"a line must not contain a newline, got {line!r}")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        end = _end_of_last_line(descriptor)
        os.ftruncate(descriptor, end)
        os.lseek(descriptor, end, os.SEEK_SET)
        try:
            _write_all(descriptor, path, line.encode() + b"\n")
        except OSError:
            os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)


def _end_of_last_line(descriptor: int) -> int:
    """Offset just after the last newline, 0 if there is none; reads backwards in blocks."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 4096)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _write_all(descriptor: int, path: Path, content: Bytes) -> None:
    rest = memoryview(content).cast("B")
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError as error:
        error.filename = str(path)
        raise
