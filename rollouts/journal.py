"""The journal: every scored group on disk before it may be trained on, one Arrow file per submission.

`Journal.append` is called by the buffer for each group that arrives; `indexes`, `recover` and `read` when a
run starts again; `drop` once a step holding the groups is committed. Files are
`<submission_index:012d>.arrow` (Arrow IPC file format, one record batch) and carry a CRC-32 of their
rows, so that a file cut short or altered is never taken for a group.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pyarrow as pa

from rollouts.columns import check_version
from rollouts.files import PARTIAL_SUFFIX, fsync_dir, make_dir_synced, write_bytes_atomic

_NAME: Final = re.compile(r"(\d{12})\.arrow")
_CRC_KEY: Final = b"polyphony.crc32"


class CorruptJournalError(ValueError):
    """A journal file is not the whole group that was written."""


class Journal:
    """The journal in `folder`, which is created if need be (its parent must exist)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_dir_synced(folder)

    def path(self, submission_index: int) -> Path:
        """Where the group of this submission is, or would be."""
        return self.folder / f"{submission_index:012d}.arrow"

    def append(self, submission_index: int, batch: pa.RecordBatch) -> None:
        """Make a group durable. Appending the same group under the same index again does nothing.

        Raises:
            ValueError: the rows are not one group of this submission, or the index holds another group.
            CorruptJournalError: the index holds a damaged file (`recover` sets it aside).
        """
        group_id = _only_group(submission_index, batch)
        path = self.path(submission_index)
        if path.exists():
            held = self.read(submission_index).column("group_id")[0].as_py()
            if held != group_id:
                raise ValueError(f"{path}: the submission must keep its group {held!r}, got {group_id!r}")
            # the first attempt may have failed between its rename and this
            fsync_dir(self.folder)
            return
        write_bytes_atomic(path, encode_batch(batch))

    def read(self, submission_index: int) -> pa.RecordBatch:
        """The rows of one group.

        Raises:
            ValueError: there is no such file, or its schema version is another.
            CorruptJournalError: the file is not whole.
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
        return batch

    def indexes(self) -> list[int]:
        """The submission indexes that have a file, ascending."""
        matches = (_NAME.fullmatch(name) for name in os.listdir(self.folder))
        return sorted(int(match.group(1)) for match in matches if match)

    def drop(self, submission_indexes: Iterable[int]) -> None:
        """Forget these groups; an index without a file is passed over."""
        for index in submission_indexes:
            self.path(index).unlink(missing_ok=True)
        fsync_dir(self.folder)

    def recover(self) -> list[Path]:
        """Set damaged files aside as `<name>.bad` and clear unfinished ones; call when a run starts.

        Returns:
            The files set aside, under their new names.
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


def encode_batch(batch: pa.RecordBatch) -> memoryview:
    """`batch` as an Arrow IPC file with the CRC-32 of its rows in the batch's metadata."""
    # The check is taken over what a reader will see: slices are cut, absent bitmaps dropped.
    seen = pa.ipc.read_record_batch(batch.serialize(), batch.schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch, custom_metadata={_CRC_KEY: str(_checksum(seen)).encode()})
    return memoryview(sink.getvalue())


def decode_batch(content: bytes, path: Path) -> pa.RecordBatch:
    """The one batch of an Arrow IPC file written by `encode_batch`; `path` is only named in errors.

    Raises:
        CorruptJournalError: `content` is not the whole of such a file.
    """
    try:
        with pa.ipc.open_file(pa.py_buffer(content)) as reader:
            if reader.num_record_batches != 1:
                count = reader.num_record_batches
                raise CorruptJournalError(f"{path}: must hold one record batch, got {count}")
            batch, metadata = reader.get_batch_with_custom_metadata(0)
        batch.validate(full=True)
        stored = (metadata or {}).get(_CRC_KEY)
        found = str(_checksum(batch)).encode()
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        raise CorruptJournalError(f"{path}: not a whole Arrow file: {error}") from error
    if stored != found:
        raise CorruptJournalError(f"{path}: rows must have CRC-32 {stored!r}, got {found!r}")
    return batch


def _checksum(batch: pa.RecordBatch) -> int:
    schema = zlib.crc32(memoryview(batch.schema.serialize()))
    return zlib.crc32(memoryview(batch.serialize()), schema)


def _only_group(submission_index: int, batch: pa.RecordBatch) -> str:
    """The group_id all rows share; ValueError if they do not, or are of another submission."""
    indexes = batch.column("submission_index").unique().to_pylist()
    if indexes != [submission_index]:
        raise ValueError(f"submission_index must be {submission_index} in every row, got {indexes[:5]}")
    groups = batch.column("group_id").unique().to_pylist()
    if len(groups) != 1:
        raise ValueError(f"the rows of submission {submission_index} must be one group, got {groups[:5]}")
    return str(groups[0])
