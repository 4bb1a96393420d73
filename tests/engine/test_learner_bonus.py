"""Bonuses in real learners: on learned tokens outside the answer, whatever the cut; and mara's reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    WEIGHT_DECAY,
    Case,
    Learners,
    Outcome,
    distance,
    make_rows,
    reversed_rows,
)
from matrices import quick_of
from plain_reference import (
    Recipe,
    all_logprobs,
    group_advantages,
    load_model,
    make_optimizer,
    take_update,
    update_loss,
    weights_of,
)
from torch import Tensor

from actors.requests import RankUpdate
from configs.bound import bind
from configs.schema import RunConfig
from rollouts.schema import validate
from trainer.collate import with_advantages
from trainer.model.rows import read_rows
from trainer.token_columns import token_table

pytestmark = pytest.mark.engine

COEF = 0.75
STEP = 2
START, END = 3, 6
"""The answer's tokens of every second row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BonusCase(Case):
    """A case whose rows get the bonus `batch`."""

    def config(self, base: Path) -> RunConfig:
        return replace(Case.config(self, base), bonus={"explore": {"kind": "batch", "coef": COEF}})


def answered(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Answers a, a, b, a, a, b, ... and every second row with a span for it."""
    count = rows.num_rows
    spans = [{"label": "answer", "start": START, "end": END}, {"label": "plan", "start": 0, "end": 1}]
    columns = {
        "answer": ["aab"[number % 3] for number in range(count)],
        "answer_ok": [False] * count,
        "spans": [spans if number % 2 else [] for number in range(count)],
    }
    for name, values in columns.items():
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(
            place, rows.schema.field(place), pa.array(values, rows.schema.field(place).type)
        )
    validate(rows)
    return rows


def token_advantages(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """GRPO's advantage of each row with a reward, less the coefficient times its share of like siblings."""
    found = {}
    for name, advantage in group_advantages(rows).items():
        (row,) = (row for row in rows if row["sample_id"] == name)
        group = [each for each in rows if each["group_id"] == row["group_id"] and each["reward"] is not None]
        alike = sum(each["answer"] == row["answer"] for each in group) - 1
        found[name] = torch.full((len(row["token_ids"]),), advantage - COEF * alike / len(group))
        if row["spans"]:
            found[name][START:END] = advantage
    return found


@pytest.fixture(scope="module")
def expected(learners: Learners) -> Outcome:
    """One update in plain torch."""
    torch.set_num_threads(1)
    recipe = Recipe(
        learning_rates=(LR,),
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_GRAD_NORM,
        aggregate="token_mean",
        kl_coef=0.0,
        groups_of_update=(),
    )
    model = load_model(learners.base)
    rows = answered(make_rows(STEP)).to_pylist()
    with torch.no_grad():
        proximal = all_logprobs(model, rows)
    optimizer = make_optimizer(model, LR, WEIGHT_DECAY)
    loss = update_loss(model, rows, token_advantages(rows), proximal, proximal, recipe)  # type: ignore[arg-type]
    norm = take_update(model, optimizer, loss, MAX_GRAD_NORM)
    return Outcome(losses=np.array([loss.item()]), norms=np.array([norm]), weights=weights_of(model))


@pytest.mark.parametrize(
    ("stage", "num_ranks", "rows_per_microbatch", "reverse"),
    quick_of(
        [
            (0, 1, 1, False),
            (0, 1, 2, True),
            (1, 1, 4, False),
            (0, 1, 8, False),
            (0, 2, 2, False),
            (3, 2, 4, True),
        ],
        [(0, 1, 2, True), (0, 2, 2, False), (3, 2, 4, True)],
    ),
)
def test_the_bonus_is_learned_and_the_cut_changes_nothing(
    learners: Learners, expected: Outcome, stage: int, num_ranks: int, rows_per_microbatch: int, reverse: bool
) -> None:
    """Microbatches of 1, 2, 4 and 8 rows, one and two ranks, rows in either order: as plain torch has it."""
    case = BonusCase(stage=stage, num_ranks=num_ranks, rows_per_microbatch=rows_per_microbatch)
    ranks = learners.ranks(case)
    config = ranks.build(case, learners.base)
    rows = answered(make_rows(STEP))
    (sums,) = ranks.step(case, config, reversed_rows(rows) if reverse else rows, NUM_UPDATES)
    losses, norms = np.array([sums["loss/total"]]), np.array([sums["grad/norm"]])
    found = distance(Outcome(losses=losses, norms=norms, weights=ranks.weights()), expected, learners.start)
    print(case, found)
    found.check()


def test_batch_statistics_see_the_bonus_where_it_acts() -> None:
    """The table of `prepare`: A = 2, bonus -1/2 on 8 tokens but those of the answer of every second row."""
    rows = read_rows(answered(make_rows(STEP)).slice(0, 2))
    update = RankUpdate(
        microbatches=(((0, 1),),),
        advantages_N=np.array([1.0, 2.0]),
        bonuses_N=np.array([0.25, -0.5]),
        row_weights_N=np.ones(2),
        learning_rates=(LR,),
    )
    found = token_table(rows, {}, update, [1, 0], 0)["advantage"].tolist()
    assert found[:8] == [1.5] * 3 + [2.0] * 3 + [1.5] * 2
    assert set(found[len(rows.tokens[1]) :]) == {1.25}


def test_mara_has_the_reference_scored(learners: Learners) -> None:
    """Without an anchor and without base_logprobs: the column is there, and no other."""
    case = Case(stage=0, num_ranks=1)
    ranks = learners.ranks(case)
    config = ranks.build(case, learners.base)
    with_mara = replace(config, reward_shape={"modes": {"kind": "mara", "beta": 0.1, "threshold": -9.0}})
    rows = make_rows(STEP)
    for asked, wanted in ((config, False), (with_mara, True), (config, False)):
        ranks.ask("reset", case.bound(asked))
        batch, columns = ranks.score(case, asked, rows)
        assert (columns.column("ref_logprobs").null_count == 0) is wanted
        assert columns.column("base_logprobs").null_count == rows.num_rows
        plain = with_advantages(batch, columns, bind(config), 0)
        if wanted:
            assert not np.array_equal(
                with_advantages(batch, columns, bind(asked), 0).advantage_N, plain.advantage_N
            )
