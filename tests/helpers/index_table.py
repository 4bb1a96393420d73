"""A small index of the buffer: one row per reward, with every column that a step's credit reads."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from rollouts.columns import SCORE_MAP, SPANS


def make_index(groups: Sequence[tuple[int, str, Sequence[float | None]]]) -> pa.Table:
    """One row per reward of (submission_index, origin, rewards); every row has 2 and 3 tokens."""
    rows = [(index, origin, reward) for index, origin, rewards in groups for reward in rewards]
    indexes, origins, rewards = (list(column) for column in zip(*rows, strict=True))
    return pa.table(
        {
            "submission_index": pa.array(indexes, pa.int64()),
            "sample_id": [f"s{number}" for number in range(len(rows))],
            "origin": origins,
            "reward": pa.array(rewards, pa.float64()),
            "prompt_id": [f"p{index}" for index in indexes],
            "answer": pa.nulls(len(rows), pa.string()),
            "answer_ok": pa.nulls(len(rows), pa.bool_()),
            "finish_reason": ["stop"] * len(rows),
            "spans": pa.array([[]] * len(rows), SPANS),
            "scores": pa.array([[]] * len(rows), SCORE_MAP),
            "numbers": pa.nulls(len(rows), SCORE_MAP),
            "partition_id": pa.nulls(len(rows), pa.int32()),
            "num_prompt_tokens": [2] * len(rows),
            "num_tokens": [3] * len(rows),
            "num_loss_tokens": [3] * len(rows),
        }
    )
