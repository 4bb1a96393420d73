"""Policy versions of rows by hand: spans, tokens that nobody sampled, slices, rows without versions."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from rollouts.columns import VERSIONS
from rollouts.versions import NO_VERSION, row_versions, version_tokens


def rows_of(rows: Sequence[tuple[Sequence[bool], Sequence[tuple[int, int]]]]) -> pa.RecordBatch:
    """One row per (loss mask, (start, version) spans)."""
    masks = pa.array([list(mask) for mask, _ in rows], pa.list_(pa.bool_()))
    spans = [[{"start": start, "version": version} for start, version in each] for _, each in rows]
    return pa.RecordBatch.from_pydict({"loss_mask": masks, "versions": pa.array(spans, VERSIONS)})


ROWS = rows_of(
    [
        ([True] * 4, [(0, 3), (1, 5), (3, 6)]),  # 3 5 5 6
        ([True, True], []),
        ([False, True, False, False, True], [(0, 4), (2, 1), (4, 7)]),  # - 4 - - 7: nothing is of version 1
        ([False, False], [(0, 2), (1, 9)]),
        ([], [(0, 8)]),
        ([True] * 3, [(0, 5)]),
    ]
)


def test_the_oldest_version_that_sampled_a_token() -> None:
    """A row without loss tokens has its oldest span's, so that it ages like its siblings."""
    assert row_versions(ROWS).tolist() == [3, NO_VERSION, 4, 2, 8, 5]
    assert row_versions(ROWS.slice(2, 2)).tolist() == [4, 2]
    assert row_versions(ROWS.slice(0, 0)).tolist() == []


def test_versions_summed_over_loss_tokens() -> None:
    assert version_tokens(ROWS).tolist() == [19, 0, 11, 0, 0, 15]
    assert version_tokens(ROWS.slice(2, 2)).tolist() == [11, 0]
