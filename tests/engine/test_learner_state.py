"""Saving, loading and resetting the learner: bitwise where nothing differs, to rounding where ranks do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from learner_cases import Case, Learners, make_rows
from learner_checkpoints import assert_bitwise, save, steps_of, without_random
from matrices import quick_of
from safetensors.torch import load_file, save_file

import actors.learner_state
from actors.learner import LearnerRank
from actors.requests import LocalMicrobatches, RankPlace, RankUpdate
from configs.bound import BoundRun, bind
from trainer.collate import with_advantages
from trainer.weights.packed import PackedWeights

pytestmark = pytest.mark.engine

HERE = "test_learner_state"


PLACES = [(0, 1, "fp32"), (1, 2, "fp32"), (2, 2, "fp32"), (3, 2, "fp32")]
PLACES += [(stage, 2, "bf16") for stage in range(4)]


@pytest.mark.parametrize(("stage", "num_ranks", "dtype"), quick_of(PLACES, [PLACES[1], PLACES[3]]))
def test_resumes_bitwise(learners: Learners, tmp_path: Path, stage: int, num_ranks: int, dtype: str) -> None:
    """Three updates, save, three more: the same as load and three more, here or in a learner built anew."""
    case = Case(stage=stage, num_ranks=num_ranks, dtype=dtype)
    ranks = learners.ranks(case)
    ranks.build(case, learners.base)
    steps_of(learners, case, range(3))
    saved = save(learners, case, tmp_path / "k")
    at_save = ranks.weights()
    assert {f"{kind}/{name}" for kind in ("param", "exp_avg", "exp_avg_sq") for name in at_save} == set(
        without_random(saved)
    )
    steps_of(learners, case, range(3, 6))
    unbroken, after = ranks.weights(), save(learners, case, tmp_path / "unbroken")
    ranks.ask("load", str(tmp_path / "k"))  # over later moments
    assert_bitwise(save(learners, case, tmp_path / "again"), saved)
    ranks.build(case, learners.base)
    ranks.ask("load", str(tmp_path / "k"))  # where there are none
    assert_bitwise(ranks.weights(), at_save)
    steps_of(learners, case, range(3, 6))
    assert_bitwise(ranks.weights(), unbroken)
    assert_bitwise(save(learners, case, tmp_path / "broken"), after)


MOVES = [(0, 1, 3, 2), (3, 2, 1, 1), (1, 1, 2, 2), (2, 2, 0, 2), (0, 2, 2, 1), (1, 2, 3, 1)]


@pytest.mark.parametrize(
    ("stage", "num_ranks", "new_stage", "new_ranks"), quick_of(MOVES, [MOVES[1], MOVES[4]])
)
def test_moves_to_other_ranks(
    learners: Learners, tmp_path: Path, stage: int, num_ranks: int, new_stage: int, new_ranks: int
) -> None:
    """The state arrives bitwise; three updates later only the order of sums tells the learners apart."""
    old, new = Case(stage=stage, num_ranks=num_ranks), Case(stage=new_stage, num_ranks=new_ranks)
    learners.ranks(old).build(old, learners.base)
    steps_of(learners, old, range(3))
    saved = save(learners, old, tmp_path / "k")
    steps_of(learners, old, range(3, 6))
    unbroken = learners.ranks(old).weights()
    learners.ranks(new).build(new, learners.base)
    learners.ranks(new).ask("load", str(tmp_path / "k"))
    assert_bitwise(without_random(save(learners, new, tmp_path / "again")), without_random(saved))
    steps_of(learners, new, range(3, 6))
    for name, weight in learners.ranks(new).weights().items():
        assert float((weight - unbroken[name]).norm() / unbroken[name].norm()) < 1e-6, name


@pytest.mark.parametrize(
    ("stage", "dtype"),
    quick_of([(0, "fp32"), (0, "bf16"), (1, "bf16"), (2, "fp32"), (3, "fp32")], [(1, "bf16"), (3, "fp32")]),
)
def test_reset_is_a_new_learner(learners: Learners, tmp_path: Path, stage: int, dtype: str) -> None:
    """Weights, moments and random state of a new learner, in the engine of one that has learned."""
    case = Case(stage=stage, num_ranks=2, dtype=dtype, base_logprobs=True)
    ranks = learners.ranks(case)
    config = ranks.build(case, learners.base)
    new = save(learners, case, tmp_path / "new")
    assert not any(name.startswith("exp_avg") for name in new)
    steps_of(learners, case, range(2))
    trained = save(learners, case, tmp_path / "trained")
    ranks.ask("reset", case.bound(config))
    assert_bitwise(save(learners, case, tmp_path / "reset"), new)
    steps_of(learners, case, range(2))
    assert_bitwise(save(learners, case, tmp_path / "again"), trained)
    ranks.ask("load", str(tmp_path / "new"))  # a state without moments
    steps_of(learners, case, range(2))
    assert_bitwise(save(learners, case, tmp_path / "loaded"), trained)


@pytest.mark.parametrize(
    ("stage", "dtype"),
    quick_of([(0, "fp32"), (0, "bf16"), (1, "bf16"), (2, "fp32")], [(0, "fp32"), (1, "bf16")]),
)
def test_skipped_first_update(learners: Learners, tmp_path: Path, stage: int, dtype: str) -> None:
    """An update on NaN leaves nothing that a save would keep: the next is still Adam's first."""
    case = Case(stage=stage, num_ranks=2, dtype=dtype)
    ranks = learners.ranks(case)
    config = ranks.build(case, learners.base)
    new = save(learners, case, tmp_path / "new")
    batch, columns = ranks.score(case, config, make_rows(0))
    learnable = with_advantages(batch, columns, bind(config), 0)
    poisoned = replace(learnable, advantage_N=np.full_like(learnable.advantage_N, np.nan))
    assert ranks.update(batch, poisoned)[0]["grad/applied"] == 0.0
    assert_bitwise(save(learners, case, tmp_path / "skipped"), new)
    steps_of(learners, case, range(1, 3))
    unbroken = save(learners, case, tmp_path / "unbroken")
    ranks.ask("load", str(tmp_path / "skipped"))
    steps_of(learners, case, range(1, 3))
    assert_bitwise(save(learners, case, tmp_path / "broken"), unbroken)


def set_bucket(numel: int) -> None:
    """Gather at most this many elements at once in this process."""
    actors.learner_state._BUCKET_NUMEL = numel  # type: ignore[misc]


@pytest.mark.parametrize("stage", quick_of([0, 1], [1]))
def test_buckets_change_nothing(learners: Learners, tmp_path: Path, stage: int) -> None:
    """A rank's share in one piece and in many gives the same tensors, about half of them in each file."""
    case = Case(stage=stage, num_ranks=2)
    ranks = learners.ranks(case)
    ranks.build(case, learners.base)
    steps_of(learners, case, range(1))
    whole = save(learners, case, tmp_path / "whole")
    ranks.ask(f"{HERE}:set_bucket", 5000)
    try:
        assert_bitwise(save(learners, case, tmp_path / "pieces"), whole)
    finally:
        ranks.ask(f"{HERE}:set_bucket", actors.learner_state._BUCKET_NUMEL)
    sizes = [path.stat().st_size for path in (tmp_path / "pieces").iterdir()]
    assert max(sizes) < 0.6 * sum(sizes)
    ranks.ask("load", str(tmp_path / "pieces"))
    assert_bitwise(save(learners, case, tmp_path / "again"), whole)


def damaged(folder: Path, how: str) -> None:
    """Spoil the second of two learner files."""
    path = folder / "learner-00001-of-00002.safetensors"
    if how == "gone":
        path.unlink()
        return
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-8])
        return
    tensors = load_file(path)
    name = sorted(name for name in tensors if name.startswith("exp_avg_sq/"))[0]
    tensor = tensors.pop(name)
    renamed = {"missing": {}, "unknown": {name: tensor, "param/other": tensor.clone()}}
    reshaped = {"misshapen": {name: tensor[..., :-1].contiguous()}, "half": {name: tensor.half()}}
    metadata = {"format": "1", "adam_steps": "2" if how == "counted" else "1"}
    changed = (renamed | reshaped | {"counted": {name: tensor}})[how]
    save_file(tensors | changed, path, metadata=metadata)


FAULTS = {
    "gone": "one learner file for each rank of one save.*learner-00001-of-00002",
    "cut": "learner-00001-of-00002.safetensors must be a complete safetensors file",
    "missing": "tensor exp_avg_sq/.* is missing",
    "unknown": "tensor param/other is not expected",
    "misshapen": "tensor exp_avg_sq/.* must be F32",
    "half": "tensor exp_avg_sq/.* must be F32 .*, got F16",
    "counted": r"adam_steps must be the same integer in all learner files, got \['1', '2'\]",
}


def test_refuses_what_is_not_whole(learners: Learners, tmp_path: Path) -> None:
    """The message names what is wrong, and the learner is as it was."""
    case = Case(stage=2, num_ranks=2)
    ranks = learners.ranks(case)
    ranks.build(case, learners.base)
    steps_of(learners, case, range(1))
    for fault in FAULTS:
        save(learners, case, tmp_path / fault)
        damaged(tmp_path / fault, fault)
    steps_of(learners, case, range(1, 2))
    before = save(learners, case, tmp_path / "before")
    for fault, message in FAULTS.items():
        with pytest.raises(ValueError, match=message):
            ranks.ask("load", str(tmp_path / fault))
    with pytest.raises(ValueError, match="must have files learner-"):
        ranks.ask("load", str(tmp_path / "nowhere"))
    assert_bitwise(save(learners, case, tmp_path / "after"), before)


def test_a_rank_that_cannot_write_holds_up_no_other(learners: Learners, tmp_path: Path) -> None:
    """Its save fails, the others' do not, and all go on."""
    case = Case(stage=3, num_ranks=2)
    ranks = learners.ranks(case)
    ranks.build(case, learners.base)
    steps_of(learners, case, range(1))
    with pytest.raises(OSError, match="nowhere"):
        ranks.ask_each("save", [(str(tmp_path / "nowhere"),), (str(tmp_path),)])
    assert [path.name for path in tmp_path.iterdir()] == ["learner-00001-of-00002.safetensors"]
    steps_of(learners, case, range(1, 2))
    save(learners, case, tmp_path / "whole")


class ThreadedRank:
    """A learner rank that lives in one thread, not the main one of its process."""

    def __init__(self, run: BoundRun, place: RankPlace) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._rank = self._thread.submit(LearnerRank, run, place).result()

    def compute_logprobs(self, shard: pa.RecordBatch, microbatches: LocalMicrobatches) -> pa.RecordBatch:
        return self._thread.submit(self._rank.compute_logprobs, shard, microbatches).result()

    def update(self, batch: RankUpdate) -> list[dict[str, float]]:
        return self._thread.submit(self._rank.update, batch).result()

    def publish(self, version: int) -> PackedWeights | None:
        return self._thread.submit(self._rank.publish, version).result()

    def save(self, folder: str) -> dict[str, str]:
        return self._thread.submit(self._rank.save, folder).result()

    def load(self, folder: str) -> None:
        self._thread.submit(self._rank.load, folder).result()


@pytest.mark.parametrize("stage", quick_of([0, 3], [3]))
def test_lives_in_any_thread(learners: Learners, tmp_path: Path, stage: int) -> None:
    """Built and called outside the main thread, a learner does what it does inside, to the bit."""
    case = Case(stage=stage, num_ranks=2)
    ranks = learners.ranks(case)
    ranks.build(case, learners.base)
    steps_of(learners, case, range(3))
    expected = save(learners, case, tmp_path / "main")
    ranks.build(case, learners.base, f"{HERE}:ThreadedRank")
    steps_of(learners, case, range(2))
    save(learners, case, tmp_path / "k")
    steps_of(learners, case, range(2, 3))
    ranks.ask("load", str(tmp_path / "k"))
    steps_of(learners, case, range(2, 3))
    assert_bitwise(save(learners, case, tmp_path / "thread"), expected)
