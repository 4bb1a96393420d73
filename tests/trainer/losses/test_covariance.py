"""Clip-Cov and KL-Cov: by hand, against a scalar loop, by finite differences, for any assignment of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from config_files import problem
from covariance_tables import CHECKS, HAND, NARROW, chosen, loss_and_gradient, marked_inputs, to_table
from hypothesis import given
from hypothesis import strategies as st
from reference_covariance import (
    Token,
    clip_cov_choice,
    clip_cov_loss,
    kl_cov_choice,
    kl_cov_loss,
    token_covariances,
)

from configs.kinds.losses import ClipCovOptions, KlCovOptions
from configs.load import load_config
from trainer.losses.batch_statistics import TokenTable, prepare_origin
from trainer.losses.covariance import (
    clip_cov,
    covariances,
    kl_cov,
    select_in_band,
    select_top,
)

torch.set_num_threads(1)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_by_hand(check: Callable[[], None]) -> None:
    check()


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

        def gather(own: TokenTable, others: Sequence[TokenTable] = others) -> list[TokenTable]:
            return [own, *others]

        found = prepare_origin(table, "policy", gather, select)
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
    made: list[dict[str, Any]] = [
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
    assert rule in problem("debug", f"loss.policy={entry}")


def test_accepted_where_they_act() -> None:
    """KL-Cov with two updates per step, or on rows of older weights with ratios to the sampler."""
    config = load_config("debug", ["loss.policy={kind: clip_cov}"])
    assert config.loss["policy"]["fraction"] == 2e-4
    load_config("debug", ["loss.policy={kind: kl_cov}", "learner.updates_per_step=2"])
    load_config("debug", ["loss.policy={kind: kl_cov, ratio_to: behavior}", "rollout.max_lag=1"])
