"""Durable files: everything that a run must not lose is written with these functions.

A file appears complete or not at all: temporary name in the same folder, write, fsync, rename, fsync of the
folder. Without the first fsync a crash may leave an empty file under the final name; without the second it
may undo the rename. Used by the journal, the store, and everything that writes a run's JSON. Any step may
raise an OSError that names the file, mostly because the disk is full; the target then has its former content
or the complete new one.
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
"""Suffix of files that are being written; after a crash such files can be deleted."""


def unicode_text(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, which neither UTF-8 nor Arrow can hold.

    A policy may write one, and Python reads one from JSON.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def write_bytes_atomic(path: Path, content: Bytes) -> None:
    """Replace `path` by `content`, durably. The folder must exist."""
    # In the same folder, because a rename is atomic only within one file system.
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
        ValueError: `value` contains NaN or an infinity, which JSON cannot represent.
    """
    write_bytes_atomic(path, encode_json(value, path.name))


def encode_json(value: Json, source: str) -> bytes:
    """`value` as indented UTF-8 JSON.

    Raises:
        ValueError: `value` contains NaN, an infinity or a lone surrogate; the message names `source`.
    """
    try:
        return (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()
    except ValueError as error:
        raise ValueError(f"{source} must have finite numbers and Unicode text: {error}") from error


def write_bytes_synced(path: Path, content: Bytes) -> None:
    """Write and fsync a file under its final name, for files in a folder that is itself renamed later."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        _write_all(descriptor, path, content)
        _fsync(descriptor, path)
    finally:
        os.close(descriptor)


def rename_dir_synced(source: Path, target: Path) -> None:
    """Rename the folder `source` to `target`, durably; OSError if `target` is a folder with content."""
    os.replace(source, target)
    fsync_dir(target.parent)


def move_dir_synced(source: Path, parent: Path) -> Path:
    """Move the folder `source` into `parent`, durably, under its name or the first free name.1, name.2 ..."""
    target, number = parent / source.name, 0
    while target.exists():
        number += 1
        target = parent / f"{source.name}.{number}"
    rename_dir_synced(source, target)
    fsync_dir(source.parent)  # after the new name is durable: a crash in between leaves two names, not none
    return target


def fresh_dir(path: Path) -> None:
    """Make `path` an empty folder, removing what a crash left there. Its name is not made durable."""
    if path.exists():
        shutil.rmtree(path)
    os.mkdir(path)


def make_dir_synced(path: Path) -> None:
    """Create the folder `path` durably, unless it exists. Its parent must exist."""
    try:
        os.mkdir(path)
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    fsync_dir(path.parent)


def fsync_dir(path: Path) -> None:
    """Make the names in a folder durable: renames, new files and deletions."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _fsync(descriptor, path)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make a file durable that other code wrote, and drop its page cache: the next read is from the disk."""
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
        error.filename = str(path)  # os.fsync knows only the descriptor's number
        raise


def append_line(path: Path, line: str) -> None:
    """Append `line` and a newline, without fsync: for logs that can be rebuilt.

    One writer at a time. An incomplete last line, left by a crash, is removed first, so that the file has
    only complete lines.

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
        except OSError:  # a full disk may have taken a part of the line
            os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)


def _end_of_last_line(descriptor: int) -> int:
    """Offset after the last newline, 0 if there is none; reads backwards in blocks."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 4096)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _write_all(descriptor: int, path: Path, content: Bytes) -> None:
    # A write may take a part only: Linux writes at most 2 GiB at a time, and less on a nearly full disk.
    rest = memoryview(content).cast("B")
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError as error:
        error.filename = str(path)
        raise
