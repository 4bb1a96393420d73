"""Novelty of formats and strategies: by hand, what it conserves, and which configs it takes."""

from __future__ import annotations

import novelty_cases
import numpy as np
import pytest
from credit_cases import rewarded
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.kinds.bonuses import FormatNoveltyOptions
from configs.load import load_config
from trainer.credit.novelty import format_novelty

ROWS = st.lists(
    st.tuples(
        st.integers(0, 2), st.sampled_from(["a", "b", "none", None]), st.booleans(), st.integers(0, 30)
    ),
    min_size=1,
    max_size=9,
)
Row = tuple[int, str | None, bool, int]


@pytest.mark.parametrize("check", novelty_cases.ALL)
def test_by_hand(check: novelty_cases.Check) -> None:
    check()


@given(ROWS, st.sampled_from(["history", "group"]), st.permutations(range(9)))
def test_what_it_conserves(rows: list[Row], counts: str, order: list[int]) -> None:
    """Centred, the rows of a group gain nothing together; wrong rows and other orders change nothing."""
    options = FormatNoveltyOptions(coef=1.0, counts=counts)

    def bonus(chosen: list[Row]) -> np.ndarray:
        groups, tags, right, visits = (list(column) for column in zip(*chosen, strict=True))
        return format_novelty(
            rewarded(
                [0.0] * len(chosen),
                groups,
                right=right,
                tags=[{} if tag is None else {"format": tag} for tag in tags],
                tag_visits=[
                    {} if tag is None else {"format": count} for tag, count in zip(tags, visits, strict=True)
                ],
            ),
            options,
        )

    found = bonus(rows)
    assert np.abs(found).max() <= 1.0
    for group in {row[0] for row in rows}:
        assert sum(each for each, row in zip(found, rows, strict=True) if row[0] == group) == pytest.approx(0)
    assert not any(
        each for each, row in zip(found, rows, strict=True) if not row[2] or row[1] in (None, "none")
    )
    moved = [place for place in order if place < len(rows)]
    assert bonus([rows[place] for place in moved]).tolist() == pytest.approx(found[moved].tolist(), abs=1e-12)


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (
            ["bonus.x={kind: format_novelty, tag: fromat}"],
            "must be a tag of a scorer: those here give format",
        ),
        (["bonus.x={kind: strategy_novelty}"], "must be a tag of a scorer"),
        (["bonus.x={kind: format_novelty, counts: run}"], "must be one of history, group"),
        (
            [
                "bonus.x={kind: format_novelty, tag: structure}",
                "scorers={correct: null, form: {kind: format, weight: 1.0}}",
            ],
            "must be false without a scorer that says which answers are right",
        ),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        load_config("debug", overrides)


def test_tags_of_other_scorers_can_be_counted() -> None:
    """The tag of `format`, without answers; and a tag of the user's own scorer, which nobody can know."""
    without = ["scorers={correct: null, form: {kind: format, weight: 1.0}}"]
    load_config("debug", [*without, "bonus.x={kind: format_novelty, tag: structure, only_right: false}"])
    own = ["allow=[mine]", 'scorers.own={kind: "mine:score"}']
    load_config("debug", [*own, "bonus.x={kind: strategy_novelty}"])
