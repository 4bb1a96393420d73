"""Batch statistics see the same tokens in the same order on every rank, and answer for the local ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.prepare import TokenTable, prepare_columns

Rows = list[tuple[str, list[int]]]
"""(sample_id, one value per token)."""


def table(rows: Rows) -> TokenTable:
    counts = [len(values) for _, values in rows]
    return {
        "sample_id": np.repeat(np.array([name for name, _ in rows], dtype=np.str_), counts),
        "position": np.array([k for count in counts for k in range(count)], np.int64),
        "value": np.array([value for _, values in rows for value in values], np.float64),
    }


def top_two(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Marks the two largest values; among equals the first in the order given."""
    chosen = np.zeros(len(columns["value"]), np.bool_)
    chosen[np.argsort(-columns["value"], kind="stable")[:2]] = True
    return {"chosen": chosen}


def above_median(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Marks what lies above the median of all ranks."""
    if not len(columns["value"]):
        return {"chosen": np.zeros(0, np.bool_)}
    return {"chosen": columns["value"] > np.quantile(columns["value"], 0.5)}


def select(shards: list[Rows], prepare: object) -> set[tuple[str, int]]:
    """The chosen (sample_id, position) of all ranks, each asking for its own."""
    assert callable(prepare)
    tables = [table(rows) for rows in shards]
    chosen = set()
    for local in tables:
        found = prepare_columns(local, lambda _: tables, prepare)["chosen"]
        assert len(found) == len(local["value"])
        keys = zip(local["sample_id"].tolist(), local["position"].tolist(), strict=True)
        chosen |= {key for key, hit in zip(keys, found, strict=True) if hit}
    return chosen


def test_ties_go_to_the_first_sample_and_position() -> None:
    """Values a: 1 2, b: 2 2, c: 2. Of the four 2s the first two by (sample_id, position): (a, 1), (b, 0)."""
    rows: Rows = [("c", [2]), ("b", [2, 2]), ("a", [1, 2])]
    assert select([rows], top_two) == {("a", 1), ("b", 0)}
    assert select([rows[:1], rows[1:]], top_two) == {("a", 1), ("b", 0)}


SAMPLES = st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=7)


@given(SAMPLES, st.permutations(range(7)), st.lists(st.integers(0, 2), min_size=7, max_size=7))
def test_ranks_and_row_order_do_not_matter(
    samples: list[list[int]], order: list[int], dealt: list[int]
) -> None:
    """One, two or three ranks (some without a row), rows in any order: the same tokens are selected."""
    rows = [(f"g{number}-{number % 3}", values) for number, values in enumerate(samples)]
    moved = [rows[place] for place in order if place < len(rows)]
    for prepare in (top_two, above_median):
        wanted = select([rows], prepare)
        for num_ranks in (1, 2, 3):
            shards: list[Rows] = [[] for _ in range(num_ranks)]
            for row, rank in zip(moved, dealt, strict=False):
                shards[rank % num_ranks].append(row)
            assert select(shards, prepare) == wanted


def test_positions_past_nine_are_numbers() -> None:
    """Position 10 comes after 9, not after 1: the eleventh and twelfth token are chosen only when largest."""
    rows: Rows = [("a", [0] * 2 + [5] + [0] * 7 + [5, 5])]
    assert select([rows], top_two) == {("a", 2), ("a", 10)}
