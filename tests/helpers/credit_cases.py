"""Rewarded rows made by hand, and per advantage, bonus, reward shape and prompt weight its numbers.

Used by the tests of each and by the check that these numbers notice every changed sign, comparison and bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import tie_cases

from configs.kinds.advantages import (
    DrGrpoOptions,
    GrpoOptions,
    PassAtKOptions,
    QuantileOptions,
    ReinforceOptions,
    ReinforcePpOptions,
    RlooOptions,
    WReinforceOptions,
)
from configs.kinds.bonuses import BatchOptions, UcbConOptions, UcbMeanOptions, UcbOptions
from configs.kinds.prompt_weights import PassAtKValueOptions
from configs.kinds.reward_shapes import (
    CosineLengthOptions,
    MaraOptions,
    OverlongOptions,
    RelativeLengthOptions,
)
from trainer.credit.advantage_inputs import RewardedRows, group_bounds, group_sums, refined_rows
from trainer.credit.advantages import (
    dr_grpo,
    grpo,
    pass_at_k,
    quantile,
    reinforce,
    reinforce_pp,
    rloo,
    w_reinforce,
)
from trainer.credit.bonuses import batch, ucb, ucb_con, ucb_mean
from trainer.credit.prompt_weights import pass_at_k_value
from trainer.credit.reward_shapes import cosine_length, mara, overlong, relative_length

Check = Callable[[], None]

Answers = Sequence[str | None]


def rewarded(
    rewards: Sequence[float] | np.ndarray,
    groups: Sequence[int] | np.ndarray,
    *,
    origins: Sequence[str] | None = None,
    answers: Answers | None = None,
    right: Sequence[bool | None] | None = None,
    tokens: Sequence[int] | None = None,
    finish: Sequence[str] | None = None,
    ref: Sequence[float] | None = None,
    logprobs: Sequence[float] | None = None,
    classes: Sequence[int] | None = None,
    scores: Sequence[Mapping[str, float | None]] | None = None,
    numbers: Sequence[Mapping[str, float]] | None = None,
    tags: Sequence[Mapping[str, str]] | None = None,
    tag_visits: Sequence[Mapping[str, int]] | None = None,
    visits: Sequence[int] | None = None,
    successes: Sequence[int] | None = None,
    failures: Sequence[int] | None = None,
) -> RewardedRows:
    """Rows of prompts p<group>; what is not given is plain: policy rows, one token, no answer, no history."""
    num_rows = len(rewards)

    def objects(values: Sequence[object] | None, default: object) -> np.ndarray:
        column = np.empty(num_rows, dtype=object)
        column[:] = [default] * num_rows if values is None else list(values)
        return column

    def integers(values: Sequence[int] | None, default: int = 0) -> np.ndarray:
        return np.array([default] * num_rows if values is None else values, np.int64)

    return RewardedRows(
        row_N=np.arange(num_rows),
        rewards_N=np.array(rewards, np.float64),
        group_N=np.array(groups, np.int64),
        origin_N=objects(origins, "policy"),
        prompt_id_N=objects([f"p{group}" for group in groups], ""),
        answer_N=objects(answers, None),
        answer_ok_N=objects(right, None),
        num_tokens_N=integers(tokens, 1),
        finish_reason_N=objects(finish, "stop"),
        ref_logprob_N=np.array([np.nan] * num_rows if ref is None else ref, np.float64),
        logprob_N=np.array([0.0] * num_rows if logprobs is None else logprobs, np.float64),
        partition_N=integers(classes, -1),
        scores_N=objects(scores, {}),
        numbers_N=objects(numbers, {}),
        tags_N=objects(tags, {}),
        tag_visits_N=objects(tag_visits, {}),
        visits_N=integers(visits),
        successes_N=integers(successes),
        failures_N=integers(failures),
    )


FEW = rewarded([1.0, 5.0, 0.0, 5.0, 1.0, 2.0], [0, 7, 0, 7, 0, 3])
"""Group 0 has rewards 1, 0, 1; group 7 has 5, 5; group 3 a single 2."""


def check_refined_rows() -> None:
    """Rows whose sampler saw another context: not the run's own, replayed ones or demonstrations."""
    origins = np.array(["policy", "refined", "replay", "tempered", "sft"], dtype=object)
    assert refined_rows(origins).tolist() == [False, True, False, False, False]


def check_dr_grpo() -> None:
    """Group 0: mean 2/3, so 1/3, -2/3, 1/3; equal rewards and single rows give 0."""
    found = dr_grpo(FEW, DrGrpoOptions())
    assert found.tolist() == pytest.approx([1 / 3, 0, -2 / 3, 0, 1 / 3, 0])


def check_rounding() -> None:
    """0.1 three times has no mean of exactly 0.1: still nothing to learn."""
    rows = rewarded([0.1, 0.1, 0.1], [4, 4, 4])
    assert dr_grpo(rows, DrGrpoOptions()).tolist() == rloo(rows, RlooOptions()).tolist() == [0.0] * 3


def check_ties() -> None:
    """0.1 + 0.2 and 0.3 are one reward, and so is 0.3 of float32: no baseline and no spread of the step
    teaches from them, with eps 0 either.
    """
    rows = rewarded([0.1 + 0.2, 0.3, float(np.float32(0.3))], [4, 4, 4])
    for found in (
        dr_grpo(rows, DrGrpoOptions()),
        grpo(rows, GrpoOptions(eps=0.0)),
        rloo(rows, RlooOptions()),
        reinforce_pp(rows, ReinforcePpOptions(baseline="none", eps=0.0)),
        quantile(rows, QuantileOptions(eps=0.0)),
    ):
        assert found.tolist() == [0.0] * 3
    at = rewarded([0.1 + 0.2, 0.7 + 0.1, 0.0], [4, 4, 4])  # 0.7 + 0.1 is 0.7999999999999999
    assert w_reinforce(at, WReinforceOptions(threshold=0.8)).tolist() == [-1.0, 0.1, -1.0]
    assert pass_at_k(at, PassAtKOptions(k=1, threshold=0.8, eps=0.0))[1] > 0
    good = mara(replace(at, ref_logprob_N=np.array([-1.0, -1.0, -1.0])), MaraOptions(threshold=0.8))
    assert good.tolist() == at.rewards_N.tolist(), "the only good row is its own anchor"


def check_group_bounds() -> None:
    """Group 7 has 1, -2 and a NaN, group 3 a single 5, group 9 none."""
    low, high = group_bounds(np.array([1.0, 5.0, np.nan, -2.0, np.nan]), np.array([7, 3, 7, 7, 9]))
    assert low.tolist() == [-2.0, 5.0, -2.0, -2.0, math.inf]
    assert high.tolist() == [1.0, 5.0, 1.0, 1.0, -math.inf]
    assert [len(each) for each in group_bounds(np.zeros(0), np.zeros(0, np.int64))] == [0, 0]


def check_group_sums() -> None:
    """Group 7 has 1 and -2, group 3 a 5."""
    sums, sizes = group_sums(np.array([1.0, 5.0, -2.0]), np.array([7, 3, 7]))
    assert sums.tolist() == [-1.0, 5.0, -1.0] and sizes.tolist() == [2.0, 1.0, 2.0]


INPUT_CHECKS: dict[str, tuple[Check, ...]] = {
    "refined_rows": (check_refined_rows,),
    "group_bounds": (check_group_bounds,),
    "group_sums": (check_group_sums,),
}
"""The same for `trainer.credit.advantage_inputs`."""


def check_grpo() -> None:
    """Variance (1/9 + 4/9 + 1/9) / 2 = 1/3: 0.577350 and -1.154701. With eps 1: 1 / (sqrt 2 + 1)."""
    found = grpo(FEW, GrpoOptions(eps=1e-12))
    assert found.tolist() == pytest.approx([0.5773503, 0, -1.1547005, 0, 0.5773503, 0])
    found = grpo(rewarded([0.0, 2.0], [4, 4]), GrpoOptions(eps=1.0))
    assert found.tolist() == pytest.approx([-0.4142136, 0.4142136])
    assert grpo(rewarded([3.0, 3.0], [4, 4]), GrpoOptions(eps=0.0)).tolist() == [0.0, 0.0]


def check_rloo() -> None:
    """Group 0: 1 - (0 + 1)/2 = 1/2; 0 - (1 + 1)/2 = -1; a single row has no others and gets 0."""
    assert rloo(FEW, RlooOptions()).tolist() == pytest.approx([0.5, 0, -1, 0, 0.5, 0])


def check_reinforce() -> None:
    """The reward, in an array of its own."""
    found = reinforce(FEW, ReinforceOptions())
    assert found.tolist() == FEW.rewards_N.tolist() and found is not FEW.rewards_N


def check_reinforce_pp() -> None:
    """Rewards 1, 0 | 3, 1. Less the group's mean: +-1/2, +-1; squares 2.5, over 3: std 0.912871.

    Without it: less 1.25 of the step; squares 0.0625 + 1.5625 + 3.0625 + 0.0625 = 4.75, over 3: std 1.258306.
    With eps 1: +-1 over sqrt 2 + 1.
    """
    rows = rewarded([1.0, 0.0, 3.0, 1.0], [0, 0, 1, 1])
    found = reinforce_pp(rows, ReinforcePpOptions())
    assert found.tolist() == pytest.approx([0.5477226, -0.5477226, 1.0954451, -1.0954451])
    found = reinforce_pp(rows, ReinforcePpOptions(baseline="none"))
    assert found.tolist() == pytest.approx([-0.1986799, -0.9933993, 1.3907591, -0.1986799])
    found = reinforce_pp(rewarded([0.0, 2.0], [4, 5]), ReinforcePpOptions(baseline="none", eps=1.0))
    assert found.tolist() == pytest.approx([-0.4142136, 0.4142136])
    assert reinforce_pp(rows.only(rows.rewards_N == 1.0), ReinforcePpOptions(eps=0.0)).tolist() == [0.0, 0.0]


def check_pass_at_k() -> None:
    """k = 2. Two of 4 right: p = 1 - 1/6, s = sqrt(5)/6; +1/6 and 1/6 - 1/3, over s: +-0.447214.

    One of 4: p = 1/2 = s; right (1/2)/s = 1, wrong (1/2 - 2/3)/s = -1/3. With eps 1/2 half of that. Two of 3
    right: every pair has a right one. None of 2 right, and groups of fewer than k: nothing.
    """
    options = PassAtKOptions(k=2, eps=0.0)
    found = pass_at_k(rewarded([1.0, 0.0, 0.0, 1.0], [0] * 4), options)
    assert found.tolist() == pytest.approx([0.4472136, -0.4472136, -0.4472136, 0.4472136])
    rows = rewarded([0.4, 0.5, -3.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0], [0, 0, 0, 0, 1, 1, 1, 2, 2, 3])
    third = 1 / 3
    assert pass_at_k(rows, options).tolist() == pytest.approx([-third, 1.0, -third, -third] + [0.0] * 6)
    found = pass_at_k(rows, PassAtKOptions(k=2, eps=0.5))
    assert found[:2].tolist() == pytest.approx([-third / 2, 0.5])


def check_w_reinforce() -> None:
    """From 1/2 on a success; lambda 0 is silent on successes."""
    rows = rewarded([1.0, 0.0, 0.5, 0.4], [0, 0, 1, 1])
    assert w_reinforce(rows, WReinforceOptions()).tolist() == [0.1, -1.0, 0.1, -1.0]
    assert w_reinforce(rows, WReinforceOptions(positive=0.0)).tolist() == [0.0, -1.0, 0.0, -1.0]


def check_quantile() -> None:
    """K = 0.4. One of 5 right: q = 0, std sqrt(0.8 / 4): 2.236068 and 0. Four of 5: q = 1: 0 and -2.236068.

    Three of 5, just at 1 - K: q = 0, std sqrt(1.2 / 4): 1.825742. Rewards 1, 2, 4: q = 2, std sqrt(14 / 6):
    -0.654654, 0, 1.309307. With eps 1, K = 1/2 and rewards 0 and 2: q = 0, 2 / (sqrt 2 + 1).
    """
    rows = rewarded(
        [1.0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 2, 4], [0] * 5 + [1] * 5 + [2] * 5 + [3] * 3
    )
    wanted = [2.236068] + [0] * 8 + [-2.236068] + [0] * 2 + [1.825742] * 3 + [-0.654654, 0, 1.309307]
    assert quantile(rows, QuantileOptions(eps=0.0)).tolist() == pytest.approx(wanted, abs=1e-6)
    found = quantile(rewarded([0.0, 2.0], [4, 4]), QuantileOptions(quantile=0.5, eps=1.0))
    assert found.tolist() == pytest.approx([0.0, 0.8284271])
    lowest = quantile(rewarded([0.0, 2.0], [4, 4]), QuantileOptions(quantile=0.0, eps=0.0))
    assert lowest.tolist() == pytest.approx([0.0, 1.4142136])
    assert quantile(rewarded([2.0, 2.0], [4, 4]), QuantileOptions(eps=0.0)).tolist() == [0.0, 0.0]


ADVANTAGE_CHECKS: dict[str, tuple[Check, ...]] = {
    "_rewards_vary": (check_dr_grpo, check_rounding, check_ties),
    "dr_grpo": (check_dr_grpo, check_rounding),
    "grpo": (check_grpo,),
    "rloo": (check_rloo, check_rounding),
    "reinforce": (check_reinforce,),
    "reinforce_pp": (check_reinforce_pp,),
    "pass_at_k": (check_pass_at_k,),
    "w_reinforce": (check_w_reinforce,),
    "quantile": (check_quantile,),
}
"""By function of `trainer.credit.advantages`: what must fail when anything in it is changed."""


SEEN = rewarded(
    [0.0] * 7,
    [0, 0, 0, 0, 1, 1, 2],
    answers=["a", "a", "b", None, "c", "c", "d"],
    right=[True, True, False, False, True, True, None],
    visits=[4, 4, 0, 1, 9, 9, 16],
)
"""Group 0 has answers of 4, 4, no and one visit; group 1 is all right; group 2 is a row not judged."""


def check_ucb() -> None:
    """1/2, 1/2, 1 and 1 of 0.2; nothing where all is right; 1/4 for 16 visits."""
    assert ucb(SEEN, UcbOptions(coef=0.2)).tolist() == pytest.approx([0.1, 0.1, 0.2, 0.2, 0, 0, 0.05])


def check_ucb_mean() -> None:
    """The others' means in group 0 are 5/6, 5/6, 2/3, 2/3: 0.2 of -+1/3. A single row has no others."""
    found = ucb_mean(SEEN, UcbMeanOptions(coef=0.2))
    assert found.tolist() == pytest.approx([-1 / 15, -1 / 15, 1 / 15, 1 / 15, 0, 0, 0])


def check_ucb_con() -> None:
    """Less 1/2: 0, 0, 1/2, 1/2 and -1/4, of 0.2."""
    found = ucb_con(SEEN, UcbConOptions(coef=0.2))
    assert found.tolist() == pytest.approx([0, 0, 0.1, 0.1, 0, 0, -0.05])


def check_batch() -> None:
    """One of 4 is a sibling with the same answer: -1/4 of 0.2. Unread answers are one answer: -1/2 of 0.2."""
    assert batch(SEEN, BatchOptions(coef=0.2)).tolist() == pytest.approx([-0.05, -0.05, 0, 0, 0, 0, 0])
    unread = rewarded([0.0] * 4, [0, 0, 5, 5], answers=[None, None, "a", "b"], right=[False] * 4)
    assert batch(unread, BatchOptions(coef=0.2)).tolist() == pytest.approx([-0.1, -0.1, 0, 0])


BONUS_CHECKS: dict[str, tuple[Check, ...]] = {
    "ucb": (check_ucb,),
    "ucb_mean": (check_ucb_mean,),
    "ucb_con": (check_ucb_con,),
    "batch": (check_batch,),
    "_ucb": (check_ucb,),
    "_explored": (check_ucb, check_batch),
}
"""The same for `trainer.credit.bonuses`."""


def check_overlong() -> None:
    """L_max 10, L_cache 4, half a penalty: nothing up to 6 tokens, then 1/8 for each, 1/2 from 10 on."""
    cut = ["stop"] * 5 + ["length"]
    rows = rewarded([1.0] * 6, [0] * 6, tokens=[2, 6, 7, 8, 10, 12], finish=cut)
    options = OverlongOptions(max_tokens=10, cache_tokens=4, penalty=0.5)
    assert overlong(rows, options).tolist() == [1.0, 1.0, 0.875, 0.75, 0.5, 0.5]
    found = overlong(rows, replace(options, filter=True))
    assert found[:5].tolist() == [1.0, 1.0, 0.875, 0.75, 0.5] and math.isnan(found[5])


def check_mara() -> None:
    """Good from 1 on, beta 1/4. Group 0: z is the row at -4 with reward 1; 1 + 6/4, 1 + 2/4; 0 stays.

    Then log ref + r' / beta is 0 for all three. Group 1: of two equally likely rows the better one is z.
    Group 2 has no good row, and needs no reference.
    """
    rows = rewarded(
        [1.0, 1.5, 0.0, 1.0, 2.0, 1.0, 0.5],
        [0, 0, 0, 0, 1, 1, 2],
        ref=[-4.0, -10.0, -1.0, -6.0, -3.0, -3.0, math.nan],
    )
    found = mara(rows, MaraOptions(beta=0.25))
    assert found.tolist() == [1.0, 2.5, 0.0, 1.5, 2.0, 2.0, 0.5]
    assert (rows.ref_logprob_N + found / 0.25)[[0, 1, 3]].tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="must have reference logprobs"):
        mara(rewarded([1.0], [0]), MaraOptions())


def check_cosine_length() -> None:
    """Open-R1's values: right 1 to 1/2, wrong -1 to -1/2; a third of the way cos is 1/2, so 3/4 short.

    Half-way both are in the middle, and from `max_tokens` on nothing changes. None: nobody checked.
    """
    tokens = [0, 4, 6, 12, 24]
    right = rewarded([1.0] * 5, [0] * 5, tokens=tokens, right=[True] * 5)
    wrong = rewarded([0.0] * 5, [0] * 5, tokens=tokens, right=[False] * 5)
    options = CosineLengthOptions(max_tokens=12)
    assert cosine_length(right, options).tolist() == pytest.approx([1.0, 0.875, 0.75, 0.5, 0.5])
    assert cosine_length(wrong, options).tolist() == pytest.approx([-1.0, -0.875, -0.75, -0.5, -0.5])
    unchecked = rewarded([0.25], [0], tokens=[4], right=[None])
    assert cosine_length(unchecked, options).tolist() == [0.25]


def check_relative_length() -> None:
    """Group 0 has 10 to 30 tokens: x is 1/2, 0, -1/2, 1/2, -1/4; wrong rows never gain. Group 1 is even.

    A refined row of 50 tokens is as bad as the longest sample and does not move it; unchecked rows keep r.
    """
    rows = rewarded(
        [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.5],
        [0, 0, 0, 0, 0, 1, 1, 0, 0],
        origins=["policy"] * 7 + ["refined", "policy"],
        tokens=[10, 20, 30, 10, 25, 7, 7, 50, 15],
        right=[True, True, True, False, False, True, True, True, None],
    )
    found = relative_length(rows, RelativeLengthOptions())
    assert found.tolist() == pytest.approx([1.5, 1.0, 0.5, 0.0, -0.25, 1.0, 1.0, 0.5, 0.5])
    found = relative_length(rows, RelativeLengthOptions(coef=0.5))
    assert found.tolist() == pytest.approx([1.25, 1.0, 0.75, 0.0, -0.125, 1.0, 1.0, 0.75, 0.5])


REWARD_SHAPE_CHECKS: dict[str, tuple[Check, ...]] = {
    "overlong": (check_overlong,),
    "mara": (check_mara,),
    "cosine_length": (check_cosine_length,),
    "relative_length": (check_relative_length,),
    "_verdicts": (check_cosine_length, check_relative_length),
}
"""The same for `trainer.credit.reward_shapes`."""


def check_pass_at_k_value() -> None:
    """Beta(1, 1) plus counts. New: 2 x 1/2 = 1, and 3 x 1/2 x 2/3 = 1 too. 3 right, 1 wrong: 2 x 2/6 = 2/3.

    1 wrong, k = 3: 3 x 2/3 x 3/4 = 3/2. Normalised: a group of 3 new rows and one of a row at 2/3 have mean
    5/6, so 6/5 and 4/5; a replayed group of weight 2/3 has mean 2/3 and gets 1.
    """
    rows = rewarded(
        [0.0] * 5,
        [0, 0, 0, 1, 2],
        origins=["policy"] * 4 + ["replay"],
        successes=[0, 0, 0, 3, 3],
        failures=[0, 0, 0, 1, 1],
    )
    plain = pass_at_k_value(rows, PassAtKValueOptions(k=2, normalise=False))
    assert plain.tolist() == pytest.approx([1, 1, 1, 2 / 3, 2 / 3])
    found = pass_at_k_value(rows, PassAtKValueOptions(k=2))
    assert found.tolist() == pytest.approx([1.2, 1.2, 1.2, 0.8, 1.0])
    wrong = rewarded([0.0], [0], failures=[1])
    assert pass_at_k_value(wrong, PassAtKValueOptions(k=3, normalise=False)).tolist() == pytest.approx([1.5])
    skewed = PassAtKValueOptions(k=2, prior_successes=3.0, prior_failures=1.0, normalise=False)
    assert pass_at_k_value(rewarded([0.0], [0]), skewed).tolist() == pytest.approx([0.5])


PROMPT_WEIGHT_CHECKS: dict[str, tuple[Check, ...]] = {"pass_at_k_value": (check_pass_at_k_value,)}
"""The same for `trainer.credit.prompt_weights`."""


CHECKS = {
    "trainer.reward_ties": tie_cases.TIES_CHECKS,
    "trainer.credit.advantage_inputs": INPUT_CHECKS,
    "trainer.credit.advantages": ADVANTAGE_CHECKS,
    "trainer.credit.bonuses": BONUS_CHECKS,
    "trainer.credit.reward_shapes": REWARD_SHAPE_CHECKS,
    "trainer.credit.prompt_weights": PROMPT_WEIGHT_CHECKS,
}
"""By module."""
