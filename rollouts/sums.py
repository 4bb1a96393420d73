"""Checksums of a folder: a file `SHA256SUMS` beside the files, in the format of `sha256sum -c`.

Every committed step, evaluation and checkpoint has one. A folder is intact if the listed names are exactly
the files present and every digest matches. Written and read by the store and the checkpoints.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rollouts.files import Bytes, write_bytes_synced

SUMS: Final = "SHA256SUMS"
_LINE: Final = re.compile(rb"([0-9a-f]{64})  ([^/\x00-\x1f]+)\n")


class DamagedError(ValueError):
    """Something on disk is not what was written; the message names the file and what is wrong with it."""


def digest_bytes(content: Bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 in hex of a file of any size, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path, digests: Mapping[str, str] | None = None) -> None:
    """Write and fsync `SHA256SUMS` for all other files of `folder`; the folder itself is not synced.

    `digests` (name -> SHA-256 in hex) are those of the bytes in the writer's memory; without them the files
    are read.

    Raises:
        DamagedError: the folder contains another folder, or other files than those in `digests`.
    """
    present = _file_names(folder)
    known = digests if digests is not None else {name: digest_file(folder / name) for name in present}
    _check_names(folder, known, present)
    lines = [f"{known[name]}  {name}\n" for name in present]
    write_bytes_synced(folder / SUMS, "".join(lines).encode())


def check_sums(folder: Path) -> None:
    """Check that `folder` has exactly the files of its `SHA256SUMS`.

    Raises:
        FileNotFoundError: there is no such folder.
        DamagedError: a file is missing, unknown or altered; the message names it.
    """
    listed = _read_sums(folder)
    # Names first: a missing file is reported at once and not after minutes of digests.
    _check_names(folder, listed, _file_names(folder))
    for name, digest in listed.items():
        try:
            on_disk = digest_file(folder / name)
        except OSError as error:
            raise DamagedError(f"{folder / name}: cannot be read: {error}") from error
        _check_digest(folder / name, digest, on_disk)


def read_summed(path: Path) -> bytes:
    """The content of one file, checked against the `SHA256SUMS` of its folder.

    Raises:
        FileNotFoundError: there is no such folder.
        DamagedError: the file is missing, is not listed or was altered, or the list is malformed.
    """
    listed = _read_sums(path.parent)
    if path.name not in listed:
        raise DamagedError(f"{path}: must be listed in {SUMS}, got {', '.join(listed) or 'an empty list'}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read: {error}") from error
    _check_digest(path, listed[path.name], digest_bytes(content))
    return content


def _read_sums(folder: Path) -> dict[str, str]:
    path = folder / SUMS
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        # A folder without the list is damaged; no folder at all is an absence, which callers treat apart.
        if not folder.is_dir():
            raise
        raise DamagedError(f"{path}: must be present, got a folder without it") from error
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read: {error}") from error
    listed: dict[str, str] = {}
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        match = _LINE.fullmatch(line)
        try:
            name = match.group(2).decode() if match else ""
        except UnicodeDecodeError:
            name = ""
        if match is None or not name or name in listed:
            raise DamagedError(f"{path}, line {number}: must be '<sha256>  <name>', got {line[:120]!r}")
        listed[name] = match.group(1).decode()
    return listed


def _file_names(folder: Path) -> list[str]:
    """The files of `folder` except SHA256SUMS, ascending; DamagedError for anything but a plain file."""
    names = sorted(name for name in os.listdir(folder) if name != SUMS)
    for name in names:
        if not (folder / name).is_file():
            raise DamagedError(f"{folder / name}: must be a file, got something else")
    return names


def _check_names(folder: Path, listed: Mapping[str, str], present: list[str]) -> None:
    for name in sorted(set(listed) - set(present)):
        raise DamagedError(f"{folder / name}: is listed in {SUMS} but missing")
    for name in sorted(set(present) - set(listed)):
        # A file more is as suspect as one less: readers that take a folder as a whole would read it.
        raise DamagedError(f"{folder / name}: is not listed in {SUMS}")


def _check_digest(path: Path, listed: str, digest: str) -> None:
    if digest != listed:
        raise DamagedError(f"{path}: must have SHA-256 {listed}, got {digest} ({path.stat().st_size} bytes)")
