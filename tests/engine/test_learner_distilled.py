"""Distilled rows in the real learner against plain torch: losses, weights, teachers, what a save keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from learner_cases import LR, MAX_GRAD_NORM, NUM_UPDATES, WEIGHT_DECAY, Case, Learners, distance, make_rows
from learner_cases import Outcome as Trained
from matrices import quick_of
from plain_reference import (
    group_advantages,
    load_model,
    make_optimizer,
    row_logprobs,
    take_update,
    weights_of,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from actors.anchor import TEACHER_FILE
from configs.schema import RunConfig
from rollouts.columns import GROUP_SCHEMA
from rollouts.schema import validate

pytestmark = pytest.mark.engine

TAUGHT, TOP_K, RATE, ALPHA = (0, 1, 3, 5, 8, 11, 15), 6, 0.25, 0.5
CAPS = {"ratio_cap": 1.5, "tis_cap": 2.0}


def taught_rows(step: int) -> pa.RecordBatch:
    """The 17 rows of a step and a distilled copy of seven of them; teachers read 4 to 16 tokens."""
    rows = make_rows(step).to_pylist()
    rng = np.random.default_rng(100 + step)
    for number in TAUGHT:
        prompt = rng.integers(0, 40, 4 + 2 * (number % 7)).tolist()
        name = rows[number]["sample_id"]
        more = {"sample_id": f"{name}.taught", "parent_id": name, "origin": "distilled"}
        # A sampler near the policy, so that some tokens are above the cap and some below.
        sampled = [value and 2 * value - 3.7 for value in rows[number]["behavior_logprobs"]]
        rows.append(rows[number] | more | {"teacher_prompt_ids": prompt, "behavior_logprobs": sampled})
    batch = pa.RecordBatch.from_pylist(rows, schema=GROUP_SCHEMA)
    validate(batch)
    return batch


@dataclass(frozen=True, slots=True, kw_only=True)
class TaughtCase(Case):
    """A case whose rows have a teacher beside, or in place of, their advantages."""

    teacher: str = "ema"
    policy_weight: float = 0.5

    def config(self, base: Path) -> RunConfig:
        config = Case.config(self, base)
        options = {"alpha": ALPHA, "top_k": TOP_K, "teacher_rate": RATE, "teacher": self.teacher, **CAPS}
        losses = {
            "policy": {"kind": "ppo_clip", "weight": self.policy_weight},
            "distilled": {"kind": "sdpo", **options},
        }
        return replace(config, loss=losses)


def logp_under(model: PreTrainedModel, row: Mapping[str, Any], prompt: str) -> Tensor:
    """[T, V]: the logprobs of all words at each token, after the prompt that the column `prompt` holds."""
    ids, tokens = row[prompt], row["token_ids"]
    logits = model(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1]
    return torch.log_softmax(logits / row["temperature"], dim=-1)


def words(logp_TV: Tensor, ids_Tk: Tensor) -> Tensor:
    """[T, k + 1] probabilities, float64: of the ids, and of the rest."""
    p = logp_TV.double().exp()
    chosen = p.gather(1, ids_Tk)
    return torch.cat([chosen, (p.scatter(1, ids_Tk, 0.0)).sum(1, keepdim=True)], dim=1)


def taught_loss(row: Mapping[str, Any], policy_TV: Tensor, before_TV: Tensor, teacher_TV: Tensor) -> Tensor:
    """The loss of a row's loss tokens, by its definition."""
    ids = before_TV.topk(TOP_K, dim=1).indices
    p, q = words(policy_TV, ids), words(teacher_TV, ids)
    m = (1 - ALPHA) * p + ALPHA * q
    loss = ((1 - ALPHA) * p * (p / m).log() + ALPHA * q * (q / m).log()).sum(1)
    place = (torch.arange(len(row["token_ids"])), torch.tensor(row["token_ids"]))
    now, before = policy_TV[place].detach(), before_TV[place]
    behavior = torch.tensor([value or 0.0 for value in row["behavior_logprobs"]])
    weight = (now - before).exp().clamp(max=1.5) * (before - behavior).exp().clamp(max=2.0)
    return (loss * weight)[torch.tensor(row["loss_mask"])]


def plain_update(
    model: PreTrainedModel, teacher: PreTrainedModel, rows: list[dict[str, Any]], policy_weight: float
) -> Tensor:
    """policy_weight x the mean over policy tokens of -r A (one update: r is 1), and the mean taught loss."""
    policy = [row for row in rows if row["origin"] == "policy"]
    advantages = group_advantages(policy)
    own = []
    for row in policy:
        if row["sample_id"] in advantages:
            logp = row_logprobs(model, row)
            loss = -(logp - logp.detach()).exp() * advantages[row["sample_id"]]
            own.append(loss[torch.tensor(row["loss_mask"])])
    taught = []
    for row in rows:
        if row["origin"] == "distilled":
            logp = logp_under(model, row, "prompt_ids")
            with torch.no_grad():
                said = logp_under(teacher, row, "teacher_prompt_ids")
            taught.append(taught_loss(row, logp, logp.detach(), said))
    return policy_weight * torch.cat(own).mean() + torch.cat(taught).mean().float()


@cache
def plain(base: Path, kind: str, policy_weight: float) -> tuple[Trained, Mapping[str, Tensor]]:
    """Three steps in plain torch, and the teacher's weights after them."""
    torch.set_num_threads(1)
    model, teacher = load_model(base), load_model(base)
    optimizer = make_optimizer(model, LR / NUM_UPDATES, WEIGHT_DECAY)
    losses, norms = [], []
    for step in range(NUM_UPDATES):
        for group in optimizer.param_groups:
            group["lr"] = LR * (step + 1) / NUM_UPDATES
        if kind == "live":
            teacher.load_state_dict(model.state_dict())
        loss = plain_update(model, teacher, taught_rows(step).to_pylist(), policy_weight)
        norms.append(take_update(model, optimizer, loss, MAX_GRAD_NORM))
        losses.append(loss.item())
        if kind == "ema":
            with torch.no_grad():
                for average, weight in zip(teacher.parameters(), model.parameters(), strict=True):
                    average.copy_((1 - RATE) * average + RATE * weight)
    outcome = Trained(losses=np.array(losses), norms=np.array(norms), weights=weights_of(model))
    return outcome, weights_of(teacher)


CASES = [
    *((0, 1, 2, "ema", 0.5), (0, 2, 1, "base", 0.5), (1, 2, 8, "live", 0.5), (2, 2, 0, "ema", 0.0)),
    *((3, 1, 2, "base", 0.0), (3, 2, 2, "ema", 0.5), (3, 2, 0, "live", 0.0), (1, 1, 0, "ema", 0.0)),
]
QUICK = [CASES[0], CASES[2], CASES[5]]


@pytest.mark.parametrize(("stage", "num_ranks", "rows", "teacher", "weight"), quick_of(CASES, QUICK))
def test_three_steps_against_plain_torch(
    learners: Learners, tmp_path: Path, stage: int, num_ranks: int, rows: int, teacher: str, weight: float
) -> None:
    """Whatever the cut, ranks and ZeRO stage: losses, norms, weights, and the saved teacher."""
    case = TaughtCase(
        stage=stage, num_ranks=num_ranks, rows_per_microbatch=rows, teacher=teacher, policy_weight=weight
    )
    ranks = learners.ranks(case)
    config = ranks.build(case, learners.base)
    sums = [ranks.step(case, config, taught_rows(step), step)[0] for step in range(NUM_UPDATES)]
    found = Trained(
        losses=np.array([each["loss/total"] for each in sums]),
        norms=np.array([each["grad/norm"] for each in sums]),
        weights=ranks.weights(),
    )
    wanted, average = plain(learners.base, teacher, weight)
    away = distance(found, wanted, learners.start)
    print(case, away)
    away.check()
    capped = [each["mark/distilled/tis_cap"] / each["tokens/distilled"] for each in sums]
    assert min(capped) > 0.02 and max(capped) < 0.9, "the cap acts on some of the tokens"
    ranks.ask("save", str(tmp_path))
    assert (tmp_path / TEACHER_FILE).exists() == (teacher == "ema")
    if teacher == "ema":
        saved = load_file(tmp_path / TEACHER_FILE)
        assert saved.keys() == average.keys()
        for name, values in saved.items():
            torch.testing.assert_close(values, average[name], atol=1e-6, rtol=1e-5)


def scores_of(learners: Learners, case: TaughtCase) -> list[float]:
    """KL(teacher || policy) of each distilled row, the policy and teacher as they are."""
    _, table = learners.ranks(case).score(case, case.config(learners.base), taught_rows(9))
    return [value for value in table.column("teacher_kl").to_pylist() if value is not None]


PLACES = [(0, 1, "fp32"), (2, 2, "fp32"), (3, 2, "fp32"), (3, 2, "bf16"), (1, 2, "bf16")]


@pytest.mark.parametrize(("stage", "num_ranks", "dtype"), quick_of(PLACES, [PLACES[0], PLACES[3]]))
def test_a_saved_teacher_comes_back_bit_for_bit(
    learners: Learners, tmp_path: Path, stage: int, num_ranks: int, dtype: str
) -> None:
    """Into the same ranks after more steps, and into new ones; then training goes on to the same end."""
    case = TaughtCase(stage=stage, num_ranks=num_ranks, dtype=dtype)
    ranks = learners.ranks(case)
    config = ranks.build(case, learners.base)
    first = scores_of(learners, case)
    ranks.step(case, config, taught_rows(0), 2)
    kept = scores_of(learners, case)
    assert len(kept) == len(TAUGHT) and kept != first
    ranks.ask("save", str(tmp_path))
    file = load_file(tmp_path / TEACHER_FILE)
    assert all(values.dtype == torch.float32 for values in file.values())
    ends = []
    for build in (False, True):
        if build:
            ranks.build(case, learners.base)
        else:
            ranks.step(case, config, taught_rows(1), 2)
            assert scores_of(learners, case) != kept
        ranks.ask("load", str(tmp_path))
        assert scores_of(learners, case) == kept
        ranks.step(case, config, taught_rows(1), 2)
        (folder := tmp_path / str(build)).mkdir()
        ranks.ask("save", str(folder))
        ends.append(load_file(folder / TEACHER_FILE))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in file)
    assert any(not torch.equal(ends[0][name], file[name]) for name in file)
    ranks.ask("reset", case.bound(config))
    assert scores_of(learners, case) == first


def test_a_small_move_is_not_rounded_away_in_bf16(learners: Learners, tmp_path: Path) -> None:
    """The average of bf16 weights is float32: a move of a quarter of one rounding step is kept."""
    case = TaughtCase(stage=1, num_ranks=1, dtype="bf16")
    ranks = learners.ranks(case)
    config = ranks.build(case, learners.base)
    ranks.step(case, config, taught_rows(0), 2)
    ranks.ask("save", str(tmp_path))
    file, policy = load_file(tmp_path / TEACHER_FILE), ranks.weights()
    start = {name: weight.bfloat16().float() for name, weight in learners.start.items()}
    for name, values in file.items():
        wanted = start[name] + RATE * (policy[name].float() - start[name])
        torch.testing.assert_close(values, wanted, atol=1e-7, rtol=1e-6)
    assert any(not torch.equal(values, values.bfloat16().float()) for values in file.values())


def test_a_teacher_moves_to_other_ranks(learners: Learners, tmp_path: Path) -> None:
    """Saved by two ranks under ZeRO-3, loaded by one under ZeRO-1: the same file comes out again."""
    old = TaughtCase(stage=3, num_ranks=2)
    config = learners.ranks(old).build(old, learners.base)
    learners.ranks(old).step(old, config, taught_rows(0), 2)
    learners.ranks(old).ask("save", str(tmp_path))
    new = replace(old, stage=1, num_ranks=1)
    learners.ranks(new).build(new, learners.base)
    learners.ranks(new).ask("load", str(tmp_path))
    (folder := tmp_path / "again").mkdir()
    learners.ranks(new).ask("save", str(folder))
    one, other = load_file(tmp_path / TEACHER_FILE), load_file(folder / TEACHER_FILE)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_teacher_that_is_missing_or_of_another_model(learners: Learners, tmp_path: Path) -> None:
    case = TaughtCase(stage=0, num_ranks=1)
    ranks = learners.ranks(case)
    ranks.build(case, learners.base)
    ranks.ask("save", str(tmp_path))
    save_file({"other": torch.zeros(2)}, tmp_path / TEACHER_FILE)
    with pytest.raises(ValueError, match=r"teacher\.safetensors: weights must be those of this model"):
        ranks.ask("load", str(tmp_path))
    (tmp_path / TEACHER_FILE).unlink()
    with pytest.raises(ValueError, match=r"teacher\.safetensors: must be there"):
        ranks.ask("load", str(tmp_path))


def test_masked_tokens_and_rows_without_a_teacher_change_nothing(learners: Learners) -> None:
    """Row 5 has masked tokens: other behavior logprobs there, and other rows beside, leave the loss alone."""
    case = TaughtCase(stage=0, num_ranks=1, policy_weight=0.0, rows_per_microbatch=4)
    ranks, found = learners.ranks(case), []
    all_rows = taught_rows(0)
    alone = all_rows.filter(pa.array([row["origin"] == "distilled" for row in all_rows.to_pylist()]))
    for rows in (all_rows, alone):
        config = ranks.build(case, learners.base)
        found.append(ranks.step(case, config, rows, 2)[0])
    assert found[0]["loss/distilled"] == pytest.approx(found[1]["loss/distilled"], rel=1e-5)
    assert (
        found[0]["tokens/distilled"]
        == found[1]["tokens/distilled"]
        == sum(sum(row["loss_mask"]) for row in alone.to_pylist())
    )
    assert "tokens/policy" not in found[0], "rows of weight 0 are not computed"
