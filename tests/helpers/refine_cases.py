"""Refined rows by hand: what a group keeps, what a step leaves out, the baseline of first turns, what leaks.

Used by the tests of refiners and by the check that these numbers notice every changed sign and comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from credit_cases import rewarded
from rollout_rows import make_group, make_sample

from configs.kinds.refiners import CritiqueGrpoOptions
from configs.schema import RolloutConfig
from rollouts.records import Prompt, Sample
from trainer.credit.advantage_inputs import refined_rows
from trainer.credit.credit import refined_advantage
from trainer.rollout.critique import leaks
from trainer.rollout.dynamic_sampling import left_out_rows
from trainer.rollout.refiner import best_rows, is_refined, is_right, policy_samples

Check = Callable[[], None]


def sample_with(reward: float | None, number: int = 0) -> Sample:
    return replace(make_sample(f"s{number}", 2, reward=reward), reward=reward)


def check_which_groups() -> None:
    """Failed: every policy row has a reward below the threshold. One without a reward may be right."""
    options = CritiqueGrpoOptions(prompts="lab")
    cases: list[tuple[list[float | None], bool]] = [
        ([0.0, 0.0], True),
        ([0.0, 0.49], True),
        ([0.0, 0.5], False),
        ([0.5, 0.0], False),
        ([0.0, None], False),
        ([1.0, 1.0], False),
    ]
    for rewards, wanted in cases:
        group = make_group(2, tuple(sample_with(reward, k) for k, reward in enumerate(rewards)))
        assert is_refined(group, options) == wanted, rewards
        assert is_refined(group, replace(options, groups="all"))
    others = tuple(replace(sample_with(1.0, k), origin="refined") for k in (1, 2))
    mixed = make_group(2, (sample_with(0.0), *others))
    assert is_refined(mixed, options) and policy_samples(mixed) == [mixed.samples[0]], "only policy rows"
    empty = make_group(2, others)
    assert not is_refined(empty, options) and not is_refined(empty, replace(options, groups="all"))


def check_is_right() -> None:
    found = [is_right(sample_with(reward), 0.5) for reward in (0.49, 0.5, 1.0, None)]
    assert found == [False, True, True, False]


def check_best_rows() -> None:
    """Highest rewards first, equal ones in order, nulls last; the result is in the order of the rows."""
    rewards = [0.5, None, 1.0, 0.5, 1.0, -1.0]
    rows = [sample_with(reward, k) for k, reward in enumerate(rewards)]
    cases: list[tuple[int, list[int]]] = [
        *((1, [2]), (2, [2, 4]), (3, [0, 2, 4]), (5, [0, 2, 3, 4, 5]), (9, [0, 1, 2, 3, 4, 5])),
        (0, [0, 1, 2, 3, 4, 5]),
    ]
    for keep, wanted in cases:
        assert best_rows(rows, keep) == [rows[k] for k in wanted], keep
    rounded = [sample_with(reward, k) for k, reward in enumerate([0.3, 0.1 + 0.2])]
    assert best_rows(rounded, 1) == rounded[:1], "equal up to rounding"


def check_first_turns() -> None:
    """Group 0: first turns 0, 0, 1, so 1/3: second turns 1 and 0 have 2/3 and -1/3. Group 4 has no first
    turn with a reward: 0. A replayed row is no first turn.
    """
    everyone = rewarded(
        [0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.5],
        [0, 0, 0, 0, 0, 4, 4],
        origins=["policy", "policy", "policy", "refined", "refined", "refined", "replay"],
    )
    refined = everyone.only(refined_rows(everyone.origin_N))
    assert refined_advantage(refined, everyone).tolist() == pytest.approx([2 / 3, -1 / 3, 0.0])


def check_left_out() -> None:
    """Group 0 is 0, 0 and a refined 1; group 1 is 1, 1 and a refined 1.

    Joined, the refined row gives group 0 variance. Apart, both are left out but their refined rows never are.
    """
    reward = np.array([0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    group, origin = np.array([0, 0, 0, 1, 1, 1]), np.array(["policy", "policy", "refined"] * 2, dtype=object)
    drop, keep = (RolloutConfig(zero_variance_groups=how) for how in ("drop", "keep"))
    assert left_out_rows(reward, group, origin, drop).tolist() == [False] * 3 + [True] * 3
    apart = left_out_rows(reward, group, origin, drop, joins_refined=False)
    assert apart.tolist() == [True, True, False, True, True, False]
    assert not left_out_rows(reward, group, origin, keep, joins_refined=False).any()


def check_leaks() -> None:
    """The reference answer as a whole word: 3 is in "is 3." and "(3)", not in "13", "3.5" or "x3"."""
    prompt = Prompt(prompt_id="p", messages=(), answer="3", domain="math")
    assert all(leaks(text, prompt) for text in ("it is 3.", "(3)", "3", "= 3 , so"))
    assert not any(leaks(text, prompt) for text in ("13", "3.5", "x3", "0.3", "three", ""))
    assert not leaks("None", replace(prompt, answer=None)) and not leaks("  ", replace(prompt, answer=" "))
    assert leaks("so x^2 (+1) it is", replace(prompt, answer="x^2 (+1)"))


REFINER_CHECKS: dict[str, tuple[Check, ...]] = {
    "policy_samples": (check_which_groups,),
    "is_right": (check_is_right,),
    "is_refined": (check_which_groups,),
    "best_rows": (check_best_rows,),
}
"""By function of `trainer.rollout.refiner`: what must fail when anything in it is changed."""
CREDIT_CHECKS: dict[str, tuple[Check, ...]] = {
    "refined_advantage": (check_first_turns,),
    "_of_groups": (check_first_turns,),
}
"""The same for `trainer.credit.credit`."""
CRITIQUE_CHECKS: dict[str, tuple[Check, ...]] = {"leaks": (check_leaks,)}
"""The same for `trainer.rollout.critique`."""
