"""Saving, loading and resetting the learner: bitwise where nothing differs, to rounding where ranks do."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from learner_cases import Bench, Case, make_rows, shared_bench
from safetensors.torch import load_file
from torch import Tensor

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return shared_bench(request.config, tmp_path_factory)


def steps_of(bench: Bench, case: Case, steps: range) -> None:
    """Score and update on the rows of these steps."""
    for step in steps:
        (sums,) = bench.ranks(case).step(case, case.config(bench.base), make_rows(step), step)
        assert sums["grad/applied"] == 1.0


def assert_bitwise(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor.view(torch.uint8), other[name].view(torch.uint8)), name


def save(bench: Bench, case: Case, folder: Path) -> dict[str, Tensor]:
    """All tensors of all ranks' files, whose digests must be those the ranks gave."""
    folder.mkdir()
    tensors: dict[str, Tensor] = {}
    for digests in bench.ranks(case).ask("save", str(folder)):
        for name, digest in digests.items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
            own = load_file(folder / name)
            assert not tensors.keys() & own.keys()
            tensors |= own
    assert len(list(folder.iterdir())) == case.num_ranks
    return tensors


@pytest.mark.parametrize(
    ("stage", "num_ranks", "dtype"),
    [(0, 1, "fp32"), (0, 2, "bf16"), (1, 2, "fp32"), (2, 2, "bf16"), (3, 2, "fp32"), (3, 2, "bf16")],
)
def test_goes_on_bitwise(bench: Bench, tmp_path: Path, stage: int, num_ranks: int, dtype: str) -> None:
    case = Case(stage=stage, num_ranks=num_ranks, dtype=dtype)
    ranks = bench.ranks(case)
    ranks.build(case, bench.base)
    steps_of(bench, case, range(3))
    saved = save(bench, case, tmp_path / "k")
    at_save = ranks.weights()
    steps_of(bench, case, range(3, 6))
    unbroken, after = ranks.weights(), save(bench, case, tmp_path / "unbroken")
    ranks.ask("load", str(tmp_path / "k"))  # with later moments in place
    assert_bitwise(save(bench, case, tmp_path / "again"), saved)
    ranks.build(case, bench.base)
    ranks.ask("load", str(tmp_path / "k"))  # without any
    assert_bitwise(ranks.weights(), at_save)
    assert_bitwise(save(bench, case, tmp_path / "fresh"), saved)
    steps_of(bench, case, range(3, 6))
    assert_bitwise(ranks.weights(), unbroken)
    assert_bitwise(save(bench, case, tmp_path / "broken"), after)
