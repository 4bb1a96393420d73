"""Bonuses: by hand, the paper's equations in floats, row order, and groups where nothing can be compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import credit_cases
import numpy as np
import pytest
import reference_credit as papers
from credit_cases import rewarded
from hypothesis import given
from hypothesis import strategies as st

from configs.bound import bind
from configs.errors import ConfigError
from configs.kinds.base import load_target
from configs.kinds.bonuses import BONUSES, BatchOptions, UcbConOptions, UcbMeanOptions, UcbOptions
from configs.load import load_config
from trainer.credit.advantage_inputs import RewardedRows
from trainer.credit.bonuses import batch, ucb, ucb_con, ucb_mean

Row = tuple[int, str | None, bool | None]
ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["1", "2", None]), st.sampled_from([True, False, None])),
    min_size=1,
    max_size=9,
)
VISITS = {"1": 0, "2": 3, None: 25}


@pytest.mark.parametrize("name", credit_cases.BONUS_CHECKS)
def test_by_hand(name: str) -> None:
    for check in credit_cases.BONUS_CHECKS[name]:
        check()


def made(rows: list[Row]) -> RewardedRows:
    groups, answers, right = (list(column) for column in zip(*rows, strict=True))
    visits = [VISITS[answer] for answer in answers]
    return rewarded([0.0] * len(rows), groups, answers=answers, right=right, visits=visits)


@given(ROWS)
def test_against_the_paper_in_scalars(rows: list[Row]) -> None:
    """Every kind, row by row: interleaved groups, single rows, all correct, nothing checked."""
    wanted: dict[str, list[float]] = {name: [] for name in BONUSES if name in credit_cases.BONUS_CHECKS}
    for number, (group, answer, _) in enumerate(rows):
        siblings = [row for place, row in enumerate(rows) if row[0] == group and place != number]
        mine = papers.ucb(VISITS[answer])
        others = [papers.ucb(VISITS[sibling[1]]) for sibling in siblings]
        alike = sum(sibling[1] == answer for sibling in siblings)
        solved = all(right for at, _, right in rows if at == group)
        found = {
            "ucb": mine,
            "ucb_mean": mine - papers.mean(others) if others else 0.0,
            "ucb_con": mine - 0.5,
            "batch": -alike / (len(siblings) + 1),
        }
        for name, value in found.items():
            wanted[name].append(0.0 if solved else 0.3 * value)
    for name in wanted:
        kind = BONUSES[name]
        found = load_target(kind.target)(made(rows), cast(Any, kind.options)(coef=0.3))
        assert found.tolist() == pytest.approx(wanted[name], abs=1e-12), name


@given(ROWS, st.permutations(range(9)))
def test_row_order_does_not_matter(rows: list[Row], order: list[int]) -> None:
    moved = [place for place in order if place < len(rows)]
    cases: list[tuple[Callable[..., np.ndarray], object]] = [
        (ucb, UcbOptions()),
        (ucb_mean, UcbMeanOptions()),
        (ucb_con, UcbConOptions()),
        (batch, BatchOptions()),
    ]
    for fn, options in cases:
        here = fn(made(rows), options)
        there = fn(made([rows[place] for place in moved]), options)
        assert np.isfinite(here).all()
        assert there.tolist() == pytest.approx(here[moved].tolist(), abs=1e-12)


def test_from_a_config() -> None:
    """In the config's order, with the kinds' defaults; controllers may change non-integer options."""
    mover = "controllers.c={kind: adaptive_setting, setting: bonus.b.coef, delta: 0.1, high: 1}"
    config = load_config("debug", ["bonus.a={kind: ucb_con, constant: 0.25}", "bonus.b={kind: batch}", mover])
    options = [entry.options for entry in bind(config).named["bonus"].values()]
    assert options == [UcbConOptions(constant=0.25), BatchOptions()]


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["bonus.x={kind: ucb, coef: -1}"], "must not be negative"),
        (["bonus.x={kind: batch}", "rollout.group_size=1", "advantage.kind=reinforce"], "compares siblings"),
        (["bonus.x={kind: ucb}", "loss.policy.kind=nll"], "must have a loss.policy that uses advantages"),
        (
            ["bonus.x={kind: ucb}", "scorers={mine: {kind: length, weight: 1}, correct: null}"],
            "must have a scorer that reads answers: .*custom, lab_answer, .* or your own",
        ),
        (
            [
                "bonus.x={kind: ucb}",
                "controllers.c={kind: adaptive_setting, setting: bonus.x.k, delta: 0.1, high: 1}",
            ],
            "must be .* or a number under one of loss.<name>, .*, bonus.<name>",
        ),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        load_config("debug", overrides)
