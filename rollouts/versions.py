"""Which policy versions sampled the tokens of rows, from their `versions` and `loss_mask`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

NO_VERSION: Final = np.iinfo(np.int64).max
"""The version of a row that no policy sampled."""


@dataclass(frozen=True, slots=True)
class _VersionSpans:
    """The spans in `versions` of all rows, concatenated: row, policy_version and loss tokens of each span."""

    row: np.ndarray
    version: np.ndarray
    num_loss_tokens: np.ndarray


def _version_spans(rows: pa.RecordBatch) -> _VersionSpans:
    """A span ends where the next one of its row begins. Tokens that no policy sampled are not counted."""
    column = rows.column("versions")
    owner = np.repeat(np.arange(rows.num_rows), pc.list_value_length(column).to_numpy())
    spans = pc.list_flatten(column)
    starts = pc.struct_field(spans, "start").to_numpy(zero_copy_only=False).astype(np.int64)
    lengths = pc.list_value_length(rows.column("loss_mask")).to_numpy().astype(np.int64)
    row_ends = np.cumsum(lengths)
    begins = starts + (row_ends - lengths)[owner]
    ends = row_ends[owner]
    same_row = np.flatnonzero(owner[1:] == owner[:-1])
    ends[same_row] = begins[same_row + 1]
    mask = pc.list_flatten(rows.column("loss_mask")).to_numpy(zero_copy_only=False)
    before = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])
    return _VersionSpans(
        owner,
        pc.struct_field(spans, "version").to_numpy(zero_copy_only=False),
        before[ends] - before[begins],
    )


def row_versions(batch: pa.RecordBatch) -> np.ndarray:
    """The oldest policy_version among each row's loss tokens, int64 [N]; NO_VERSION if it has none.

    A row without loss tokens has the version of its oldest span.
    """
    spans = _version_spans(batch)
    sampled = np.bincount(spans.row, spans.num_loss_tokens, batch.num_rows)[spans.row]
    counted = (spans.num_loss_tokens > 0) | (sampled == 0)
    oldest = np.full(batch.num_rows, NO_VERSION, dtype=np.int64)
    np.minimum.at(oldest, spans.row[counted], spans.version[counted])
    return oldest


def version_tokens(rows: pa.RecordBatch) -> np.ndarray:
    """The sum over each row's loss tokens of their policy_version, int64 [N]."""
    spans = _version_spans(rows)
    return np.bincount(spans.row, spans.version * spans.num_loss_tokens, rows.num_rows).astype(np.int64)
