"""A rank's shard as numpy and back: nulls, empty completions and slices of a larger batch."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from rollout_rows import make_group, make_sample

from rollouts.schema import group_to_batch
from trainer.model.rows import read_rows, score_columns

BATCH = group_to_batch(make_group(0, (make_sample("a", 2), make_sample("b", 0), make_sample("c", 3))), "run")


def test_read_rows() -> None:
    """Rows of 2, 0 and 3 tokens, each with the prompt 5 6 7 and behavior logprobs of -0.5."""
    rows = read_rows(BATCH)
    assert rows.sample_ids == ["a", "b", "c"] and len(rows) == 3
    assert [row.tolist() for row in rows.tokens] == [[0, 1], [], [0, 1, 2]]
    assert [row.tolist() for row in rows.prompts] == [[5, 6, 7]] * 3
    assert [row.tolist() for row in rows.behavior_logprobs] == [[-0.5] * 2, [], [-0.5] * 3]
    assert [row.dtype for row in rows.loss_masks] == [np.bool_] * 3
    assert rows.temperature_N.tolist() == pytest.approx([0.7] * 3)


def test_read_rows_of_a_slice() -> None:
    """A slice shares its parent's offsets: it must not get the parent's first tokens."""
    rows = read_rows(BATCH.slice(2))
    assert rows.sample_ids == ["c"] and rows.tokens[0].tolist() == [0, 1, 2]
    assert len(read_rows(BATCH.slice(0, 0))) == 0


def test_null_behavior_becomes_nan() -> None:
    """A row the sampler did not make has no behavior logprobs: NaN at each of its tokens."""
    column = BATCH.schema.get_field_index("behavior_logprobs")
    nulls = [[-0.5, -0.5], None, None]
    rows = read_rows(BATCH.set_column(column, BATCH.schema.field(column), _lists(nulls)))
    assert rows.behavior_logprobs[0].tolist() == [-0.5, -0.5]
    assert len(rows.behavior_logprobs[2]) == 3 and np.isnan(rows.behavior_logprobs[2]).all()


def _lists(values: list[list[float] | None]) -> pa.Array:
    return pa.array(values, pa.list_(pa.float32()))


def test_score_columns_by_hand() -> None:
    """Proximal -0.5 + d against behavior -0.5: |d| adds to 0.3 in row a, k3 of each d is exp(d) - 1 - d."""
    rows = read_rows(BATCH)
    columns = {
        "proximal_logprobs": [np.array([-0.4, -0.7]), np.zeros(0), np.array([-0.5] * 3)],
        "entropy": [np.array([1.0, 2.0]), np.zeros(0), np.array([3.0] * 3)],
        "entropy_t1": [np.array([0.5, 0.5]), np.zeros(0), np.array([1.0] * 3)],
    }
    found = score_columns(rows, columns)
    assert found.column("entropy_mean").to_pylist() == [1.5, None, 3.0]
    assert found.column("entropy_mean_t1").to_pylist() == [0.5, None, 1.0]
    assert found.column("mismatch_abs").to_pylist() == pytest.approx([0.3, 0.0, 0.0], abs=1e-7)
    k3 = math.exp(0.1) - 1.1 + math.exp(-0.2) - 0.8
    assert found.column("mismatch_k3").to_pylist() == pytest.approx([k3, 0.0, 0.0], abs=1e-7)
    assert found.column("entropy").to_pylist() == [[1.0, 2.0], [], [3.0] * 3]
    assert found.column("ref_logprobs").null_count == 3
