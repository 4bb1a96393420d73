"""Controllers by hand: their values for the next step after given metrics, and their saved state."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.bound import bind
from configs.errors import ConfigError
from configs.kinds.controllers import AdaptiveEntropyOptions, AdaptiveSettingOptions, ThresholdOptions
from configs.load import load_config
from trainer.controllers.setting_controllers import (
    AdaptiveEntropy,
    AdaptiveSetting,
    Controller,
    Threshold,
    make_controllers,
)


def after(controller: Controller, entropies: list[float]) -> dict[str, float]:
    for entropy in entropies:
        controller.observe({"entropy/token_mean": entropy})
    return dict(controller.settings())


def test_adaptive_entropy_by_hand() -> None:
    """Target 0.2, delta 0.1, at most 0.25. Entropies 0.1 0.1 0.1 0.3 0.1: the coefficient goes 0.1, 0.2, 0.25
    (clamped), 0.15, 0.25; the bonus is off before the first step and after the fourth, whose entropy was
    high.
    """
    options = AdaptiveEntropyOptions(target=0.2, delta=0.1, high=0.25)
    wanted = [0.0, 0.1, 0.2, 0.25, 0.0, 0.25]
    for count, coef in enumerate(wanted):
        found = after(AdaptiveEntropy(options), [0.1, 0.1, 0.1, 0.3, 0.1][:count])
        assert found == pytest.approx({"entropy.coef": coef})


def test_adaptive_setting_by_hand() -> None:
    """Doubling between 0.01 and 0.08 from 0.02 towards half of the first value, 0.4: at 0.4 and 0.3 it halves
    (0.01, then clamped), at 0.1 four times it doubles (0.02, 0.04, 0.08, then clamped).
    """
    options = AdaptiveSettingOptions(
        setting="token_advantage.repo.zeta", target=0.5, relative=True, initial=0.02, low=0.01, high=0.08
    )
    seen = [0.4, 0.3, 0.1, 0.1, 0.1, 0.1]
    values = [
        after(AdaptiveSetting(options), seen[:count])["token_advantage.repo.zeta"] for count in range(7)
    ]
    assert values == pytest.approx([0.02, 0.01, 0.01, 0.02, 0.04, 0.08, 0.08])


def test_lowered_below_the_target() -> None:
    """lambda of positive advantages: 1.0 - 0.05 below the entropy target, + 0.05 above it."""
    options = AdaptiveSettingOptions(
        setting="token_advantage.positive.weight",
        target=0.2,
        raise_below=False,
        delta=0.05,
        initial=1.0,
        high=2.0,
    )
    assert after(AdaptiveSetting(options), [0.1])["token_advantage.positive.weight"] == pytest.approx(0.95)
    assert after(AdaptiveSetting(options), [0.3, 0.3])["token_advantage.positive.weight"] == pytest.approx(
        1.10
    )


def test_a_controller_of_ones_own_says_what_it_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings are checked like those of any other kind; a controller without settings is refused."""
    (tmp_path / "steady.py").write_text(
        "class Steady:\n    def __init__(self, options):\n        self.value = options.options['value']\n"
        "    def settings(self):\n        return {'kl.coef': self.value}\n"
        "    def reasons(self):\n        return {}\n    def observe(self, metrics): ...\n"
        "    def state(self):\n        return {}\n    def restore(self, state): ...\n"
        "class Mute:\n    def __init__(self, options): ...\n    def settings(self): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own = "controllers.own={kind: 'steady:Steady', options: {value: 0.25, settings: {kl.coef: [0, 1]}}}"
    config = load_config("debug", ["allow=[steady]", own])
    assert make_controllers(bind(config))["own"].settings() == {"kl.coef": 0.25} and bind(config).is_anchored(
        "kl"
    )
    mute = load_config("debug", ["allow=[steady]", own.replace("Steady", "Mute")])
    with pytest.raises(ValueError, match="steady:Mute must have observe, reasons, state, restore"):
        make_controllers(bind(mute))
    for wrong, rule in (
        (own.replace("kl.coef", "kl.cof"), "controllers.own: "),
        (own.replace("[0, 1]", "1"), "must say under settings what it moves, as {key: [low, high]}"),
        (
            "controllers.own={kind: 'steady:Steady'}",
            "must say under settings what it moves, as {key: [low, high]}",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config("debug", ["allow=[steady]", wrong])
        assert rule in str(caught.value)


def test_threshold_by_hand() -> None:
    """Below 0.5 of the first value, 0.8: 0.4 is not, 0.39 is, a step without the metric changes nothing."""
    options = ThresholdOptions(metric="entropy/token_mean", target=0.5, value=0.3, otherwise=0.1)
    seen = [math.nan, 0.8, 0.4, 0.39, math.nan, 0.1, 0.5]
    values = [after(Threshold(options), seen[:count])["sft.share"] for count in range(8)]
    assert values == [0.1, 0.1, 0.1, 0.1, 0.3, 0.3, 0.3, 0.1]


def test_threshold_above_an_absolute_value() -> None:
    """The share of the leading format above 0.6; exactly 0.6 is not above. Another metric changes nothing."""
    options = ThresholdOptions(metric="format/leading_share", target=0.6, relative=False, below=False)
    controller = Threshold(options)
    found = []
    for metrics in ({"format/leading_share": 0.6}, {"format/leading_share": 0.61}, {"entropy/format": 0.0}):
        controller.observe(metrics)
        found.append(controller.settings()["sft.share"])
    assert found == [0.0, 0.125, 0.125]


@given(st.lists(st.floats(0.0, 2.0) | st.just(math.nan), max_size=12), st.integers(0, 12))
def test_a_restored_state_continues_like_the_controller(seen: list[float], cut: int) -> None:
    """Saved and restored at any step, also after steps without an entropy."""
    makers: list[Callable[[], Controller]] = [
        lambda: AdaptiveEntropy(AdaptiveEntropyOptions()),
        lambda: AdaptiveSetting(
            AdaptiveSettingOptions(setting="kl.coef", target=0.5, relative=True, initial=0.1, high=1.0)
        ),
        lambda: Threshold(ThresholdOptions(metric="entropy/token_mean")),
    ]
    for make in makers:
        whole, first, second = make(), make(), make()
        after(whole, seen)
        after(first, seen[:cut])
        second.restore(first.state())
        assert after(second, seen[cut:]) == dict(whole.settings())
        assert all(math.isfinite(value) for value in whole.settings().values())


def test_from_a_config() -> None:
    config = load_config("debug", ["controllers.bonus={kind: adaptive_entropy, target: 0.1}"])
    assert make_controllers(bind(config))["bonus"].settings() == {"entropy.coef": 0.0}


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        ("{kind: adaptive_setting, setting: learner.lr}", "must be entropy.coef, kl.coef, .* or a number"),
        (
            "{kind: adaptive_setting, setting: kl.coef, initial: 2.0, high: 1.0}",
            "must be within low and high",
        ),
        (
            "{kind: adaptive_setting, setting: loss.policy.kind}",
            "must be entropy.coef, kl.coef, .* or a number",
        ),
        (
            "{kind: adaptive_setting, setting: loss.policy.sum_constant}",
            "must be entropy.coef, kl.coef, .* or a number",
        ),
    ],
)
def test_what_cannot_be_moved_is_refused(entry: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        load_config("debug", [f"controllers.mine={entry}"])
