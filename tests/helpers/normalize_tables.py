"""Row weights by hand, for every aggregate, origin and update."""

from __future__ import annotations

import numpy as np
import pytest

from configs.kinds.losses import LossCommon
from trainer.losses.normalize import row_weights

TOKENS = np.array([4, 1, 0, 5])


POLICY = np.array(["policy"] * 4, dtype=object)


ONE_UPDATE = np.zeros(4, np.int64)


def weights(**common: str | float) -> list[float]:
    """Weights of the four rows above under one policy loss, with rollout.max_tokens = 8."""
    loss = LossCommon(kind="ppo_clip", **common)  # type: ignore[arg-type]
    return row_weights(TOKENS, POLICY, ONE_UPDATE, {"policy": loss}, 8).tolist()


def check_token_mean_by_hand() -> None:
    """10 loss tokens: each weighs 1/10, in any row; no tokens, no weight."""
    assert weights() == pytest.approx([0.1, 0.1, 0, 0.1])
    assert weights(weight=0.5) == pytest.approx([0.05, 0.05, 0, 0.05])


def check_sequence_mean_by_hand() -> None:
    """3 rows with tokens: a token weighs 1/3 over its row's tokens."""
    assert weights(aggregate="sequence_mean") == pytest.approx([1 / 12, 1 / 3, 0, 1 / 15])


def check_sequence_sum_by_hand() -> None:
    """3 rows and a constant: 1/(3 x 8) with rollout.max_tokens, 1/(3 x 2) with sum_constant 2."""
    assert weights(aggregate="sequence_sum") == pytest.approx([1 / 24, 1 / 24, 0, 1 / 24])
    assert weights(aggregate="sequence_sum", sum_constant=2.0) == pytest.approx([1 / 6, 1 / 6, 0, 1 / 6])


def check_origins_and_updates_are_normalised_apart() -> None:
    """policy: 2 + 6 tokens in update 0, 4 in update 1; sft with weight 3: 5 tokens; replay has no loss."""
    found = row_weights(
        np.array([2, 6, 4, 5, 9]),
        np.array(["policy", "policy", "policy", "sft", "replay"], dtype=object),
        np.array([0, 0, 1, 1, 1]),
        {"policy": LossCommon(kind="ppo_clip"), "sft": LossCommon(kind="nll", weight=3.0)},
        8,
    )
    assert found.tolist() == pytest.approx([1 / 8, 1 / 8, 1 / 4, 3 / 5, 0])


CHECKS = (
    check_token_mean_by_hand,
    check_sequence_mean_by_hand,
    check_sequence_sum_by_hand,
    check_origins_and_updates_are_normalised_apart,
)
"""All of them, for `trainer.losses.normalize.row_weights`."""
