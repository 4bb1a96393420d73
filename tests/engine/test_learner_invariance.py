"""How a batch is cut, over how many ranks, under which ZeRO stage: none of it may change what is learned.

All runs of one variant are compared with plain torch that shares no code with the learner: a wrong
division by ranks, a microbatch dropped at an accumulation boundary or a clipped norm all show here.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from learner_cases import (
    GROUP_SIZES,
    LR,
    MAX_GRAD_NORM,
    NUM_UPDATES,
    WEIGHT_DECAY,
    Case,
    Learners,
    Outcome,
    distance,
    make_rows,
    train,
)
from matrices import quick_of
from plain_reference import Recipe, train_plainly

pytestmark = pytest.mark.engine

STAGES = (0, 1, 2, 3)
ONE_UPDATE = (tuple(range(len(GROUP_SIZES))),)
TWO_UPDATES = ((0, 1, 2), (3, 4))
QUICK = [(0, 1, 2), (0, 2, 8), (1, 2, 2), (2, 1, 8), (2, 2, 1), (3, 1, 1), (3, 2, 2)]
"""Every stage, both numbers of ranks with each cut, and the stages that shard with two ranks."""


@cache
def plain(
    base: Path,
    aggregate: str = "token_mean",
    kl_coef: float = 0.0,
    updates: tuple[tuple[int, ...], ...] = ONE_UPDATE,
) -> Outcome:
    """The same three steps in plain torch."""
    recipe = Recipe(
        learning_rates=tuple(LR * (step + 1) / NUM_UPDATES for step in range(NUM_UPDATES)),
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_GRAD_NORM,
        aggregate=aggregate,
        kl_coef=kl_coef,
        groups_of_update=updates,
    )
    trained = train_plainly(base, [make_rows(step) for step in range(NUM_UPDATES)], recipe)
    return Outcome(losses=np.array(trained.losses), norms=np.array(trained.norms), weights=trained.weights)


def check(learners: Learners, case: Case, outcome: Outcome, expected: Outcome) -> None:
    """Losses, norms and weights are those expected."""
    assert outcome.norms.min() > MAX_GRAD_NORM, "norms are those before clipping, which every update does"
    found = distance(outcome, expected, learners.start)
    print(case, found)
    found.check()


@pytest.mark.parametrize(
    ("stage", "num_ranks", "rows"), quick_of(list(product(STAGES, (1, 2), (1, 2, 8))), QUICK)
)
def test_cut_changes_nothing(learners: Learners, stage: int, num_ranks: int, rows: int) -> None:
    """17 rows in microbatches of 1, 2 and 8 on 1 and 2 ranks train the same model as plain torch."""
    case = Case(stage=stage, num_ranks=num_ranks, rows_per_microbatch=rows)
    check(learners, case, train(learners.ranks(case), case, learners.base), plain(learners.base))


@pytest.mark.parametrize(("stage", "tokens"), quick_of([(1, 55), (2, 120), (3, 1000)], [(2, 120)]))
def test_microbatch_tokens_changes_nothing(learners: Learners, stage: int, tokens: int) -> None:
    """The product's own cut by padded tokens: one long row, a few rows, all rows at a time."""
    case = Case(stage=stage, num_ranks=2, microbatch_tokens=tokens)
    check(learners, case, train(learners.ranks(case), case, learners.base), plain(learners.base))


@pytest.mark.parametrize(
    ("stage", "num_ranks", "offload"),
    quick_of(
        [(0, 1, True), (1, 2, False), (2, 1, False), (3, 2, False), (3, 2, True)],
        [(1, 2, False), (3, 2, True)],
    ),
)
def test_anchor_is_cut_free(learners: Learners, stage: int, num_ranks: int, offload: bool) -> None:
    """A k3 anchor adds its term per token, the frozen copy whole or sharded (ZeRO-3), here or on the host."""
    case = Case(stage=stage, num_ranks=num_ranks, kl_coef=0.3, offload_anchor=offload)
    check(learners, case, train(learners.ranks(case), case, learners.base), plain(learners.base, kl_coef=0.3))


@pytest.mark.parametrize(
    ("stage", "num_ranks", "rows"),
    quick_of([(0, 2, 2), (1, 1, 8), (2, 2, 1), (3, 2, 2)], [(1, 1, 8), (3, 2, 2)]),
)
def test_sequence_mean_is_cut_free(learners: Learners, stage: int, num_ranks: int, rows: int) -> None:
    """Averaging within sequences first counts rows, not tokens, over all ranks."""
    case = Case(stage=stage, num_ranks=num_ranks, rows_per_microbatch=rows, aggregate="sequence_mean")
    expected = plain(learners.base, aggregate="sequence_mean")
    check(learners, case, train(learners.ranks(case), case, learners.base), expected)


@pytest.mark.parametrize(
    ("stage", "num_ranks", "rows"),
    quick_of(
        [(0, 1, 2), (0, 2, 8), (1, 1, 8), (1, 2, 2), (2, 1, 2), (2, 2, 1), (3, 1, 1), (3, 2, 2)],
        [(0, 2, 8), (2, 1, 2), (3, 2, 2)],
    ),
)
def test_two_updates_in_a_step(learners: Learners, stage: int, num_ranks: int, rows: int) -> None:
    """The second update counts its own tokens, and its ratios, to the step's first logprobs, are not 1."""
    case = Case(stage=stage, num_ranks=num_ranks, rows_per_microbatch=rows, updates_per_step=2)
    expected = plain(learners.base, updates=TWO_UPDATES)
    check(learners, case, train(learners.ranks(case), case, learners.base), expected)


@pytest.mark.parametrize("stage", [1, 3])
def test_row_order_changes_nothing(learners: Learners, stage: int) -> None:
    """Rows handed over last first give the same updates."""
    case = Case(stage=stage, num_ranks=2)
    check(
        learners, case, train(learners.ranks(case), case, learners.base, reverse=True), plain(learners.base)
    )
