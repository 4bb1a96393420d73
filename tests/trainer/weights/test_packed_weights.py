"""Packed weights arrive unchanged and damage is detected; the learning rate's schedule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import LearnerConfig
from trainer.controllers.schedule import learning_rate
from trainer.weights.packed import PackedWeights, pack_weights, unpack_weights

torch.set_num_threads(1)


def example() -> PackedWeights:
    named = [
        ("a", torch.arange(6, dtype=torch.float32).reshape(2, 3).T),
        ("b", torch.tensor([1.5, -2.0], dtype=torch.bfloat16)),
        ("c", torch.tensor(0.25, dtype=torch.float16)),
    ]
    return pack_weights(7, named)


def test_round_trip() -> None:
    """Every dtype, a transposed tensor and a scalar; byte ranges lie end to end: 24 + 4 + 2."""
    packed = example()
    assert packed.names() == ("a", "b", "c")
    assert [(entry.start, entry.end) for entry in packed.entries] == [(0, 24), (24, 28), (28, 30)]
    found = dict(unpack_weights(packed))
    assert found["a"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found["b"].dtype == torch.bfloat16 and found["b"].tolist() == [1.5, -2.0]
    assert found["c"].shape == () and found["c"].item() == 0.25


@given(st.integers(0, 29), st.integers(1, 255))
def test_any_damage_is_noticed(place: int, flip: int) -> None:
    """One byte changed in transfer: the tensor it belongs to is named."""
    packed = example()
    packed.buffer[place] ^= flip
    name = "a" if place < 24 else "b" if place < 28 else "c"
    with pytest.raises(ValueError, match=f"version 7: tensor {name} arrived damaged"):
        list(unpack_weights(packed))


def test_unpacked_tensors_are_copies() -> None:
    """The buffer is shared and read-only: writing to a tensor must not reach it."""
    packed = example()
    dict(unpack_weights(packed))["b"].zero_()
    assert dict(unpack_weights(packed))["b"].tolist() == [1.5, -2.0]


def test_learning_rate_by_hand() -> None:
    """Warm-up 0.5, 1; then cosine from 1 to 0.1 over the 8 steps left: half way (step 6) it is 0.55."""
    config = LearnerConfig(lr=1.0, warmup_steps=2, min_lr_ratio=0.1)
    rates = [learning_rate(config, step, 10) for step in (0, 1, 2, 6, 10, 99)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.55, 0.1, 0.1])
    assert {learning_rate(LearnerConfig(lr=0.3), step, 10) for step in range(10)} == {0.3}
