"""Credit for diversity, by hand: UCPO, SetPO's marginal and vector rewards, on rows of `credit_cases`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from credit_cases import Check, rewarded

from configs.kinds.advantages import UcpoOptions
from configs.kinds.bonuses import SetpoOptions
from configs.kinds.reward_shapes import VpoOptions
from trainer.credit.advantage_inputs import RewardedRows
from trainer.credit.diversity import (
    _candidates,
    _distance,
    _distinct,
    _marginals,
    _scaled,
    _vendi,
    dirichlet,
    setpo,
    ucpo,
    vpo,
)


def check_ucpo() -> None:
    """Rewards 1, 1, 0: dr_grpo gives 1/3, 1/3, -2/3. q is 3 : 1, so 1/q has shares 1/4 and 3/4.

    With tau 1/2: w = 1/4 + 1/8 and 1/4 + 3/8, times n = 2: factors 3/4 and 5/4. The wrong row stays. A right
    row without right siblings keeps its advantage, as do right rows that are equally likely.
    """
    third = 1 / 3
    rewards, groups = [1.0, 1.0, 0.0, 0.5, -0.5, 0.49, 0.0], [4, 4, 4, 5, 5, 6, 6]
    whole = [-1.0, -1.0 - math.log(3.0), math.nan, -9.0, 0.0, 0.0, 0.0]
    options = UcpoOptions(base="dr_grpo", tau=0.5, per_token=False)
    wanted = [third * 0.75, third * 1.25, -2 / 3, 0.5, -0.5, 0.245, -0.245]
    assert ucpo(rewarded(rewards, groups, logprobs=whole), options).tolist() == pytest.approx(wanted)
    # per token: the first row has half a nat for each of two, the second the same as before for one
    rows = rewarded(rewards, groups, logprobs=whole, tokens=[1, 2, 1, 1, 1, 1, 1])
    doubled = replace(rows, logprob_N=rows.logprob_N * rows.num_tokens_N)
    assert ucpo(doubled, replace(options, per_token=True)).tolist() == pytest.approx(wanted)
    plain = ucpo(rewarded(rewards, groups, logprobs=whole), replace(options, tau=0.0))
    assert plain.tolist() == pytest.approx([third, third, -2 / 3, 0.5, -0.5, 0.245, -0.245])
    pure = ucpo(rewarded(rewards, groups, logprobs=whole), replace(options, tau=1.0))
    assert pure[:2].tolist() == pytest.approx([third * 0.5, third * 1.5])
    loo = ucpo(rewarded(rewards, groups, logprobs=whole), replace(options, base="rloo"))
    assert loo[:3].tolist() == pytest.approx([0.5 * 0.75, 0.5 * 1.25, -1.0])
    scaled = ucpo(rewarded(rewards, groups, logprobs=whole), replace(options, base="grpo"))
    assert scaled[:3].tolist() == pytest.approx([0.57735 * 0.75, 0.57735 * 1.25, -1.154701], rel=1e-5)
    # a completion without a token has logprob 0, whatever it is divided by
    empty = rewarded([1.0, 1.0, 0.0], [0] * 3, logprobs=[0.0, 0.0, 0.0], tokens=[0, 1, 1])
    assert ucpo(empty, UcpoOptions(base="dr_grpo")).tolist() == pytest.approx([third, third, -2 / 3])
    far = ucpo(rewarded([1.0, 1.0, 0.0], [0] * 3, logprobs=[-2000.0, 0.0, 0.0]), options)
    assert far.tolist() == pytest.approx([third * 1.5, third * 0.5, -2 / 3])
    with pytest.raises(ValueError, match="must have logprobs"):
        ucpo(rewarded([1.0], [0], logprobs=[math.nan]), UcpoOptions())


def check_setpo() -> None:
    """Classes 0, 0, 1: two distinct, of which one without the last: 0, 0, 1, less 1/3; pairs: 2/3 differ,

    without a 0 all, without the 1 none: -1/3, -1/3, 2/3. Vendi: exp(0.636514) = 1.889882, then 2 and 1:
    -0.110118 and 0.889882, mean 0.223215. A single row of a class: 1, 1 and 0, and nothing when centred.
    Rows without a class take no part.
    """
    rows = rewarded([0.0] * 7, [4, 4, 4, 4, 7, 7, 9], classes=[0, 0, -1, 1, -1, 5, 0])

    def found(measure: str, centred: bool) -> list[float]:
        return setpo(rows, SetpoOptions(coef=0.3, measure=measure, centred=centred)).tolist()

    assert found("distinct", True) == pytest.approx([-0.1, -0.1, 0, 0.2, 0, 0, 0])
    assert found("distinct", False) == pytest.approx([0, 0, 0, 0.3, 0, 0.3, 0.3])
    assert found("distance", True) == pytest.approx([-0.1, -0.1, 0, 0.2, 0, 0, 0])
    assert found("distance", False) == pytest.approx([-0.1, -0.1, 0, 0.2, 0, 0, 0])
    assert found("vendi", True) == pytest.approx([-0.1, -0.1, 0, 0.2, 0, 0, 0])
    wanted = [-0.0330354, -0.0330354, 0, 0.2669646, 0, 0.3, 0.3]
    assert found("vendi", False) == pytest.approx(wanted, abs=1e-6)


def check_measures() -> None:
    """2, 1 and no row of three classes; one row; none."""
    assert [_distinct(np.array(each)) for each in ([2, 1, 0], [1], [0])] == [2.0, 1.0, 0.0]
    found = [_vendi(np.array(each)) for each in ([2, 1, 0], [1], [0], [1, 1])]
    assert found == pytest.approx([1.889882, 1.0, 0.0, 2.0], abs=1e-6)
    found = [_distance(np.array(each)) for each in ([2, 1, 0], [1], [0], [1, 1], [2, 2])]
    assert found == pytest.approx([2 / 3, 0.0, 0.0, 1.0, 2 / 3])


HALF = VpoOptions(components=("a", "b"), num_draws=20000)
"""With w uniform: E w = 1/2, E max(w, 1 - w) = 3/4, E max(0, 2 w - 1) = 1/4."""


def vector_rows(*, groups: Sequence[int], scores: Sequence[tuple[float | None, float]]) -> RewardedRows:
    named = [{"a": first, "b": second} for first, second in scores]
    return rewarded([0.0] * len(scores), groups, scores=named)


def check_vpo() -> None:
    """Group 0: two candidates (1, 0) and (0, 1): 3/4; one answer (1, 0): 1/2. Group 1: a missing score."""
    two = {"candidate/0/a": 1.0, "candidate/0/b": 0.0, "candidate/1/a": 0.0, "candidate/1/b": 1.0, "x": 9.0}
    rows = vector_rows(groups=[0, 0, 1, 1], scores=[(0.0, 0.0), (1.0, 0.0), (None, 1.0), (2.0, 2.0)])
    rows = replace(rows, numbers_N=np.array([two, {}, {}, {}], object))
    found = vpo(rows, HALF)
    assert found[[0, 1, 3]].tolist() == pytest.approx([0.75, 0.5, 2.0], abs=0.01) and math.isnan(found[2])
    # a candidate that lacks a score has none
    rows = replace(rows, numbers_N=np.array([{"candidate/0/a": 1.0}, {}, {}, {}], object))
    assert np.isnan(vpo(rows, HALF)).tolist() == [True, False, True, False]
    # the group: each is the best for half of the weights, by 1/2 on average; (0, 0) never is
    alone = vector_rows(groups=[0, 0, 0, 1], scores=[(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (4.0, 0.0)])
    found = vpo(alone, replace(HALF, over="group"))
    assert found.tolist() == pytest.approx([0.25, 0.25, 0.0, 2.0], abs=0.03)
    # 10 and 0.5 are the ranges: both become 1
    wide = vector_rows(groups=[0, 0], scores=[(15.0, -1.0), (5.0, -0.5)])
    assert vpo(wide, replace(HALF, scale="group")).tolist() == pytest.approx([0.5, 0.5], abs=0.01)
    lost = vector_rows(groups=[0], scores=[(None, 1.0)])
    assert math.isnan(vpo(lost, HALF)[0])


def check_candidates() -> None:
    """By number, from 0 to the first that has none of the components."""
    numbers = {"candidate/0/a": 1.0, "candidate/1/b": 2.0, "candidate/3/a": 9.0}
    rows = rewarded([0.0, 0.0], [0, 0], scores=[{"a": 7.0, "b": 8.0}] * 2, numbers=[numbers, {}])
    found = _candidates(rows, 0, ("a", "b"))
    assert np.array_equal(found, [[1.0, np.nan], [np.nan, 2.0]], equal_nan=True)
    assert _candidates(rows, 1, ("b", "a")).tolist() == [[8.0, 7.0]]
    # with their number, those that no scorer could score are there, and unknown
    counted = {"candidate/count": 3.0, "candidate/1/a": 1.0}
    rows = replace(rows, numbers_N=np.array([counted, {"candidate/count": 1.0}], object))
    assert np.array_equal(_candidates(rows, 0, ("a",)), [[np.nan], [1.0], [np.nan]], equal_nan=True)
    assert np.array_equal(_candidates(rows, 1, ("a",)), [[np.nan]], equal_nan=True)


def check_scaled() -> None:
    """Over all candidates of the group: 2 to 6 and a constant."""
    found = _scaled([np.array([[2.0, 3.0], [4.0, 3.0]]), np.array([[6.0, 3.0]])])
    assert [each.tolist() for each in found] == [[[0.0, 0.0], [0.5, 0.0]], [[1.0, 0.0]]]
    # equal but for rounding
    assert [each.tolist() for each in _scaled([np.array([[0.1 + 0.2]]), np.array([[0.3]])])] == [[[0.0]]] * 2


def check_marginals() -> None:
    """Two draws: the best is ahead by 2 in one and by 1 in the other; equal best rows lose nothing."""
    values = np.array([[5.0, 0.0], [3.0, 3.0], [1.0, 2.0]])
    assert _marginals(values).tolist() == [1.0, 0.5, 0.0]
    assert _marginals(np.array([[5.0, 1.0]])).tolist() == [3.0]
    assert _marginals(np.array([[4.0], [4.0]])).tolist() == [0.0, 0.0]


def check_dirichlet() -> None:
    """Weights of a prompt: positive, of sum 1, the same each time; others for another prompt or seed."""
    found = dirichlet("p", HALF)
    assert found.shape == (20000, 2) and found.sum(axis=1) == pytest.approx(1.0) and (found >= 0).all()
    assert np.array_equal(found, dirichlet("p", HALF))
    assert not np.array_equal(found, dirichlet("q", HALF))
    assert not np.array_equal(found, dirichlet("p", replace(HALF, seed=1)))
    assert found.mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.01)
    assert found.var(axis=0) == pytest.approx([1 / 12, 1 / 12], abs=0.002)
    even = dirichlet("p", replace(HALF, concentration=100.0))
    assert even.var(axis=0) == pytest.approx([1 / 804, 1 / 804], abs=2e-4)


DIVERSITY_CHECKS: dict[str, tuple[Check, ...]] = {
    "ucpo": (check_ucpo,),
    "setpo": (check_setpo,),
    "_distinct": (check_measures,),
    "_vendi": (check_measures,),
    "_distance": (check_measures,),
    "vpo": (check_vpo,),
    "_candidates": (check_candidates,),
    "_scaled": (check_scaled,),
    "_marginals": (check_marginals,),
    "dirichlet": (check_dirichlet,),
}
"""By function of `trainer.credit.diversity`: what must fail when anything in it is changed."""
