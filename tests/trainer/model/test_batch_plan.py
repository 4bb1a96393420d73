"""A step's plan has every row once, equally on every rank; microbatches index the right tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.model.batch_plan import Microbatch, build_microbatch, plan_batch

torch.set_num_threads(1)
CPU = torch.device("cpu")
LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 2)), min_size=1, max_size=20)


@given(LENGTHS, st.integers(1, 4), st.integers(1, 100))
def test_plan(rows: list[tuple[int, int]], num_ranks: int, limit: int) -> None:
    """Every row once, in its own update; equal numbers of microbatches on all ranks; the token limit;
    determinism.
    """
    lengths, updates = (np.array(column) for column in zip(*rows, strict=True))
    plan = plan_batch(lengths, updates, 3, num_ranks, limit)
    assert plan == plan_batch(lengths, updates, 3, num_ranks, limit)
    assert len(plan.microbatches) == num_ranks
    assert sorted(row for rank in range(num_ranks) for row in plan.rows_of(rank)) == list(range(len(rows)))
    for update in range(3):
        assert len({len(rank[update]) for rank in plan.microbatches}) == 1
        assert plan.microbatches[0][update], "an update without rows still has one (empty) microbatch"
        for micro in (micro for rank in plan.microbatches for micro in rank[update]):
            assert all(updates[row] == update for row in micro)
            padded = len(micro) * max((int(lengths[row]) for row in micro), default=0)
            assert padded <= limit or len(micro) == 1


@given(LENGTHS, st.integers(1, 4))
def test_ranks_get_equal_work(rows: list[tuple[int, int]], num_ranks: int) -> None:
    """Longest first: no rank has more than one row's tokens above another in an update."""
    lengths = np.array([length for length, _ in rows])
    plan = plan_batch(lengths, np.zeros(len(rows), np.int64), 1, num_ranks, 64)
    loads = [sum(int(lengths[row]) for row in plan.rows_of(rank)) for rank in range(num_ranks)]
    assert max(loads) - min(loads) <= lengths.max()


def test_plan_by_hand() -> None:
    """Lengths 5 4 3 3 2 1 on two ranks: 5+3+1 and 4+3+2; at most 8 padded tokens cut them as below."""
    plan = plan_batch(np.array([1, 5, 3, 4, 2, 3]), np.zeros(6, np.int64), 1, 2, 8)
    assert plan.microbatches == ((((1,), (5, 0)),), (((3, 2), (4,)),))


def build(prompts: list[list[int]], completions: list[list[int]]) -> Microbatch:
    return build_microbatch(
        [np.array(row, np.int64) for row in prompts],
        [np.array(row, np.int64) for row in completions],
        np.linspace(0.5, 1.0, len(prompts)),
        CPU,
    )


def test_microbatch_by_hand() -> None:
    """Rows (7 8 | 9), (6 | ) and (5 | 4 3): tokens 9, 4, 3 come from positions (0, 1), (2, 0), (2, 1)."""
    batch = build([[7, 8], [6], [5]], [[9], [], [4, 3]])
    assert batch.ids_BT.tolist() == [[7, 8, 9], [6, 0, 0], [5, 4, 3]]
    assert batch.attention_BT.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 1]]
    assert batch.positions_BT.tolist() == [[0, 1, 2]] * 3
    assert batch.source_rows_T.tolist() == [0, 2, 2]
    assert batch.source_positions_T.tolist() == [1, 0, 1]
    assert batch.targets_T.tolist() == [9, 4, 3]
    assert batch.tau_T.tolist() == [0.5, 1.0, 1.0]


def test_the_dummy_microbatch() -> None:
    """Without rows: one row of one attended token and no targets, so that a forward still runs."""
    batch = build_microbatch([], [], np.zeros(0), CPU)
    assert batch.ids_BT.shape == (1, 1) and batch.attention_BT.tolist() == [[1]]
    assert batch.targets_T.shape == batch.tau_T.shape == batch.source_rows_T.shape == (0,)
    assert batch.source_rows_T.dtype == torch.int64, "an index must stay an integer when it is empty"


def test_a_row_needs_a_prompt() -> None:
    """Its first token could not be predicted."""
    with pytest.raises(AssertionError, match="at least one prompt token"):
        build([[]], [[1]])


IDS = st.lists(st.integers(1, 99), max_size=5)


@given(st.lists(st.tuples(st.lists(st.integers(1, 99), min_size=1, max_size=5), IDS), min_size=1, max_size=6))
def test_microbatch_against_a_loop(rows: list[tuple[list[int], list[int]]]) -> None:
    """Token k of a row follows the token at its source, row after row."""
    batch = build([prompt for prompt, _ in rows], [completion for _, completion in rows])
    wanted = [
        (row, len(prompt) + k - 1, token)
        for row, (prompt, completion) in enumerate(rows)
        for k, token in enumerate(completion)
    ]
    found = zip(
        batch.source_rows_T.tolist(), batch.source_positions_T.tolist(), batch.targets_T.tolist(), strict=True
    )
    assert list(found) == wanted
    for row, (prompt, completion) in enumerate(rows):
        whole = prompt + completion
        assert batch.ids_BT[row, : len(whole)].tolist() == whole
        assert batch.attention_BT[row].sum().item() == len(whole)
