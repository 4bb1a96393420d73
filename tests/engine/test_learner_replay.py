"""A step of own and other rows on the real learner, against plain torch that shares no code with it.

Own rows take their ratio to the policy before the step and are averaged by token; replayed rows take it to
their sampler, are averaged by sequence and weigh a half; demonstrations give -log pi, averaged by token, and
weigh 0.3. Two updates, so that both ratios leave 1; some rows have no reward, one has masked tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from learner_cases import (
    LR,
    MAX_GRAD_NORM,
    NUM_UPDATES,
    VOCABULARY,
    WEIGHT_DECAY,
    Case,
    Learners,
    Outcome,
    distance,
    make_rows,
)
from matrices import quick_of
from plain_reference import (
    all_logprobs,
    group_advantages,
    load_model,
    make_optimizer,
    row_logprobs,
    take_update,
    weights_of,
)
from torch import Tensor
from transformers import PreTrainedModel

from configs.bound import bind
from configs.schema import RunConfig
from rollouts.schema import as_replay, named_for_step, sft_batch, to_batch, validate
from trainer.collate import with_advantages

pytestmark = pytest.mark.engine

OWN_GROUPS = (("step1-group0", "step1-group1", "step1-group2"), ("step1-group3", "step1-group4"))
REPLAYED = (("replay-9-step0-group1",), ("replay-9-step0-group2",))
"""Of the first and of the second update; step0-group1 has masked tokens, step0-group2 a null reward."""
REPLAY_WEIGHT = 0.5
SHOWN = (("sft-9-0", "sft-9-1", "sft-9-2"), ("sft-9-3", "sft-9-4"))
"""Demonstrations of the first and of the second update: the numbers' order, spread evenly."""
SFT_WEIGHT = 0.3
NUM_OWN_ROWS = 17


class ReplayCase(Case):
    """A case with a loss for replayed rows as well."""

    def config(self, base: Path) -> RunConfig:
        replayed = {"kind": "ppo_clip", "ratio_to": "behavior", "aggregate": "sequence_mean"}
        losses = {"policy": {"kind": "ppo_clip"}, "replay": replayed | {"weight": REPLAY_WEIGHT}}
        return replace(super().config(base), loss=losses)


class SftCase(Case):
    """A case with a loss for demonstrations as well."""

    def config(self, base: Path) -> RunConfig:
        losses = {"policy": {"kind": "ppo_clip"}, "sft": {"kind": "nll", "weight": SFT_WEIGHT}}
        return replace(super().config(base), loss=losses)


def sampled_nearby(rows: pa.RecordBatch, model: PreTrainedModel) -> pa.RecordBatch:
    """`rows` from a sampler whose logprobs are the model's and some noise: ratios fall on all sides of 1."""
    rng = np.random.default_rng(3)
    values = []
    for row in rows.to_pylist():
        with torch.no_grad():
            logprobs = row_logprobs(model, row).numpy() + rng.normal(0.0, 0.3, len(row["token_ids"]))
        learned = zip(logprobs.tolist(), row["loss_mask"], strict=True)
        values.append([min(logprob, 0.0) if counts else None for logprob, counts in learned])
    place = rows.schema.get_field_index("behavior_logprobs")
    field = rows.schema.field(place)
    return rows.set_column(place, field, pa.array(values, field.type))


def mixed_rows(base: Path) -> pa.RecordBatch:
    """The 17 rows of step 1, and two groups of step 0 once more."""
    model = load_model(base)
    older = sampled_nearby(make_rows(0), model)
    chosen = [
        row for row, index in enumerate(older.column("submission_index").to_pylist()) if index in (1, 2)
    ]
    parts = [sampled_nearby(make_rows(1), model), as_replay(older.take(pa.array(chosen)), 9)]
    rows = to_batch(pa.Table.from_batches(parts))
    validate(rows)
    return rows


def demonstrated_rows(base: Path) -> pa.RecordBatch:
    """The 17 rows of step 1, and five demonstrations of very different lengths."""
    rng = np.random.default_rng(8)
    shown = sft_batch(
        "run",
        prompt_ids=[rng.integers(0, VOCABULARY, 3 + number).tolist() for number in range(5)],
        token_ids=[rng.integers(0, VOCABULARY, length).tolist() for length in (5, 31, 12, 1, 22)],
        text=[""] * 5,
        domain=["test"] * 5,
        format_tag=[None] * 5,
    )
    parts = [sampled_nearby(make_rows(1), load_model(base)), named_for_step(shown, 9)]
    rows = to_batch(pa.Table.from_batches(parts))
    validate(rows)
    return rows


def clipped(model: PreTrainedModel, row: Mapping[str, Any], old: Tensor, advantage: float) -> Tensor:
    """-min(r A, clip(r, 0.8, 1.2) A) of the row's learned tokens."""
    ratio = torch.exp(row_logprobs(model, row) - old)
    loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    return loss[torch.tensor(row["loss_mask"])]


def plain_losses(
    model: PreTrainedModel, rows: Sequence[Mapping[str, Any]], proximal: Mapping[str, Tensor], update: int
) -> tuple[Tensor, Tensor]:
    """The losses of own and of other rows in one update."""
    advantages = group_advantages([row for row in rows if row["origin"] != "sft"])
    learned = [row for row in rows if row["sample_id"] in advantages]
    own = [
        clipped(model, row, proximal[row["sample_id"]], advantages[row["sample_id"]])
        for row in learned
        if row["group_id"] in OWN_GROUPS[update]
    ]
    replayed = []
    for row in learned:
        if row["group_id"] in REPLAYED[update]:
            # masked tokens have none; a number, as NaN times the gradient 0 of what is left out is NaN
            sampler = torch.tensor([0.0 if value is None else value for value in row["behavior_logprobs"]])
            replayed.append(clipped(model, row, sampler, advantages[row["sample_id"]]).mean())
    if replayed:
        return torch.cat(own).mean(), REPLAY_WEIGHT * torch.stack(replayed).mean()
    shown = [-row_logprobs(model, row) for row in rows if row["sample_id"] in SHOWN[update]]
    return torch.cat(own).mean(), SFT_WEIGHT * torch.cat(shown).mean()


def train_plainly(base: Path, rows: pa.RecordBatch) -> tuple[list[tuple[float, float]], Outcome]:
    """Both updates with torch's AdamW: the two losses of each, and what became of the model."""
    torch.set_num_threads(1)
    model = load_model(base)
    optimizer = make_optimizer(model, LR, WEIGHT_DECAY)
    listed = rows.to_pylist()
    with torch.no_grad():
        proximal = all_logprobs(model, listed)
    parts, norms = [], []
    for update in range(2):
        own, replayed = plain_losses(model, listed, proximal, update)
        norms.append(take_update(model, optimizer, own + replayed, MAX_GRAD_NORM))
        parts.append((own.item(), replayed.item()))
    totals = np.array([own + replayed for own, replayed in parts])
    return parts, Outcome(losses=totals, norms=np.array(norms), weights=weights_of(model))


@pytest.mark.parametrize(
    ("stage", "num_ranks", "tokens"),
    quick_of([(0, 1, 1000), (1, 1, 120), (2, 2, 55), (3, 2, 120)], [(1, 1, 120), (3, 2, 120)]),
)
def test_own_and_replayed_rows(learners: Learners, stage: int, num_ranks: int, tokens: int) -> None:
    """Each origin's loss, the norms and the weights are plain torch's, however the rows are cut."""
    case = ReplayCase(stage=stage, num_ranks=num_ranks, microbatch_tokens=tokens, updates_per_step=2)
    ranks, rows = learners.ranks(case), mixed_rows(learners.base)
    config = ranks.build(case, learners.base)
    batch, columns = ranks.score(case, config, rows)
    sums = ranks.update(batch, with_advantages(batch, columns, bind(config), NUM_UPDATES))
    found = Outcome(
        losses=np.array([update["loss/total"] for update in sums]),
        norms=np.array([update["grad/norm"] for update in sums]),
        weights=ranks.weights(),
    )
    parts, expected = train_plainly(learners.base, rows)
    for update, (own, replayed) in zip(sums, parts, strict=True):
        assert update["loss/policy"] == pytest.approx(own, abs=1e-5)
        assert update["loss/replay"] == pytest.approx(replayed, abs=1e-5)
        assert abs(replayed) > 1e-2, "a loss of nothing would agree with anything"
    gap = distance(found, expected, learners.start)
    print(case, gap)
    gap.check()


@pytest.mark.parametrize(("stage", "num_ranks", "tokens"), [(1, 1, 120), (3, 2, 120)])
def test_own_rows_and_demonstrations(learners: Learners, stage: int, num_ranks: int, tokens: int) -> None:
    """The update is that of the two losses' sum, and the own rows' loss is as it is alone.

    Demonstrations have no advantage, no sampler and no say in the own rows' advantages.
    """
    case = SftCase(stage=stage, num_ranks=num_ranks, microbatch_tokens=tokens, updates_per_step=2)
    ranks, rows = learners.ranks(case), demonstrated_rows(learners.base)
    config = ranks.build(case, learners.base)
    batch, columns = ranks.score(case, config, rows)
    learnable = with_advantages(batch, columns, bind(config), NUM_UPDATES)
    assert not learnable.advantage_N[NUM_OWN_ROWS:].any()
    assert columns.column("mismatch_abs").to_pylist()[NUM_OWN_ROWS:] == [0.0] * 5
    sums = ranks.update(batch, learnable)
    found = Outcome(
        losses=np.array([update["loss/total"] for update in sums]),
        norms=np.array([update["grad/norm"] for update in sums]),
        weights=ranks.weights(),
    )
    parts, expected = train_plainly(learners.base, rows)
    for update, (own, shown), count in zip(sums, parts, (48, 23), strict=True):
        assert update["loss/policy"] == pytest.approx(own, abs=1e-5)
        assert update["loss/sft"] == pytest.approx(shown, abs=1e-5)
        assert update["tokens/sft"] == count
    gap = distance(found, expected, learners.start)
    print(case, gap)
    gap.check()
