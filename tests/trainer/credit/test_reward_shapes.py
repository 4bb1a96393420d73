"""Reward shaping: by hand, the papers' equations in floats, row order, groups without a good row."""

from __future__ import annotations

import math

import credit_cases
import numpy as np
import pytest
import reference_credit as papers
from credit_cases import rewarded
from hypothesis import given
from hypothesis import strategies as st

from configs.bound import bind
from configs.errors import ConfigError
from configs.kinds.reward_shapes import (
    CosineLengthOptions,
    MaraOptions,
    OverlongOptions,
    RelativeLengthOptions,
)
from configs.load import load_config
from trainer.credit.reward_shapes import cosine_length, mara, overlong, relative_length

ROWS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.integers(0, 2), st.floats(-60, 0), st.integers(0, 20)
    ),
    min_size=1,
    max_size=9,
)
Row = tuple[float, int, float, int]


@pytest.mark.parametrize("name", credit_cases.REWARD_SHAPE_CHECKS)
def test_by_hand(name: str) -> None:
    for check in credit_cases.REWARD_SHAPE_CHECKS[name]:
        check()


@given(ROWS, st.integers(4, 18), st.integers(1, 4), st.floats(0, 2))
def test_overlong_against_the_paper(rows: list[Row], longest: int, cache: int, penalty: float) -> None:
    rewards, groups, _, tokens = (list(column) for column in zip(*rows, strict=True))
    options = OverlongOptions(max_tokens=longest, cache_tokens=cache, penalty=penalty)
    found = overlong(rewarded(rewards, groups, tokens=tokens), options)
    wanted = [papers.overlong(r, n, longest, cache, penalty) for r, n in zip(rewards, tokens, strict=True)]
    assert found.tolist() == pytest.approx(wanted)


@given(ROWS, st.integers(1, 18))
def test_lengths_against_open_r1(rows: list[Row], longest: int) -> None:
    """Right where the reward is 1 or more; groups of any sizes."""
    rewards, groups, _, tokens = (list(column) for column in zip(*rows, strict=True))
    right = [reward >= 1.0 for reward in rewards]
    given = rewarded(rewards, groups, tokens=tokens, right=right)
    found = cosine_length(given, CosineLengthOptions(max_tokens=longest))
    each = list(zip(rewards, right, tokens, strict=True))
    assert found.tolist() == pytest.approx([papers.cosine_length(r, ok, n, longest) for r, ok, n in each])
    found = relative_length(given, RelativeLengthOptions())
    of_group = [[n for n, at in zip(tokens, groups, strict=True) if at == group] for group in groups]
    wanted = [papers.relative_length(*row, lengths) for row, lengths in zip(each, of_group, strict=True)]
    assert found.tolist() == pytest.approx(wanted)


@given(ROWS, st.floats(0.01, 2))
def test_mara_against_the_paper(rows: list[Row], beta: float) -> None:
    """Row by row; and log ref + r' / beta is the same for all good rows of a group: the target is uniform."""
    rewards, groups, ref, _ = (list(column) for column in zip(*rows, strict=True))
    given = rewarded(rewards, groups, ref=ref)
    found = mara(given, MaraOptions(beta=beta))
    for group in set(groups):
        places = [place for place, at in enumerate(groups) if at == group]
        of_group, of_ref = [rewards[place] for place in places], [ref[place] for place in places]
        for me, place in enumerate(places):
            assert found[place] == pytest.approx(papers.mara(of_group, of_ref, me, beta, 1.0))
        good = [place for place in places if rewards[place] >= 1.0]
        target = [ref[place] + found[place] / beta for place in good]
        assert target == pytest.approx([max(target, default=0.0)] * len(good))


@given(ROWS, st.permutations(range(9)))
def test_row_order_does_not_matter(rows: list[Row], order: list[int]) -> None:
    """Also with ties of the reference: bit for bit."""
    moved = [place for place in order if place < len(rows)]
    results = []
    for chosen in (rows, [rows[place] for place in moved]):
        rewards, groups, ref, tokens = (list(column) for column in zip(*chosen, strict=True))
        given = rewarded(rewards, groups, ref=[round(each, -1) for each in ref], tokens=tokens)
        results.append((mara(given, MaraOptions()), overlong(given, OverlongOptions(max_tokens=9))))
    for here, there in zip(*results, strict=True):
        assert there.tolist() == here[moved].tolist() and np.isfinite(here).all()


def test_an_empty_completion_is_short_and_may_be_the_anchor() -> None:
    """No tokens: log ref is 0, the largest there is."""
    rows = rewarded([1.0, 1.0], [0, 0], tokens=[0, 5], ref=[0.0, -4.0])
    assert overlong(rows, OverlongOptions()).tolist() == [1.0, 1.0]
    assert mara(rows, MaraOptions(beta=0.5)).tolist() == [1.0, 3.0]


def test_filter_alone() -> None:
    """Without a penalty only truncated rows change: they have no reward."""
    rows = rewarded([1.0, 0.0], [0, 0], tokens=[40, 40], finish=["stop", "length"])
    found = overlong(rows, OverlongOptions(penalty=0.0, filter=True))
    assert found[0] == 1.0 and math.isnan(found[1])


def test_which_runs_score_the_reference() -> None:
    """An anchor, a controller that may turn one on, or mara; overlong does not need it."""
    for overrides, wanted in (
        ([], False),
        (["kl.coef=0.1"], True),
        (["reward_shape.x={kind: overlong}"], False),
        (["reward_shape.x={kind: mara}", "reference.reset_every=5"], True),
    ):
        assert bind(load_config("debug", overrides)).needs_reference() is wanted


def test_relative_length_can_be_turned_on_later() -> None:
    """As docs/methods/relative_length.md shows it; at 0 it changes nothing."""
    mover = "setting: reward_shape.x.coef, metric: reward/mean, target: 0.7, relative: false, below: false"
    on = f"controllers.on={{kind: threshold, {mover}, value: 0.5, otherwise: 0.0}}"
    load_config("debug", ["reward_shape.x={kind: relative_length}", on])
    rows = rewarded([1.0, 1.0], [0, 0], tokens=[1, 9], right=[True, True])
    assert relative_length(rows, RelativeLengthOptions(coef=0.0)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["reward_shape.x={kind: overlong, max_tokens: 60}"], r"must be below rollout\.max_tokens"),
        (["reward_shape.x={kind: overlong, max_tokens: 5}"], r"must not be above max_tokens \(5\)"),
        (["reward_shape.x={kind: overlong, cache_tokens: 0}"], "must be above 0"),
        (["reward_shape.x={kind: overlong, penalty: 0}"], "this shape changes nothing"),
        (["reward_shape.x={kind: mara, beta: -1}"], "must be above 0"),
        (["reward_shape.x={kind: cosine_length, max_tokens: 0}"], "must be above 0"),
        (
            ["reward_shape.x={kind: relative_length}", "rollout.group_size=1", "advantage.kind=reinforce"],
            "it compares siblings",
        ),
        (
            ["reward_shape.x={kind: cosine_length}", "scorers={correct: {kind: constant, weight: 1.0}}"],
            "must have a scorer that reads answers",
        ),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        load_config("debug", overrides)
