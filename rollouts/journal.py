"""The journal: every scored group on disk before it may be trained on, one Arrow file per submission.

The buffer calls `Journal.append` for each group that arrives; `indexes`, `recover` and `read` when a run
resumes; `drop` once a step with the groups is committed. Files are `<submission_index:012d>.arrow` (Arrow IPC
file format, one record batch) and contain the SHA-256 of their own bytes, so that a truncated or altered file
is always detected.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pyarrow as pa

from rollouts.columns import check_version, with_added_columns
from rollouts.files import PARTIAL_SUFFIX, fsync_dir, make_dir_synced, write_bytes_atomic
from rollouts.sums import DamagedError

_NAME: Final = re.compile(r"(\d{12})\.arrow")
_DIGEST_KEY: Final = b"polyphony.sha256"
_DIGEST: Final = re.compile(rb"polyphony-sha256:([0-9a-f]{64})")
_UNSET: Final = b"0" * 64


class CorruptJournalError(DamagedError):
    """A journal file is not the group that was written."""


class Journal:
    """The journal in `folder`, which is created if it does not exist (its parent must)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_dir_synced(folder)

    def path(self, submission_index: int) -> Path:
        """The file of this submission's group, which need not exist."""
        return self.folder / f"{submission_index:012d}.arrow"

    def append(self, submission_index: int, batch: pa.RecordBatch) -> None:
        """Write a group durably. Does nothing if the same group is already there.

        Raises:
            ValueError: the rows are not one group of this submission, or the index has another group.
            CorruptJournalError: the index has a damaged file (`recover` sets it aside).
        """
        group_id = _only_group(submission_index, batch)
        path = self.path(submission_index)
        if path.exists():
            held = self.read(submission_index).column("group_id")[0].as_py()
            if held != group_id:
                raise ValueError(f"{path}: the submission must keep its group {held!r}, got {group_id!r}")
            # An earlier call may have failed between its rename and its fsync.
            fsync_dir(self.folder)
            return
        write_bytes_atomic(path, encode_batch(batch))

    def read(self, submission_index: int) -> pa.RecordBatch:
        """The rows of one group.

        Raises:
            ValueError: there is no such file, or it has another schema version.
            CorruptJournalError: the file is damaged.
        """
        path = self.path(submission_index)
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise ValueError(f"{path}: no group is journaled for submission {submission_index}") from error
        batch = decode_batch(content, path)
        check_version(batch.schema.metadata, str(path))
        try:
            _only_group(submission_index, batch)
        except ValueError as error:
            raise CorruptJournalError(f"{path}: {error}") from error
        return with_added_columns(batch)

    def indexes(self) -> list[int]:
        """The submission indexes that have a file, ascending."""
        matches = (_NAME.fullmatch(name) for name in os.listdir(self.folder))
        return sorted(int(match.group(1)) for match in matches if match)

    def drop(self, submission_indexes: Iterable[int]) -> None:
        """Delete these groups; an index without a file is ignored."""
        for index in submission_indexes:
            self.path(index).unlink(missing_ok=True)
        fsync_dir(self.folder)

    def recover(self) -> list[Path]:
        """Rename damaged files to `<name>.bad` and delete unfinished ones; call when a run starts.

        Returns:
            The damaged files, under their new names.
        """
        bad = []
        for index in self.indexes():
            try:
                self.read(index)
            except CorruptJournalError:
                path = self.path(index)
                aside = path.with_name(path.name + ".bad")
                os.replace(path, aside)
                bad.append(aside)
        for partial in self.folder.glob(f".*{PARTIAL_SUFFIX}"):
            partial.unlink()
        fsync_dir(self.folder)
        return bad


def encode_batch(batch: pa.RecordBatch) -> bytes:
    """`batch` as an Arrow IPC file, with the SHA-256 of the file in the batch's metadata.

    The digest is computed with zeros in its own place, so it covers every byte, including padding and Arrow's
    headers.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch, custom_metadata={_DIGEST_KEY: b"polyphony-sha256:" + _UNSET})
    content = bytearray(sink.getvalue())
    place = _digest_place(content)
    assert place is not None and content[place] == _UNSET
    content[place] = hashlib.sha256(content).hexdigest().encode()
    return bytes(content)


def decode_batch(content: bytes, path: Path) -> pa.RecordBatch:
    """The one batch of an Arrow IPC file written by `encode_batch`; `path` is only named in errors.

    Raises:
        CorruptJournalError: `content` is not the whole of such a file.
    """
    place = _digest_place(content)
    if place is None:
        raise CorruptJournalError(f"{path}: must carry its SHA-256, got none in {len(content)} bytes")
    stored, blank = content[place].decode(), bytearray(content)
    blank[place] = _UNSET
    found = hashlib.sha256(blank).hexdigest()
    if stored != found:
        raise CorruptJournalError(f"{path}: must have SHA-256 {stored}, got {found} ({len(content)} bytes)")
    try:
        with pa.ipc.open_file(pa.py_buffer(content)) as reader:
            if reader.num_record_batches != 1:
                count = reader.num_record_batches
                raise CorruptJournalError(f"{path}: must hold one record batch, got {count}")
            return reader.get_batch(0)
    except (pa.ArrowException, OSError) as error:
        raise CorruptJournalError(f"{path}: not a whole Arrow file: {error}") from error


def _digest_place(content: bytes | bytearray) -> slice | None:
    """The position of the digest. Metadata come before rows, so a text in a row is never taken for it."""
    match = _DIGEST.search(content)
    return None if match is None else slice(*match.span(1))


def _only_group(submission_index: int, batch: pa.RecordBatch) -> str:
    """The group_id all rows share; ValueError if they do not, or are of another submission."""
    indexes = batch.column("submission_index").unique().to_pylist()
    if indexes != [submission_index]:
        raise ValueError(f"submission_index must be {submission_index} in every row, got {indexes[:5]}")
    groups = batch.column("group_id").unique().to_pylist()
    if len(groups) != 1:
        raise ValueError(f"the rows of submission {submission_index} must be one group, got {groups[:5]}")
    return str(groups[0])
