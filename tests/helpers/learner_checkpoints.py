"""Checkpoints of the learner in tests: train some steps, save, and compare tensors bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from learner_cases import Case, Learners, make_rows
from safetensors.torch import load_file
from torch import Tensor


def steps_of(learners: Learners, case: Case, steps: range) -> None:
    """Score and update on the rows of these steps."""
    for step in steps:
        (sums,) = learners.ranks(case).step(case, case.config(learners.base), make_rows(step), step)
        assert sums["grad/applied"] == 1.0


def assert_bitwise(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor.view(torch.uint8), other[name].view(torch.uint8)), name


def without_random(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("rng/")}


def save(learners: Learners, case: Case, folder: Path) -> dict[str, Tensor]:
    """All tensors of all ranks' files, whose digests must be those the ranks gave."""
    folder.mkdir()
    tensors: dict[str, Tensor] = {}
    for digests in learners.ranks(case).ask("save", str(folder)):
        for name, digest in digests.items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
            own = load_file(folder / name)
            assert not tensors.keys() & own.keys()
            tensors |= own
    assert len(list(folder.iterdir())) == case.num_ranks
    return tensors
