"""The controller `entropy_bands`: its law by hand, on a toy policy with falling entropy, its state, its
errors.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.bound import bind
from configs.errors import ConfigError
from configs.kinds.bands import EntropyBandsOptions
from configs.load import load_config
from trainer.controllers.bands import EntropyBands
from trainer.controllers.setting_controllers import make_controllers

ONE = EntropyBandsOptions(
    bands={"format": {"metric": "entropy/format", "low": 0.8, "high": 1.2, "margin": 0.1}},
    actuators={"anchor": {"setting": "kl.coef", "bands": ["format"], "high": 2.0}},
    baseline_steps=2,
    smoothing=0.5,
    gain=0.5,
    push=1.0,
    release=0.25,
)


def values(options: EntropyBandsOptions, seen: list[float], setting: str = "kl.coef") -> list[float]:
    """The setting before the first step and after each."""
    controller = EntropyBands(options)
    found = [controller.settings()[setting]]
    for value in seen:
        controller.observe({"entropy/format": value})
        found.append(controller.settings()[setting])
    return found


def test_the_law_by_hand() -> None:
    """Initial value 1 (mean of 0.9 and 1.1), to be above 0.9. Span 2, gain 0.5, push 1, smoothing 0.5.

    1.0 -> m = 1.0, inside. 0.6 -> m = 0.8, e = 0.1: I = 0.5 x 2 x 0.1 = 0.1, u = 0.1 + 2 x 0.1 = 0.3. 0.4 ->
    m = 0.6, e = 0.3: I = 0.4, u = 1.0. 1.4 -> m = 1.0: I = 0.4 - 0.25 x 0.4 = 0.3 = u. 2.0 -> m = 1.5, to be
    below 1.1, e = -0.4: I = 0.3 - 0.4 = -0.1, clamped to 0.
    """
    found = values(ONE, [0.9, 1.1, 1.0, 0.6, 0.4, 1.4, 2.0])
    assert found == pytest.approx([0.0, 0.0, 0.0, 0.0, 0.3, 1.0, 0.3, 0.0])


def test_limits_hold_and_do_not_wind_up() -> None:
    """Twenty steps at 0 stay at 2.0; the first step inside releases a quarter: I was clamped, too."""
    found = values(ONE, [1.0, 1.0, *[0.0] * 20, *[3.0, 0.5]])
    assert found[22] == 2.0 and min(found) == 0.0
    inside = values(replace(ONE, smoothing=0.0), [1.0, 1.0, *[0.0] * 20, 1.0, 1.0])
    assert inside[-2:] == pytest.approx([1.5, 1.125])


def test_a_push_ends_with_its_error_and_rest_is_reached() -> None:
    """Without the metric, 0.3 returns to I = 0.1; released by a quarter a step, it ends at exactly 0."""
    found = values(ONE, [0.9, 1.1, 1.0, 0.6, math.nan])
    assert found[-2:] == pytest.approx([0.3, 0.1])
    assert values(ONE, [0.9, 1.1, 1.0, 0.6, *[1.0] * 20])[-1] == 0.0


def test_a_lowering_actuator_moves_the_other_way() -> None:
    """`raises: false`: 0.6 gives m = 0.8, e = 0.1, and the weight falls from its rest, 1, by 0.05 + 0.1."""
    options = replace(
        ONE,
        actuators={
            "positive": {
                "setting": "token_advantage.positive.weight",
                "bands": ["format"],
                "low": 0.0,
                "high": 1.0,
                "rest": 1.0,
                "raises": False,
            }
        },
    )
    found = values(options, [0.9, 1.1, 1.0, 0.6], "token_advantage.positive.weight")
    assert found == pytest.approx([1.0, 1.0, 1.0, 1.0, 0.85])


def test_too_low_wins_over_too_high() -> None:
    """Token entropy 1.3 of its start (to be below 1.05), format entropy 0.7 (to be above 0.9).

    The anchor serves both bands and rises by 0.2 (push 1); the bonus serves tokens alone: -0.25 x 0.1.
    """
    options = EntropyBandsOptions(
        actuators={
            "anchor": {"setting": "kl.coef", "bands": ["token", "format"], "high": 1.0},
            "bonus": {"setting": "entropy.coef", "bands": ["token"], "low": -0.05, "high": 0.05},
        },
        baseline_steps=1,
        smoothing=0.0,
        gain=0.0,
        push=1.0,
    )
    controller = EntropyBands(options)
    for token, form in ((0.2, 1.0), (0.26, 0.7)):
        controller.observe({"entropy/token_mean": token, "entropy/format": form})
    assert controller.settings() == pytest.approx({"kl.coef": 0.2, "entropy.coef": -0.025})
    reasons = controller.reasons()
    assert "entropy/format is at 0.700" in reasons["kl.coef"] and "above 0.9" in reasons["kl.coef"]
    assert "entropy/token_mean is at 1.300" in reasons["entropy.coef"]


def test_a_band_that_changes_holds_from_its_step_on() -> None:
    """From step 4 on 0.5 is enough (with the margin 0.6): the setting of step 4 uses it."""
    options = replace(
        ONE, smoothing=0.0, gain=0.0, changes={"later": {"step": 4, "band": "format", "low": 0.5}}
    )
    assert values(options, [1.0, 1.0, 0.7, 0.7])[2:] == pytest.approx([0.0, 0.0, 0.0])
    late = replace(options, changes={"later": {"step": 5, "band": "format", "low": 0.5}})
    assert values(late, [1.0, 1.0, 0.7, 0.7])[2:] == pytest.approx([0.0, 0.4, 0.0])


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_toy_policy_stays_in_its_band_only_with_it(strength: float) -> None:
    """The logit difference x of two formats drifts by 0.2 a step and is reduced by kl x: a hundred steps.

    Without the controller the entropy goes to 0; with it, its last fifty steps are all above 0.8 of ln 2.
    """
    options = replace(ONE, bands={"format": {"metric": "entropy/format", "low": 0.8}})
    controller = EntropyBands(options)
    x, seen = 0.0, []
    for _ in range(100):
        p = 1 / (1 + math.exp(-x))
        entropy = -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)
        seen.append(entropy / math.log(2))
        controller.observe({"entropy/format": entropy})
        x += 0.2 - strength * controller.settings()["kl.coef"] * x
    assert (min(seen[50:]) > 0.8) == (strength > 0)
    assert strength or seen[-1] < 0.01


@given(
    st.lists(st.floats(0.0, 3.0) | st.just(math.nan), max_size=12),
    st.integers(0, 12),
)
def test_a_restored_state_continues_like_the_controller(seen: list[float], cut: int) -> None:
    whole, parts = EntropyBands(ONE), EntropyBands(ONE)
    for value in seen:
        whole.observe({"entropy/format": value})
    for value in seen[:cut]:
        parts.observe({"entropy/format": value})
    again = EntropyBands(ONE)
    again.restore(parts.state())
    for value in seen[cut:]:
        again.observe({"entropy/format": value})
    assert again.settings() == whole.settings() and again.state() == whole.state()
    again.restore({})
    assert again.state() == EntropyBands(ONE).state()
    assert all(0.0 <= value <= 2.0 for value in values(ONE, seen)) and np.isfinite(values(ONE, seen)).all()


def test_one_line_of_config_is_enough() -> None:
    config = load_config("debug", ["controllers.bands={kind: entropy_bands}"])
    (controller,) = make_controllers(bind(config)).values()
    assert controller.settings() == {"kl.coef": 0.0, "entropy.coef": 0.0}


@pytest.mark.parametrize(
    ("option", "key", "rule"),
    [
        ("bands: {}", "bands", "must not be empty"),
        ("bands: {format: {metric: entropy/format, lo: 1}}", "bands", "format must be a mapping with metric"),
        ("bands: {format: {low: 0.8}}", "bands", "format.metric must name a metric"),
        (
            "bands: {token: {metric: x}, format: {metric: y, low: 1}}",
            "bands",
            "token must have a low or high above 0",
        ),
        (
            "changes: {a: {step: 3, band: form, low: 1}}",
            "changes",
            "must name a band (token, format), got 'form'",
        ),
        (
            "changes: {a: {step: 3, band: token, low: 1, high: 1.08}}",
            "changes",
            "wider than two margins (0.1)",
        ),
        ("actuators: {a: {setting: kl.coef, high: 1}}", "actuators", "a.bands must name bands"),
        ("actuators: {a: {setting: kl.coef, bands: [token]}}", "actuators", "a.low must be below high"),
        (
            "actuators: {a: {setting: kl.coef, bands: [token], high: 1, rest: 2}}",
            "actuators",
            "within",
        ),
        (
            "actuators: {a: {setting: kl.cof, bands: [token, format], high: 1}}",
            "",
            "must be entropy.coef, kl.coef",
        ),
        (
            "actuators: {a: {setting: sft.share, bands: [token, format], high: 2}}",
            "",
            "must not move sft.share to 2: it must be between 0 and 1",
        ),
        ("smoothing: 1.0", "smoothing", "below 1"),
        ("baseline_steps: 0", "baseline_steps", "must be at least 1"),
        ("gain: -1", "gain", "must not be negative"),
        (
            "actuators: {a: {setting: kl.coef, bands: [token], high: 1}}",
            "bands",
            "format must be one that some",
        ),
        ("changes: {a: {band: token, low: 1}}", "changes", "a.step must be at least 1"),
        (
            "actuators: {a: {setting: kl.coef, bands: [token, format], low: -1}}",
            "",
            "it must not be negative",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(option: str, key: str, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("debug", ["controllers.b={kind: entropy_bands, " + option + "}"])
    at = f"controllers.b.{key}".removesuffix(".")
    # A long mapping is not quoted in the message: the key then ends with a colon.
    named = (f": {at} = ", f": {at}: ")
    lines = [line for line in str(caught.value).splitlines() if any(start in line for start in named)]
    assert any(rule in line for line in lines), caught.value
