"""Transforms in the real learner: the same losses and model under any cut, order and number of ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_token_advantages as papers
import torch
from covariance_cases import Plain
from learner_cases import (
    LR,
    MAX_GRAD_NORM,
    NUM_UPDATES,
    WEIGHT_DECAY,
    Case,
    Learners,
    Outcome,
    distance,
    make_rows,
    reversed_rows,
)
from matrices import quick_of
from plain_reference import group_advantages, load_model, make_optimizer, take_update, weights_of
from torch import Tensor
from transformers import PreTrainedModel

from configs.schema import RunConfig
from trainer.metrics import update_metrics
from trainer.token_advantages.strategic_ngrams import Grams, write_grams

pytestmark = pytest.mark.engine

Row = Mapping[str, Any]
Scores = tuple[Tensor, Tensor]
"""Logprobs and entropies of a row's tokens."""
UPDATES = {1: ((0, 1, 2, 3, 4),), 2: ((0, 1, 2), (3, 4))}
PLANNED = (0, 6, 13)
"""Rows whose tokens 2 to 4 are a strategic n-gram."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformedCase(Case):
    """Four transforms in a row, three of which look at the whole update first.

    These rows were drawn at random: the learner finds them about a twentieth as likely as stated, hence the
    cap.
    """

    grams: str
    updates_per_step: int = 2

    def config(self, base: Path) -> RunConfig:
        """The case's own with the transforms."""
        transforms: dict[str, Any] = {
            "plan": {"kind": "hicra", "path": self.grams, "alpha": 0.5},
            "swing": {"kind": "entropy_quadrants", "strength": 0.5, "fraction": 0.2},
            "forks": {"kind": "top_entropy", "fraction": 0.6},
            "correct": {"kind": "tis", "cap": 0.05},
        }
        return replace(Case.config(self, base), token_advantage=transforms)


@pytest.fixture(scope="module")
def grams(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The n-grams of the PLANNED rows."""
    path = tmp_path_factory.mktemp("grams") / "grams.json"
    rows = make_rows(0).to_pylist()
    known = {tuple(rows[row]["token_ids"][2:5]): 2 for row in PLANNED}
    write_grams(path, Grams(documents=known, num_documents=3, sources=()))
    return str(path)


def score(model: PreTrainedModel, row: Row) -> Scores:
    """Of one row, from its full logits."""
    prompt, tokens = row["prompt_ids"], row["token_ids"]
    logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    logp = torch.log_softmax(logits / row["temperature"], dim=-1)
    return logp[torch.arange(len(tokens)), torch.tensor(tokens)], -(logp.exp() * logp).sum(-1)


def transformed(
    rows: Sequence[Row], now: Mapping[str, Scores], old: Mapping[str, Scores]
) -> dict[str, Tensor]:
    """The four equations in Python floats, over the learned tokens of an update in one list."""
    planned = {make_rows(0).to_pylist()[row]["sample_id"] for row in PLANNED}
    advantages, keys = group_advantages(rows), []
    for row in sorted(rows, key=lambda row: str(row["sample_id"])):
        learned = [k for k, hit in enumerate(row["loss_mask"]) if hit]
        keys += [(row["sample_id"], k, row["behavior_logprobs"][k]) for k in learned]
    plain = [
        advantages[name] + 0.5 * abs(advantages[name]) * (name in planned and 2 <= k < 5)
        for name, k, _ in keys
    ]
    swung = papers.entropy_quadrants(plain, [now[name][0][k].item() for name, k, _ in keys], 0.5, 0.2)
    kept = papers.top_entropy(swung, [old[name][1][k].item() for name, k, _ in keys], 0.6)
    result = {row["sample_id"]: torch.zeros(len(row["token_ids"])) for row in rows}
    for (name, k, sampled), advantage in zip(keys, kept, strict=True):
        result[name][k] = papers.tis(advantage, old[name][0][k].item(), sampled, 0.05)
    return result


@cache
def train_plainly(base: Path, num_updates: int) -> Plain:
    """One step in plain torch, one row at a time: PPO's clip on the advantages above."""
    torch.set_num_threads(1)
    model, result = load_model(base), Plain()
    rows = [row for row in make_rows(0).to_pylist() if row["reward"] is not None]
    optimizer = make_optimizer(model, LR / NUM_UPDATES, WEIGHT_DECAY)
    groups = list(dict.fromkeys(row["group_id"] for row in make_rows(0).to_pylist()))
    with torch.no_grad():
        old = {row["sample_id"]: score(model, row) for row in rows}
    for members in UPDATES[num_updates]:
        mine = [row for row in rows if row["group_id"] in {groups[place] for place in members}]
        with torch.no_grad():
            now = {row["sample_id"]: score(model, row) for row in mine}
        wanted = transformed(mine, now, old)
        total, count = torch.zeros(()), 0
        for row in mine:
            name, mask = row["sample_id"], torch.tensor(row["loss_mask"])
            r, advantage = torch.exp(score(model, row)[0] - old[name][0]), wanted[name]
            loss = -torch.minimum(r * advantage, r.clamp(0.8, 1.2) * advantage)
            total, count = total + loss[mask].sum(), count + int(mask.sum())
        result.norms.append(take_update(model, optimizer, total / count, MAX_GRAD_NORM))
        result.losses.append((total / count).item())
    result.weights = weights_of(model)
    return result


CASES = [
    (0, 1, 17, False, 2),
    (1, 2, 1, True, 2),
    (3, 2, 2, False, 2),
    (2, 1, 9, True, 1),
    (0, 1, 5, False, 1),
]
FOUND: dict[int, dict[str, float]] = {}
"""By number of updates: what the first case logged."""


@pytest.mark.parametrize(
    ("stage", "num_ranks", "rows", "reverse", "updates"), quick_of(CASES, [CASES[0], CASES[2], CASES[3]])
)
def test_cut_ranks_and_order_change_nothing(
    learners: Learners, grams: str, stage: int, num_ranks: int, rows: int, reverse: bool, updates: int
) -> None:
    """1 to 8 microbatches on 1 and 2 ranks, rows in either order: losses and model of plain torch.

    The second update's surprisals are of weights that the first has moved, its entropies are not. All that
    the transforms log is the same as well.
    """
    case = TransformedCase(
        grams=grams, stage=stage, num_ranks=num_ranks, rows_per_microbatch=rows, updates_per_step=updates
    )
    ranks = learners.ranks(case)
    config = ranks.build(case, learners.base)
    sums = ranks.step(case, config, reversed_rows(make_rows(0)) if reverse else make_rows(0), 0)
    losses, norms = ([update[name] for update in sums] for name in ("loss/total", "grad/norm"))
    outcome = Outcome(losses=np.array(losses), norms=np.array(norms), weights=ranks.weights())
    plain = train_plainly(learners.base, updates)
    wanted = Outcome(losses=np.array(plain.losses), norms=np.array(plain.norms), weights=plain.weights)
    found = distance(outcome, wanted, learners.start)
    print(case, found)
    found.check()
    logged = {name: value for name, value in update_metrics(sums).items() if "token_advantage." in name}
    assert logged == pytest.approx(FOUND.setdefault(updates, logged), rel=1e-5)
    num_tokens = sum(update["tokens/policy"] for update in sums)
    assert logged["clip/token_advantage.plan/planning"] == pytest.approx(3 * len(PLANNED) / num_tokens)
    assert logged["clip/token_advantage.forks/kept"] == pytest.approx(0.6, abs=0.01)
    names = ("correct/truncated", "swing/raised", "swing/shrunk", "plan/planning", "forks/kept")
    assert all(0 < logged[f"clip/token_advantage.{name}"] < 1 for name in names)
    entropy = {1: math.log(3), 2: math.log(2) / 2}  # three n-grams at once, or two and then one
    assert logged["prepare/token_advantage.plan/strategy_entropy"] == pytest.approx(entropy[updates])
