"""Row weights: each aggregate by hand, and independence of row order, updates and other origins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.kinds.losses import LossCommon
from trainer.losses.normalize import row_weights

TOKENS = np.array([4, 1, 0, 5])
POLICY = np.array(["policy"] * 4, dtype=object)
ONE_UPDATE = np.zeros(4, np.int64)


def weights(**common: str | float) -> list[float]:
    """Weights of the four rows above under one policy loss, with rollout.max_tokens = 8."""
    loss = LossCommon(kind="ppo_clip", **common)  # type: ignore[arg-type]
    return row_weights(TOKENS, POLICY, ONE_UPDATE, {"policy": loss}, 8).tolist()


def test_token_mean_by_hand() -> None:
    """10 loss tokens: each weighs 1/10, in any row; no tokens, no weight."""
    assert weights() == pytest.approx([0.1, 0.1, 0, 0.1])
    assert weights(weight=0.5) == pytest.approx([0.05, 0.05, 0, 0.05])


def test_sequence_mean_by_hand() -> None:
    """3 rows with tokens: a token weighs 1/3 over its row's tokens."""
    assert weights(aggregate="sequence_mean") == pytest.approx([1 / 12, 1 / 3, 0, 1 / 15])


def test_sequence_sum_by_hand() -> None:
    """3 rows and a constant: 1/(3 x 8) with rollout.max_tokens, 1/(3 x 2) with sum_constant 2."""
    assert weights(aggregate="sequence_sum") == pytest.approx([1 / 24, 1 / 24, 0, 1 / 24])
    assert weights(aggregate="sequence_sum", sum_constant=2.0) == pytest.approx([1 / 6, 1 / 6, 0, 1 / 6])


def test_origins_and_updates_are_normalised_apart() -> None:
    """policy: 2 + 6 tokens in update 0, 4 in update 1; sft with weight 3: 5 tokens; replay has no loss."""
    found = row_weights(
        np.array([2, 6, 4, 5, 9]),
        np.array(["policy", "policy", "policy", "sft", "replay"], dtype=object),
        np.array([0, 0, 1, 1, 1]),
        {"policy": LossCommon(kind="ppo_clip"), "sft": LossCommon(kind="nll", weight=3.0)},
        8,
    )
    assert found.tolist() == pytest.approx([1 / 8, 1 / 8, 1 / 4, 3 / 5, 0])


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
