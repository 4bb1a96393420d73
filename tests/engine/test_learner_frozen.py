"""Frozen weights in the real learner: not trained, but published, exported, saved and restored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from frozen_rank import FROZEN, TARGET
from learner_cases import Case, Learners
from learner_checkpoints import assert_bitwise, save, steps_of, without_random
from matrices import quick_of
from safetensors.torch import load_file, save_file

from trainer.model.checkpoint_format import published_names

pytestmark = pytest.mark.engine

PLACES = [(0, 1, "fp32"), (0, 2, "bf16"), (1, 2, "bf16"), (2, 2, "fp32"), (3, 2, "fp32"), (3, 2, "bf16")]


@pytest.mark.parametrize(("stage", "num_ranks", "dtype"), quick_of(PLACES, [PLACES[2], PLACES[4]]))
def test_frozen_weights_stay_and_travel(
    learners: Learners, tmp_path: Path, stage: int, num_ranks: int, dtype: str
) -> None:
    """Three updates, a save, three more: all the names that the engine wants, and only the others moved."""
    case = Case(stage=stage, num_ranks=num_ranks, dtype=dtype, base_logprobs=True)
    ranks = learners.ranks(case)
    config = ranks.build(case, learners.base, TARGET)
    start = ranks.weights()
    assert start.keys() == published_names(config.model) and set(FROZEN) < start.keys()
    steps_of(learners, case, range(3))
    at_save, saved = ranks.weights(), save(learners, case, tmp_path / "k")
    assert at_save.keys() == start.keys()
    for name in FROZEN:
        assert torch.equal(at_save[name], start[name])
    # The fp32 masters: in bf16 three updates do not move a weight near 1.
    still = {name for name in start if torch.equal(saved[f"param/{name}"], start[name].float())}
    assert still == set(FROZEN)
    moments = {name.split("/", 1)[1] for name in saved if name.startswith("exp_avg/")}
    assert moments == start.keys() - set(FROZEN)
    ranks.ask("export", str(tmp_path / "export"))
    assert_bitwise(load_file(tmp_path / "export" / "model.safetensors"), at_save)
    steps_of(learners, case, range(3, 6))
    unbroken = ranks.weights()
    ranks.build(case, learners.base, TARGET)
    ranks.ask("load", str(tmp_path / "k"))
    assert_bitwise(ranks.weights(), at_save)
    assert_bitwise(save(learners, case, tmp_path / "again"), saved)
    steps_of(learners, case, range(3, 6))
    assert_bitwise(ranks.weights(), unbroken)
    ranks.ask("reset_reference", True)
    ranks.ask("reset", case.bound(config))
    assert_bitwise(ranks.weights(), start)


@pytest.mark.parametrize(
    ("stage", "num_ranks", "new_stage", "new_ranks"), quick_of([(3, 2, 0, 1), (2, 2, 3, 2)], [(3, 2, 0, 1)])
)
def test_a_frozen_weight_is_restored_under_other_ranks(
    learners: Learners, tmp_path: Path, stage: int, num_ranks: int, new_stage: int, new_ranks: int
) -> None:
    """It comes from the saved files, not from the model's folder: a value written into them arrives."""
    old, new = Case(stage=stage, num_ranks=num_ranks), Case(stage=new_stage, num_ranks=new_ranks)
    learners.ranks(old).build(old, learners.base, TARGET)
    steps_of(learners, old, range(2))
    saved = save(learners, old, tmp_path / "k")
    wanted = learners.ranks(old).weights()
    for path in (tmp_path / "k").iterdir():
        tensors = load_file(path)
        for name in FROZEN:
            if f"param/{name}" in tensors:
                tensors[f"param/{name}"] = wanted[name] = tensors[f"param/{name}"] + 1.0
                saved[f"param/{name}"] = wanted[name]
        save_file(tensors, path, metadata=metadata_of(path))
    learners.ranks(new).build(new, learners.base, TARGET)
    learners.ranks(new).ask("load", str(tmp_path / "k"))
    assert_bitwise(learners.ranks(new).weights(), wanted)
    assert_bitwise(without_random(save(learners, new, tmp_path / "again")), without_random(saved))


def metadata_of(path: Path) -> dict[str, str]:
    """A safetensors file's own metadata."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_states_of_other_frozen_weights_are_refused(learners: Learners, tmp_path: Path) -> None:
    """A learner that trains all weights lacks the moments of the frozen ones; the reverse has too many."""
    case = Case(stage=0, num_ranks=1)
    ranks = learners.ranks(case)
    for folder, target in (("frozen", TARGET), ("all", "actors.learner:LearnerRank")):
        ranks.build(case, learners.base, target)
        steps_of(learners, case, range(1))
        save(learners, case, tmp_path / folder)
    with pytest.raises(ValueError, match=f"exp_avg/{FROZEN[0]} is missing"):
        ranks.ask("load", str(tmp_path / "frozen"))
    ranks.build(case, learners.base, TARGET)
    with pytest.raises(ValueError, match=r"exp_avg/.* is not expected"):
        ranks.ask("load", str(tmp_path / "all"))
