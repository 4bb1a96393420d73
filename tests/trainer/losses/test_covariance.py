"""Clip-Cov and KL-Cov: by hand, against a scalar loop, by finite differences, for any assignment of rows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import gradient, loss_inputs
from reference_covariance import (
    Token,
    clip_cov_choice,
    clip_cov_loss,
    kl_cov_choice,
    kl_cov_loss,
    token_covariances,
)

from configs.errors import ConfigError
from configs.kinds.losses import ClipCovOptions, KlCovOptions
from configs.load import load_config
from trainer.losses.batch_statistics import Prepared, TokenTable, prepare_origin
from trainer.losses.covariance import (
    _is_clipped,
    clip_cov,
    covariances,
    kl_cov,
    num_selected,
    select_in_band,
    select_top,
)
from trainer.losses.per_token import LossInputs

torch.set_num_threads(1)
NARROW = ClipCovOptions(clip_low=0.2, clip_high=0.3)
HAND: list[Token] = [
    {"sample_id": "a", "position": 0, "logp": -1.0, "advantage": 2.0, "old": -1.0, "draw": 0.5},
    {"sample_id": "a", "position": 1, "logp": -4.0, "advantage": -2.0, "old": -4.0, "draw": 0.25},
    {"sample_id": "b", "position": 0, "logp": -2.0, "advantage": 1.0, "old": -2.0, "draw": 0.125},
    {"sample_id": "b", "position": 1, "logp": -1.0, "advantage": -1.0, "old": -1.0, "draw": 0.0},
]
"""log pi - mean: 1, -2, 0, 1; A - mean: 2, -2, 1, -1; Cov: 2, 4, 0, -1. The draws' sum is 0.875."""


def to_table(tokens: list[Token]) -> TokenTable:
    def floats(name: str) -> np.ndarray:
        return np.array([token[name] for token in tokens], np.float64)

    return {
        "sample_id": np.array([token["sample_id"] for token in tokens], np.str_),
        "position": np.array([token["position"] for token in tokens], np.int64),
        "origin": np.array(["policy"] * len(tokens), np.str_),
        "weight": np.ones(len(tokens)),
        "advantage": floats("advantage"),
        "draw": floats("draw"),
        "policy_logprobs": floats("logp"),
        "proximal_logprobs": floats("old"),
        "behavior_logprobs": floats("old"),
    }


def chosen(found: Prepared) -> list[bool]:
    return found.columns["selected"].tolist()


def test_covariances_by_hand() -> None:
    """See HAND; their median is 1 and 99.8 % of the way from least to most is 4 - 0.006 x 2."""
    table = to_table(HAND)
    assert covariances(table).tolist() == [2.0, 4.0, 0.0, -1.0]
    stats = select_top(table, KlCovOptions()).stats
    assert stats["cov_q50"] == pytest.approx(1.0) and stats["cov_q99.8"] == pytest.approx(3.988)
    assert list(stats) == ["cov_q50", "cov_q80", "cov_q98", "cov_q99.8"]


def test_what_is_not_known_enters_no_mean() -> None:
    """An advantage that is NaN, a logprob of minus infinity: Cov 0 for these, unchanged for the others."""
    odd = [dict(HAND[0], position=2, advantage=math.nan), dict(HAND[0], position=3, logp=-math.inf)]
    assert covariances(to_table([*HAND, *odd])).tolist() == [2.0, 4.0, 0.0, -1.0, 0.0, 0.0]


def test_where_the_ratio_has_stopped_a_token() -> None:
    """Bounds 0.8 and 1.3: with A > 0 beyond 1.3 (not 1.25), with A < 0 below 0.8 (0.75 is, 0.85 is not)."""
    cases = [(1.35, 1.0, True), (1.25, 1.0, False), (0.75, 1.0, False)]
    cases += [(0.75, -1.0, True), (0.85, -1.0, False), (1.35, -1.0, False), (0.75, 0.0, False)]
    tokens = [dict(HAND[0], old=-1.0 - math.log(r), advantage=advantage) for r, advantage, _ in cases]
    assert _is_clipped(to_table(tokens), NARROW).tolist() == [stopped for _, _, stopped in cases]


def test_kl_cov_takes_the_highest() -> None:
    """A share of 1/4 is floor(1 + 0.875) = 1 token, 4; 1/2 is two; all of them only where Cov is above 0.

    1/32 of 4 tokens is floor(0.125 + 0.875) = 1 token, 1/64 is none.
    """
    table = to_table(HAND)
    for fraction, wanted in ((0.25, [1]), (0.5, [0, 1]), (1.0, [0, 1]), (1 / 32, [1]), (1 / 64, [])):
        found = chosen(select_top(table, KlCovOptions(fraction=fraction)))
        assert np.flatnonzero(found).tolist() == wanted


def test_clip_cov_takes_the_smallest_draws_within_the_band() -> None:
    """2 and 4 lie between 1 and 5; one of them is selected: 4, whose draw is 0.25. The band is open."""
    table = to_table(HAND)
    assert chosen(select_in_band(table, ClipCovOptions(fraction=0.25))) == [False, True, False, False]
    assert chosen(select_in_band(table, ClipCovOptions(fraction=1.0))) == [True, True, False, False]
    at_4 = ClipCovOptions(fraction=1.0, upper=4.0)
    assert chosen(select_in_band(table, at_4)) == [True, False, False, False]
    at_2 = ClipCovOptions(fraction=1.0, lower=2.0)
    assert chosen(select_in_band(table, at_2)) == [False, True, False, False]


@pytest.mark.parametrize(
    ("logp", "advantage", "stopped"), [(0.3, 2.0, True), (0.2, 2.0, False), (-0.3, 2.0, False)]
)
def test_clip_cov_leaves_what_the_ratio_has_stopped(logp: float, advantage: float, stopped: bool) -> None:
    """With A = 2 the clip excludes r = e^0.3 = 1.35 > 1.3, but not e^0.2 = 1.22, and nothing below 1."""
    tokens = [dict(HAND[0], old=HAND[0]["logp"] - logp, advantage=advantage), *HAND[1:]]
    options = ClipCovOptions(fraction=1.0, clip_low=0.2, clip_high=0.3)
    assert chosen(select_in_band(to_table(tokens), options))[0] != stopped


def test_with_old_behavior_the_sampler_decides_what_is_stopped() -> None:
    """r = e^0.5 to the sampler, 1 to the proximal policy."""
    table = to_table(HAND)
    table["behavior_logprobs"] = table["policy_logprobs"] - np.array([0.5, 0, 0, 0])
    for old, wanted in (("proximal", [0, 1]), ("behavior", [1])):
        options = ClipCovOptions(fraction=1.0, clip_low=0.2, clip_high=0.3, ratio_to=old)
        assert np.flatnonzero(chosen(select_in_band(table, options))).tolist() == wanted


def test_ties_go_to_the_first_sample_and_position() -> None:
    """Cov 1 four times (log pi -1 or -3, A 1 or -1) and 3 tokens to select: the first three."""
    tokens = [
        {"sample_id": name, "position": k, "logp": -2.0 + sign, "advantage": sign, "old": 0.0, "draw": 0.0}
        for name in ("b", "a")
        for k, sign in enumerate((1.0, -1.0))
    ]
    found = prepare_origin(
        to_table(tokens), "policy", lambda own: [own], lambda c: select_top(c, KlCovOptions(fraction=0.75))
    )
    assert chosen(found) == [True, False, True, True]


def test_no_least_of_one_token() -> None:
    """On average fraction x tokens, also far below one token: 2e-4 of 500 is 0.1, not 1."""
    rng = np.random.default_rng(0)
    counts = [num_selected(2e-4, rng.random(500)) for _ in range(2000)]
    assert set(counts) == {0, 1}
    assert np.mean(counts) == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 2000))
    assert num_selected(1.0, rng.random(7)) == 7 and num_selected(0.5, np.zeros(0)) == 0


# -- losses per token ----------------------------------------------------------------------------------------


def marked_inputs(
    policy: list[float], old: list[float], advantages: list[float], selected: list[bool]
) -> LossInputs:
    """Tokens of which some were selected."""
    prepared = {"selected": torch.tensor(selected, dtype=torch.bool)}
    return replace(loss_inputs(policy, old, advantages), prepared=prepared)


def loss_and_gradient(function: Any, inputs: LossInputs, options: object) -> tuple[list[float], list[float]]:
    found = function(inputs, options)
    return found.loss.tolist(), gradient(found, inputs).tolist()


@pytest.mark.parametrize(
    ("r", "advantage", "loss", "grad"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.6, 0.0),
        (0.5, 2.0, -1.0, -1.0),
        (0.9, -2.0, 1.8, 1.8),
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_clip_regions(r: float, advantage: float, loss: float, grad: float) -> None:
    """Unselected, clip_cov is the clipped surrogate with bounds 0.8 and 1.3; selected it is 0 everywhere.

    kl_cov has no bounds: -r A and gradient -r A; selected, + |ln r| and + its sign, 0 at r = 1.
    """
    inputs = marked_inputs([math.log(r) - 1.0] * 2, [-1.0] * 2, [advantage] * 2, [False, True])
    losses, grads = loss_and_gradient(clip_cov, inputs, NARROW)
    assert losses == pytest.approx([loss, 0.0]) and grads == pytest.approx([grad, 0.0])
    losses, grads = loss_and_gradient(kl_cov, inputs, KlCovOptions(beta=0.5))
    assert losses == pytest.approx([-r * advantage, -r * advantage + 0.5 * abs(math.log(r))])
    assert grads == pytest.approx([-r * advantage, -r * advantage + 0.5 * float(np.sign(math.log(r)))])


def test_the_published_clip_is_zero_to_two() -> None:
    """Defaults 1 and 1: with A = 1, r = 2.5 is held to 2 (no gradient), r = 1.9 is not; A = -1 is never."""
    inputs = marked_inputs(
        [math.log(r) for r in (2.5, 1.9, 2.5, 0.01)], [0.0] * 4, [1, 1, -1, -1], [False] * 4
    )
    losses, grads = loss_and_gradient(clip_cov, inputs, ClipCovOptions())
    assert losses == pytest.approx([-2.0, -1.9, 2.5, 0.01]) and grads == pytest.approx([0, -1.9, 2.5, 0.01])


def test_marks() -> None:
    """clip_high and clip_low where the ratio's clip stops the gradient, cov where the token is selected."""
    r = [1.5, 1.5, 0.5, 0.5, 1.0, 1.25, 0.75]
    advantages = [1, -1, 1, -1, 1, 1, -1]  # the last two: within 1.3, and below 0.8 but not 0.7
    selected = [False] * 4 + [True] + [False] * 2
    inputs = marked_inputs([math.log(x) for x in r], [0.0] * 7, advantages, selected)
    marks = {name: mark.tolist() for name, mark in clip_cov(inputs, NARROW).marks.items()}
    assert np.flatnonzero(marks["clip_high"]).tolist() == [0]
    assert np.flatnonzero(marks["clip_low"]).tolist() == [3, 6]
    assert np.flatnonzero(marks["cov"]).tolist() == [4]
    assert kl_cov(inputs, KlCovOptions()).marks["cov"].tolist() == marks["cov"]


LOGPROBS = st.floats(-10, 0)
ADVANTAGES = st.floats(-5, 5)
TOKENS = st.lists(st.tuples(LOGPROBS, LOGPROBS, ADVANTAGES, st.booleans()), min_size=1, max_size=6)


@given(TOKENS)
def test_against_the_scalar_loop(tokens: list[tuple[float, float, float, bool]]) -> None:
    """Each token alone gives the same as the vector."""
    policy, old, advantages, selected = (list(column) for column in zip(*tokens, strict=True))
    inputs = marked_inputs(policy, old, advantages, selected)
    clipped, _ = loss_and_gradient(clip_cov, inputs, NARROW)
    wanted = [clip_cov_loss(p, o, a, (0.8, 1.3), s) for p, o, a, s in tokens]
    assert clipped == pytest.approx(wanted, rel=1e-12, abs=1e-12)
    pulled, _ = loss_and_gradient(kl_cov, inputs, KlCovOptions(beta=0.7))
    wanted = [kl_cov_loss(p, o, a, 0.7, s) for p, o, a, s in tokens]
    assert pulled == pytest.approx(wanted, rel=1e-12, abs=1e-12)


@given(LOGPROBS, st.floats(-1, 1), ADVANTAGES, st.booleans())
def test_gradient_against_finite_differences(
    policy: float, drift: float, advantage: float, selected: bool
) -> None:
    """Away from the kinks at r = 0.8, 1 and 1.3, where no derivative exists."""
    r = math.exp(drift)
    if min(abs(r - 0.8), abs(r - 1.0), abs(r - 1.3)) < 1e-3:
        return
    old, step = policy - drift, 1e-6
    inputs = marked_inputs([policy], [old], [advantage], [selected])
    _, (grad,) = loss_and_gradient(clip_cov, inputs, NARROW)
    up, down = (clip_cov_loss(policy + s * step, old, advantage, (0.8, 1.3), selected) for s in (1, -1))
    assert grad == pytest.approx((up - down) / (2 * step), abs=1e-4)
    _, (grad,) = loss_and_gradient(kl_cov, inputs, KlCovOptions(beta=0.7))
    up, down = (kl_cov_loss(policy + s * step, old, advantage, 0.7, selected) for s in (1, -1))
    assert grad == pytest.approx((up - down) / (2 * step), abs=1e-4)


# -- selection over the whole update -------------------------------------------------------------------------

ROW = st.lists(st.tuples(LOGPROBS, st.floats(-0.5, 0.5), st.floats(0, 1, exclude_max=True)), max_size=8)
ROWS = st.lists(st.tuples(ROW, st.integers(-2, 2)), min_size=1, max_size=7)
BAND = ClipCovOptions(fraction=0.3, lower=0.2, upper=3.0, clip_low=0.2, clip_high=0.3)


def make_rows(rows: list[tuple[list[tuple[float, float, float]], int]]) -> list[list[Token]]:
    """Rows with one advantage each, as the advantage estimators give."""
    return [
        [
            {
                "sample_id": f"g{number}-{number % 3}",
                "position": k,
                "logp": logp,
                "old": logp - drift,
                "advantage": float(advantage),
                "draw": draw,
            }
            for k, (logp, drift, draw) in enumerate(tokens)
        ]
        for number, (tokens, advantage) in enumerate(rows)
    ]


def selected_keys(shards: list[list[Token]], select: Any) -> set[tuple[str, int]]:
    """What all ranks select together, each for its own tokens."""
    tables = [to_table(shard) for shard in shards]
    keys = set()
    for number, table in enumerate(tables):
        others = [part for place, part in enumerate(tables) if place != number]
        found = prepare_origin(table, "policy", lambda own, others=others: [own, *others], select)
        mine = zip(table["sample_id"].tolist(), table["position"].tolist(), strict=True)
        keys |= {key for key, hit in zip(mine, chosen(found), strict=True) if hit}
    return keys


@given(ROWS, st.permutations(range(7)), st.lists(st.integers(0, 7), min_size=7, max_size=7))
def test_selection_is_the_papers_however_rows_are_dealt(
    rows: list[tuple[list[tuple[float, float, float]], int]], order: list[int], dealt: list[int]
) -> None:
    """1, 2, 4 or 8 shards (ranks or microbatches), rows in any order: the tokens of the scalar loop."""
    made = make_rows(rows)
    tokens = [token for row in made for token in row]
    kl = KlCovOptions(fraction=0.3)
    wanted_kl = kl_cov_choice(tokens, 0.3) if tokens else set()
    wanted_clip = clip_cov_choice(tokens, 0.3, (0.2, 3.0), (0.8, 1.3)) if tokens else set()
    for num_shards in (1, 2, 4, 8):
        shards: list[list[Token]] = [[] for _ in range(num_shards)]
        for place, shard in zip((p for p in order if p < len(made)), dealt, strict=False):
            shards[shard % num_shards] += made[place]
        assert selected_keys(shards, lambda c: select_top(c, kl)) == wanted_kl
        assert selected_keys(shards, lambda c: select_in_band(c, BAND)) == wanted_clip


@given(ROWS)
def test_covariances_against_exact_fractions(
    rows: list[tuple[list[tuple[float, float, float]], int]],
) -> None:
    """And they add to n times the covariance of the two columns."""
    tokens = [token for row in make_rows(rows) for token in row]
    if not tokens:
        return
    found = covariances(to_table(tokens))
    assert found.tolist() == pytest.approx(token_covariances(tokens), rel=1e-12, abs=1e-12)


WILD = st.sampled_from([0.0, -1.0, -50.0, -math.inf, math.nan, 1e30, -1e30])


@given(st.lists(st.tuples(WILD, WILD, WILD), max_size=6))
def test_nothing_odd_is_selected_and_nothing_fails(tokens: list[tuple[float, float, float]]) -> None:
    """Infinite, undefined and huge numbers, one token, none: at most the number requested, with known Cov."""
    made = [
        {"sample_id": "a", "position": k, "logp": logp, "old": old, "advantage": advantage, "draw": 0.5}
        for k, (logp, old, advantage) in enumerate(tokens)
    ]
    table = to_table(made)
    options = ClipCovOptions(fraction=1.0, lower=0.0, upper=1e9)
    for found in (select_in_band(table, options), select_top(table, KlCovOptions(fraction=1.0))):
        for hit, token in zip(chosen(found), made, strict=True):
            assert not hit or (math.isfinite(token["logp"]) and math.isfinite(token["advantage"]))
        assert all(math.isfinite(value) for value in found.stats.values())


@pytest.mark.parametrize("advantage", [0.0, 1.5])
def test_equal_advantages_select_nothing(advantage: float) -> None:
    """Every Cov is 0: neither the band nor the top selection has a token."""
    table = to_table([dict(token, advantage=advantage) for token in HAND])
    assert not any(chosen(select_top(table, KlCovOptions(fraction=1.0))))
    assert not any(chosen(select_in_band(table, ClipCovOptions(fraction=1.0))))


# -- configs -------------------------------------------------------------------------------------------------


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config("debug", overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        ("{kind: kl_cov}", "zero gradient when each step makes one update"),
        ("{kind: kl_cov, ratio_to: behavior}", "zero gradient when each step makes one update"),
        ("{kind: kl_cov, beta: 0}", "must be above 0"),
        ("{kind: kl_cov, fraction: 1.5}", "must be above 0 and at most 1"),
        ("{kind: clip_cov, fraction: 0}", "must be above 0 and at most 1"),
        ("{kind: clip_cov, lower: 5}", "must be below upper (5)"),
        ("{kind: clip_cov, clip_high: 0}", "must be above 0"),
    ],
)
def test_refused_at_start_up(entry: str, rule: str) -> None:
    """Configs that would have no effect, or another one than written."""
    assert rule in refusal(f"loss.policy={entry}")


def test_accepted_where_they_act() -> None:
    """KL-Cov with two updates per step, or on rows of older weights with ratios to the sampler."""
    config = load_config("debug", ["loss.policy={kind: clip_cov}"])
    assert config.loss["policy"]["fraction"] == 2e-4
    load_config("debug", ["loss.policy={kind: kl_cov}", "learner.updates_per_step=2"])
    load_config("debug", ["loss.policy={kind: kl_cov, ratio_to: behavior}", "rollout.max_lag=1"])
