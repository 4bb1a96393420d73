"""Row weights: each aggregate by hand, and independence of row order, updates and other origins."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from normalize_tables import CHECKS

from configs.kinds.losses import LossCommon
from trainer.losses.normalize import row_weights


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_by_hand(check: Callable[[], None]) -> None:
    check()


ROWS = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from(["policy", "sft", "replay"]), st.integers(0, 2)),
    min_size=1,
    max_size=10,
)
LOSSES = {"policy": LossCommon(weight=2.0), "sft": LossCommon(weight=0.5, aggregate="sequence_mean")}


def columns(rows: list[tuple[int, str, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokens, origins, updates = zip(*rows, strict=True)
    return np.array(tokens), np.array(origins, dtype=object), np.array(updates)


def scalar_loss(losses: list[list[float]], aggregate: str, constant: float) -> float:
    """The papers' three means over sequences of token losses, of which those without tokens do not count.

    DAPO: sum of all over the number of all. GRPO: mean over sequences of the mean over their tokens. Dr.GRPO:
    mean over sequences of the sum over their tokens, over a constant.
    """
    given = [tokens for tokens in losses if tokens]
    if not given:
        return 0.0
    if aggregate == "token_mean":
        return math.fsum(loss for tokens in given for loss in tokens) / sum(len(tokens) for tokens in given)
    parts = [
        math.fsum(tokens) / (len(tokens) if aggregate == "sequence_mean" else constant) for tokens in given
    ]
    return math.fsum(parts) / len(parts)


@given(
    st.lists(st.lists(st.floats(-5, 5), max_size=4), min_size=1, max_size=6),
    st.sampled_from(["token_mean", "sequence_mean", "sequence_sum"]),
    st.sampled_from([0.0, 3.0]),
)
def test_against_the_scalar_loop(losses: list[list[float]], aggregate: str, constant: float) -> None:
    """Weights times token losses, summed: a constant of 0 is rollout.max_tokens, which is 8 here."""
    common = LossCommon(kind="ppo_clip", aggregate=aggregate, sum_constant=constant, weight=1.5)
    counts = np.array([len(tokens) for tokens in losses])
    origins, one = np.array(["policy"] * len(losses), dtype=object), np.zeros(len(losses), np.int64)
    found = row_weights(counts, origins, one, {"policy": common}, 8)
    total = math.fsum(weight * math.fsum(tokens) for weight, tokens in zip(found, losses, strict=True))
    assert total == pytest.approx(1.5 * scalar_loss(losses, aggregate, constant or 8.0), abs=1e-12)


@given(ROWS)
def test_weights_sum_to_the_losses_weight(rows: list[tuple[int, str, int]]) -> None:
    """A loss of 1 per token reduces to the origin's weight in every update that has such tokens."""
    tokens, origins, updates = columns(rows)
    found = row_weights(tokens, origins, updates, LOSSES, 8)
    for origin, common in LOSSES.items():
        for update in range(3):
            mine = (origins == origin) & (updates == update)
            wanted = common.weight if tokens[mine].sum() else 0.0
            assert (found * tokens)[mine].sum() == pytest.approx(wanted)


@given(ROWS, st.permutations(range(10)))
def test_row_order_does_not_matter(rows: list[tuple[int, str, int]], order: list[int]) -> None:
    """The same weight bit for bit, because only integers are summed."""
    moved = [place for place in order if place < len(rows)]
    here = row_weights(*columns(rows), LOSSES, 8)
    there = row_weights(*columns([rows[place] for place in moved]), LOSSES, 8)
    assert there.tolist() == here[moved].tolist()
