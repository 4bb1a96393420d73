"""When the reference is reset: schedule and plateau by hand, state, rules, and the loop that does it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.load import load_config
from configs.schema import ReferenceConfig
from trainer.controllers.reference import Reference


def resets(config: ReferenceConfig, seen: list[float]) -> list[int]:
    """The steps (from 1) after which the reference is reset."""
    reference = Reference(config)
    return [step for step, value in enumerate(seen, 1) if reference.observe({"reward/mean": value})]


def test_schedule_by_hand() -> None:
    """Every third step; without a schedule never."""
    assert resets(ReferenceConfig(reset_every=3), [0.0] * 10) == [3, 6, 9]
    assert resets(ReferenceConfig(), [0.0] * 10) == [] and not Reference(ReferenceConfig()).is_used


def test_plateau_by_hand() -> None:
    """Two steps against the two before, gain 0.12. Means of 1, 2: 0.15 and 3, 4: 0.35; of 2, 3: 0.25 and 4,
    5: 0.35, too little. After step 5 the history is empty: steps 6 to 9 rise by 0.2, steps 7 to 10 fall.
    """
    seen = [0.1, 0.2, 0.3, 0.4, 0.3, 0.1, 0.1, 0.3, 0.3, 0.0]
    assert resets(ReferenceConfig(plateau_steps=2, plateau_gain=0.12), seen) == [5, 10]


def test_a_step_without_the_metric_tells_no_plateau() -> None:
    """It counts for the schedule only."""
    seen = [0.2, math.nan, 0.2]
    assert resets(ReferenceConfig(plateau_steps=1), seen) == [3]
    assert resets(ReferenceConfig(plateau_steps=2, reset_every=2), [math.nan] * 4) == [2, 4]
    assert not Reference(ReferenceConfig(plateau_steps=1, plateau_metric="other")).observe(
        {"reward/mean": 1.0}
    )


@given(
    st.lists(st.floats(-1.0, 1.0) | st.just(math.nan), max_size=14),
    st.integers(0, 14),
    st.integers(0, 4),
    st.integers(0, 3),
)
def test_a_restored_state_continues_like_the_reference(
    seen: list[float], cut: int, every: int, size: int
) -> None:
    """Saved and restored at any step."""
    config = ReferenceConfig(reset_every=every, plateau_steps=size)
    whole, first, second = Reference(config), Reference(config), Reference(config)
    told = [whole.observe({"reward/mean": value}) for value in seen]
    before = [first.observe({"reward/mean": value}) for value in seen[:cut]]
    second.restore(first.state())
    assert before + [second.observe({"reward/mean": value}) for value in seen[cut:]] == told
    assert second.num_resets == whole.num_resets == sum(told)


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["reference.reset_every=5"], "nothing uses the reference: set kl.coef above 0"),
        (["reference.plateau_steps=5", "kl_base.coef=0.1"], "nothing uses the reference"),
        (["kl_base.coef=0.1", "kl_base.estimator=k1"], "kl_base.estimator.*must not be k1 as a loss term"),
        (["kl_base.coef=0.1", "kl_base.place=reward"], "kl_base.estimator.*must be k1 in the reward"),
    ],
)
def test_what_cannot_act_is_refused(overrides: list[str], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        load_config("debug", overrides)


def test_a_controller_is_an_anchor_too() -> None:
    """kl.coef is 0 and set later: its reference may be reset, and its estimator must fit."""
    moves = "controllers.pull={kind: adaptive_setting, setting: kl.coef, delta: 0.01, high: 1.0}"
    assert load_config("debug", [moves, "reference.reset_every=5"]).reference.reset_every == 5
    with pytest.raises(ConfigError, match="must not be k1"):
        load_config("debug", [moves, "kl.estimator=k1"])
