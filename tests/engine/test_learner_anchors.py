"""Base and reference in the real learner: what a reset changes, what it leaves, and what a save keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learner_cases import Case, Learners, Ranks, make_rows
from matrices import quick_of
from plain_reference import load_model, row_logprobs
from safetensors.torch import load_file, save_file

from actors.anchor import REFERENCE_FILE

pytestmark = pytest.mark.engine

PLACES = [(0, 1, "fp32"), (2, 2, "fp32"), (3, 2, "fp32"), (3, 2, "bf16"), (1, 2, "bf16")]


def columns_of(ranks: Ranks, case: Case, base: Path, step: int = 9) -> dict[str, np.ndarray]:
    """The logprobs of a step's rows by policy, reference and base, end to end; empty where not scored."""
    _, table = ranks.score(case, case.config(base), make_rows(step))
    names = ("proximal_logprobs", "ref_logprobs", "base_logprobs")
    return {name: np.concatenate([row or [] for row in table.column(name).to_pylist()]) for name in names}


@pytest.mark.parametrize(("stage", "num_ranks", "dtype"), quick_of(PLACES, [PLACES[0], PLACES[3]]))
def test_a_reset_takes_the_policy_and_leaves_the_base(
    learners: Learners, tmp_path: Path, stage: int, num_ranks: int, dtype: str
) -> None:
    """Train, reset, train: the reference has the weights of the reset, through saving and loading anew."""
    case = Case(stage=stage, num_ranks=num_ranks, dtype=dtype, base_logprobs=True, kl_coef=0.1)
    ranks = learners.ranks(case)
    config = ranks.build(case, learners.base)
    ranks.step(case, config, make_rows(0), 2)
    before = columns_of(ranks, case, learners.base)
    assert np.array_equal(before["ref_logprobs"], before["base_logprobs"])
    ranks.ask("reset_reference", False)
    at_reset = columns_of(ranks, case, learners.base)
    assert np.array_equal(at_reset["ref_logprobs"], at_reset["proximal_logprobs"])
    assert np.array_equal(at_reset["base_logprobs"], before["base_logprobs"])
    ranks.step(case, config, make_rows(1), 2)
    later = columns_of(ranks, case, learners.base)
    assert np.array_equal(later["ref_logprobs"], at_reset["ref_logprobs"])
    assert np.abs(later["proximal_logprobs"] - later["ref_logprobs"]).max() > 1e-3
    (folder := tmp_path / "k").mkdir()
    names = [sorted(sums) for sums in ranks.ask("save", str(folder))]
    assert sum(REFERENCE_FILE in each for each in names) == 1 and REFERENCE_FILE in names[0]
    ranks.ask("reset_reference", False)  # a second one writes over the first
    again = columns_of(ranks, case, learners.base)
    assert np.array_equal(again["ref_logprobs"], later["proximal_logprobs"])
    ranks.ask("load", str(folder))
    assert_columns(columns_of(ranks, case, learners.base), later)
    ranks.build(case, learners.base)
    ranks.ask("load", str(folder))
    assert_columns(columns_of(ranks, case, learners.base), later)


def assert_columns(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    for name, values in wanted.items():
        assert np.array_equal(found[name], values), name


def test_a_reference_moves_to_other_ranks(learners: Learners, tmp_path: Path) -> None:
    """Saved by two ranks under ZeRO-3, loaded by one under ZeRO-1: the same weights, to rounding of sums."""
    old = Case(stage=3, num_ranks=2, base_logprobs=True)
    new = replace(old, stage=1, num_ranks=1)
    config = learners.ranks(old).build(old, learners.base)
    learners.ranks(old).step(old, config, make_rows(0), 2)
    learners.ranks(old).ask("reset_reference", False)
    wanted = columns_of(learners.ranks(old), old, learners.base)
    learners.ranks(old).ask("save", str(tmp_path))
    model = load_model(learners.base)
    model.load_state_dict(load_file(tmp_path / REFERENCE_FILE))
    rows = make_rows(9).to_pylist()
    with torch.no_grad():
        plain = np.concatenate([row_logprobs(model, row).numpy() for row in rows])
    learners.ranks(new).build(new, learners.base)
    learners.ranks(new).ask("load", str(tmp_path))
    found = columns_of(learners.ranks(new), new, learners.base)["ref_logprobs"]
    assert found == pytest.approx(plain, abs=5e-6) and found == pytest.approx(
        wanted["ref_logprobs"], abs=5e-6
    )


def test_a_state_without_a_reference_goes_back_to_the_base(learners: Learners, tmp_path: Path) -> None:
    """Loaded over a reset reference, and so does `reset`; only what is asked for is scored."""
    case = Case(stage=0, num_ranks=1, kl_coef=0.1)  # no base column: its copy becomes the reference
    ranks = learners.ranks(case)
    config = ranks.build(case, learners.base)
    ranks.ask("save", str(tmp_path))
    start = columns_of(ranks, case, learners.base)
    assert start["base_logprobs"].size == 0
    for forget in (("load", str(tmp_path)), ("reset", case.bound(config))):
        ranks.step(case, config, make_rows(0), 2)
        ranks.ask("reset_reference", False)
        moved = columns_of(ranks, case, learners.base)["ref_logprobs"]
        assert np.abs(moved - start["ref_logprobs"]).max() > 1e-3
        ranks.ask(*forget)
        assert_columns(columns_of(ranks, case, learners.base), start)


def test_a_base_anchor_scores_the_base_alone(learners: Learners) -> None:
    """kl_base pulls towards the base column; the anchor of the reference is not scored for it."""
    case = Case(stage=0, num_ranks=1, kl_base_coef=0.5)
    ranks = learners.ranks(case)
    config = ranks.build(case, learners.base)
    (first,) = ranks.step(case, config, make_rows(0), 2)
    (second,) = ranks.step(case, config, make_rows(0), 2)
    assert first["loss/kl_base"] == pytest.approx(0.0, abs=1e-9) and second["loss/kl_base"] > 1e-6
    assert columns_of(ranks, case, learners.base)["ref_logprobs"].size == 0


@pytest.mark.parametrize("stage", quick_of([0, 3], [3]))
def test_the_optimizer_goes_along_if_asked(learners: Learners, tmp_path: Path, stage: int) -> None:
    """With it the next update is Adam's first again, and ends elsewhere than one that goes on."""
    case = Case(stage=stage, num_ranks=2, base_logprobs=True)
    ranks, ends = learners.ranks(case), {}
    for with_optimizer in (False, True):
        config = ranks.build(case, learners.base)
        ranks.step(case, config, make_rows(0), 2)
        ranks.ask("reset_reference", with_optimizer)
        (folder := tmp_path / f"{stage}-{with_optimizer}").mkdir()
        ranks.ask("save", str(folder))
        kept = [load_file(path) for path in folder.glob("learner-*.safetensors")]
        moments = [name for each in kept for name in each if name.startswith("exp_avg/")]
        assert bool(moments) is not with_optimizer
        ranks.step(case, config, make_rows(1), 2)
        ends[with_optimizer] = ranks.weights()
    assert any(not torch.equal(ends[True][name], ends[False][name]) for name in ends[True])


def test_a_reference_of_another_model_is_refused(learners: Learners, tmp_path: Path) -> None:
    case = Case(stage=0, num_ranks=1, base_logprobs=True)
    ranks = learners.ranks(case)
    ranks.build(case, learners.base)
    ranks.ask("save", str(tmp_path))
    save_file({"other": torch.zeros(2)}, tmp_path / REFERENCE_FILE)
    with pytest.raises(ValueError, match=r"reference\.safetensors: weights must have exactly the names"):
        ranks.ask("load", str(tmp_path))
