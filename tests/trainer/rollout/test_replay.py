"""Which groups are replayed: the window, distinctness, probabilities; dependent only on seed and step."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import ReplayConfig, RolloutConfig, RunConfig
from trainer.rollout.replay import choose
from trainer.step_records import Pick


def make_config(num_picks: int, max_age: int = 8, num_groups: int = 4, seed: int = 0) -> RunConfig:
    return RunConfig(
        seed=seed,
        rollout=RolloutConfig(groups_per_step=num_groups),
        replay=ReplayConfig(groups_per_step=num_picks, max_age=max_age),
    )


@given(st.integers(0, 9), st.integers(1, 5), st.integers(1, 6), st.integers(0, 20), st.integers(0, 99))
def test_picks(num_picks: int, max_age: int, num_groups: int, step: int, seed: int) -> None:
    """Distinct groups of the last `max_age` committed steps, each with its step; all if there are few."""
    config = make_config(num_picks, max_age, num_groups, seed)
    picks = choose(config, step)
    assert picks == choose(config, step)
    candidates = [
        Pick(step=committed, submission_index=index)
        for committed in range(max(1, step + 1 - max_age), step + 1)
        for index in range((committed - 1) * num_groups, committed * num_groups)
    ]
    assert len(picks) == len(set(picks)) == min(num_picks, len(candidates))
    assert set(picks) <= set(candidates)
    assert list(picks) == sorted(picks, key=lambda pick: pick.submission_index)


def test_by_hand() -> None:
    """Nothing is committed before step 0; step 1 can only draw from step=000001, submissions 0 to 3."""
    assert choose(make_config(3), 0) == ()
    assert choose(make_config(0), 9) == ()
    assert [pick.submission_index for pick in choose(make_config(9), 1)] == [0, 1, 2, 3]
    assert {pick.step for pick in choose(make_config(9), 1)} == {1}
    last = choose(make_config(9, max_age=1), 7)
    assert [(pick.step, pick.submission_index) for pick in last] == [(7, index) for index in range(24, 28)]


def test_every_group_has_the_same_chance() -> None:
    """2 of the 8 groups of two steps in 2000 seeds: 500 each, five standard deviations are 97."""
    drawn = Counter(
        pick.submission_index for seed in range(2000) for pick in choose(make_config(2, seed=seed), 2)
    )
    assert sorted(drawn) == list(range(8))
    assert list(drawn.values()) == pytest.approx([500] * 8, abs=97)


def test_steps_and_seeds_draw_apart() -> None:
    """Neither two steps with the same window length nor two seeds give the same places every time."""
    places = [[p.submission_index - 4 * (step - 8) for p in choose(make_config(4), step)] for step in (8, 9)]
    assert places[0] != places[1]
    assert choose(make_config(4), 8) != choose(make_config(4, seed=1), 8)
