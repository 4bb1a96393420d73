"""Clip-Cov and KL-Cov by hand: checks that notice every changed sign, comparison and bound."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from loss_cases import gradient, loss_inputs
from reference_covariance import (
    Token,
)

from configs.kinds.losses import ClipCovOptions, KlCovOptions
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


def check_covariances_by_hand() -> None:
    """See HAND; their median is 1 and 99.8 % of the way from least to most is 4 - 0.006 x 2."""
    table = to_table(HAND)
    assert covariances(table).tolist() == [2.0, 4.0, 0.0, -1.0]
    stats = select_top(table, KlCovOptions()).stats
    assert stats["cov_q50"] == pytest.approx(1.0) and stats["cov_q99.8"] == pytest.approx(3.988)
    assert list(stats) == ["cov_q50", "cov_q80", "cov_q98", "cov_q99.8"]


def check_what_is_not_known_enters_no_mean() -> None:
    """An advantage that is NaN, a logprob of minus infinity: Cov 0 for these, unchanged for the others."""
    odd = [dict(HAND[0], position=2, advantage=math.nan), dict(HAND[0], position=3, logp=-math.inf)]
    assert covariances(to_table([*HAND, *odd])).tolist() == [2.0, 4.0, 0.0, -1.0, 0.0, 0.0]


def check_where_the_ratio_has_stopped_a_token() -> None:
    """Bounds 0.8 and 1.3: with A > 0 beyond 1.3 (not 1.25), with A < 0 below 0.8 (0.75 is, 0.85 is not)."""
    cases = [(1.35, 1.0, True), (1.25, 1.0, False), (0.75, 1.0, False)]
    cases += [(0.75, -1.0, True), (0.85, -1.0, False), (1.35, -1.0, False), (0.75, 0.0, False)]
    tokens = [dict(HAND[0], old=-1.0 - math.log(r), advantage=advantage) for r, advantage, _ in cases]
    assert _is_clipped(to_table(tokens), NARROW).tolist() == [stopped for _, _, stopped in cases]


def check_kl_cov_takes_the_highest() -> None:
    """A share of 1/4 is floor(1 + 0.875) = 1 token, 4; 1/2 is two; all of them only where Cov is above 0.

    1/32 of 4 tokens is floor(0.125 + 0.875) = 1 token, 1/64 is none.
    """
    table = to_table(HAND)
    for fraction, wanted in ((0.25, [1]), (0.5, [0, 1]), (1.0, [0, 1]), (1 / 32, [1]), (1 / 64, [])):
        found = chosen(select_top(table, KlCovOptions(fraction=fraction)))
        assert np.flatnonzero(found).tolist() == wanted


def check_clip_cov_takes_the_smallest_draws_within_the_band() -> None:
    """2 and 4 lie between 1 and 5; one of them is selected: 4, whose draw is 0.25. The band is open."""
    table = to_table(HAND)
    assert chosen(select_in_band(table, ClipCovOptions(fraction=0.25))) == [False, True, False, False]
    assert chosen(select_in_band(table, ClipCovOptions(fraction=1.0))) == [True, True, False, False]
    at_4 = ClipCovOptions(fraction=1.0, upper=4.0)
    assert chosen(select_in_band(table, at_4)) == [True, False, False, False]
    at_2 = ClipCovOptions(fraction=1.0, lower=2.0)
    assert chosen(select_in_band(table, at_2)) == [False, True, False, False]


def check_clip_cov_leaves_what_the_ratio_has_stopped() -> None:
    """With A = 2 the clip excludes r = e^0.3 = 1.35 > 1.3, but not e^0.2 = 1.22, and nothing below 1."""
    options = ClipCovOptions(fraction=1.0, clip_low=0.2, clip_high=0.3)
    for logp, stopped in ((0.3, True), (0.2, False), (-0.3, False)):
        tokens = [dict(HAND[0], old=HAND[0]["logp"] - logp, advantage=2.0), *HAND[1:]]
        assert chosen(select_in_band(to_table(tokens), options))[0] != stopped


def check_with_old_behavior_the_sampler_decides_what_is_stopped() -> None:
    """r = e^0.5 to the sampler, 1 to the proximal policy."""
    table = to_table(HAND)
    table["behavior_logprobs"] = table["policy_logprobs"] - np.array([0.5, 0, 0, 0])
    for old, wanted in (("proximal", [0, 1]), ("behavior", [1])):
        options = ClipCovOptions(fraction=1.0, clip_low=0.2, clip_high=0.3, ratio_to=old)
        assert np.flatnonzero(chosen(select_in_band(table, options))).tolist() == wanted


def check_ties_go_to_the_first_sample_and_position() -> None:
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


def check_no_least_of_one_token() -> None:
    """On average fraction x tokens, also far below one token: 2e-4 of 500 is 0.1, not 1."""
    rng = np.random.default_rng(0)
    counts = [num_selected(2e-4, rng.random(500)) for _ in range(2000)]
    assert set(counts) == {0, 1}
    assert np.mean(counts) == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 2000))
    assert num_selected(1.0, rng.random(7)) == 7 and num_selected(0.5, np.zeros(0)) == 0


def marked_inputs(
    policy: list[float], old: list[float], advantages: list[float], selected: list[bool]
) -> LossInputs:
    """Tokens of which some were selected."""
    prepared = {"selected": torch.tensor(selected, dtype=torch.bool)}
    return replace(loss_inputs(policy, old, advantages), prepared=prepared)


def loss_and_gradient(function: Any, inputs: LossInputs, options: object) -> tuple[list[float], list[float]]:
    found = function(inputs, options)
    return found.loss.tolist(), gradient(found, inputs).tolist()


CLIP_REGIONS = (
    (1.0, 2.0, -2.0, -2.0),
    (1.1, 2.0, -2.2, -2.2),
    (1.5, 2.0, -2.6, 0.0),
    (0.5, 2.0, -1.0, -1.0),
    (0.9, -2.0, 1.8, 1.8),
    (0.5, -2.0, 1.6, 0.0),
    (1.5, -2.0, 3.0, 3.0),
)
"""r, advantage, loss and gradient."""


def check_clip_regions() -> None:
    """Unselected, clip_cov is the clipped surrogate with bounds 0.8 and 1.3; selected it is 0 everywhere.

    kl_cov has no bounds: -r A and gradient -r A; selected, + |ln r| and + its sign, 0 at r = 1.
    """
    for r, advantage, loss, grad in CLIP_REGIONS:
        inputs = marked_inputs([math.log(r) - 1.0] * 2, [-1.0] * 2, [advantage] * 2, [False, True])
        losses, grads = loss_and_gradient(clip_cov, inputs, NARROW)
        assert losses == pytest.approx([loss, 0.0]) and grads == pytest.approx([grad, 0.0])
        losses, grads = loss_and_gradient(kl_cov, inputs, KlCovOptions(beta=0.5))
        assert losses == pytest.approx([-r * advantage, -r * advantage + 0.5 * abs(math.log(r))])
        assert grads == pytest.approx([-r * advantage, -r * advantage + 0.5 * float(np.sign(math.log(r)))])


def check_the_published_clip_is_zero_to_two() -> None:
    """Defaults 1 and 1: with A = 1, r = 2.5 is held to 2 (no gradient), r = 1.9 is not; A = -1 is never."""
    inputs = marked_inputs(
        [math.log(r) for r in (2.5, 1.9, 2.5, 0.01)], [0.0] * 4, [1, 1, -1, -1], [False] * 4
    )
    losses, grads = loss_and_gradient(clip_cov, inputs, ClipCovOptions())
    assert losses == pytest.approx([-2.0, -1.9, 2.5, 0.01]) and grads == pytest.approx([0, -1.9, 2.5, 0.01])


def check_marks() -> None:
    """clip_high and clip_low where the ratio's clip stops the gradient, cov where the token is selected."""
    r = [1.5, 1.5, 0.5, 0.5, 1.0, 1.25, 0.75]
    advantages = [1.0, -1.0, 1.0, -1.0, 1.0, 1.0, -1.0]  # the last two: within 1.3, and below 0.8 but not 0.7
    selected = [False] * 4 + [True] + [False] * 2
    inputs = marked_inputs([math.log(x) for x in r], [0.0] * 7, advantages, selected)
    marks = {name: mark.tolist() for name, mark in clip_cov(inputs, NARROW).marks.items()}
    assert np.flatnonzero(marks["clip_high"]).tolist() == [0]
    assert np.flatnonzero(marks["clip_low"]).tolist() == [3, 6]
    assert np.flatnonzero(marks["cov"]).tolist() == [4]
    assert kl_cov(inputs, KlCovOptions()).marks["cov"].tolist() == marks["cov"]


CHECKS = (
    check_covariances_by_hand,
    check_what_is_not_known_enters_no_mean,
    check_where_the_ratio_has_stopped_a_token,
    check_kl_cov_takes_the_highest,
    check_clip_cov_takes_the_smallest_draws_within_the_band,
    check_clip_cov_leaves_what_the_ratio_has_stopped,
    check_with_old_behavior_the_sampler_decides_what_is_stopped,
    check_ties_go_to_the_first_sample_and_position,
    check_no_least_of_one_token,
    check_clip_regions,
    check_the_published_clip_is_zero_to_two,
    check_marks,
)
"""All of them, for each function of `trainer.losses.covariance`."""
