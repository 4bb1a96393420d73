"""Batch statistics get the same tokens in the same order on every rank, and return the local ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.losses.batch_statistics import Prepared, TokenTable, prepare_origin

Rows = list[tuple[str, list[int]]]
"""(sample_id, one value per token)."""


def table(rows: Rows) -> TokenTable:
    counts = [len(values) for _, values in rows]
    return {
        "sample_id": np.repeat(np.array([name for name, _ in rows], dtype=np.str_), counts),
        "position": np.array([k for count in counts for k in range(count)], np.int64),
        "origin": np.full(sum(counts), "policy"),
        "weight": np.ones(sum(counts)),
        "value": np.array([value for _, values in rows for value in values], np.float64),
    }


def top_two(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Marks the two largest values; among equals the first in the order given."""
    chosen = np.zeros(len(columns["value"]), np.bool_)
    chosen[np.argsort(-columns["value"], kind="stable")[:2]] = True
    return {"chosen": chosen}


def above_median(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Marks the tokens above the median of all ranks."""
    if not len(columns["value"]):
        return {"chosen": np.zeros(0, np.bool_)}
    return {"chosen": columns["value"] > np.quantile(columns["value"], 0.5)}


def select(shards: list[Rows], prepare: object) -> set[tuple[str, int]]:
    """The selected (sample_id, position) of all ranks, each for its own tokens."""
    assert callable(prepare)
    tables = [table(rows) for rows in shards]
    chosen = set()
    for local in tables:
        found = prepare_origin(local, "policy", lambda _: tables, prepare).columns["chosen"]
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


def test_an_origin_sees_its_own_learned_tokens_alone() -> None:
    """Of a: 5 1 4 the first has no weight, b: 9 is replay: 1 and 4 remain, mean 2.5.

    Tokens that were not gathered get NaN, 0 or False; the stat is returned unchanged.
    """
    local = table([("b", [9]), ("a", [5, 1, 4])])
    local["origin"] = np.array(["replay", "policy", "policy", "policy"])
    local["weight"] = np.array([0.5, 0.0, 0.25, 0.25])

    def prepare(columns: Mapping[str, np.ndarray]) -> Prepared:
        assert columns["value"].tolist() == [1, 4]
        return Prepared(
            columns={"value": columns["value"], "number": np.arange(1, 3), **top_two(columns)},
            stats={"mean": float(columns["value"].mean())},
        )

    found = prepare_origin(local, "policy", lambda part: [part], prepare)
    assert found.stats == {"mean": 2.5}
    assert np.array_equal(found.columns["value"], [np.nan, np.nan, 1, 4], equal_nan=True)
    assert found.columns["number"].tolist() == [0, 0, 1, 2]
    assert found.columns["chosen"].tolist() == [False, False, True, True]


def test_an_origin_without_tokens_takes_part() -> None:
    """A rank without tokens of the origin, or without any, still gets columns of its own length."""
    local = table([("a", [5, 1])])
    for part in (local, {name: column[:0] for name, column in local.items()}):
        found = prepare_origin(part, "replay", lambda own: [own], top_two)
        assert found.columns["chosen"].tolist() == [False] * len(part["value"])
