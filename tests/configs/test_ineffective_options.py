"""Options that could not act are refused by name, and those beside them that can are not."""

from __future__ import annotations

import pytest

from configs.errors import ConfigError
from configs.load import load_config

MOVES = "kind: adaptive_setting, setting: entropy.coef, target: 0.8"
ONE = ["rollout.group_size=1", "advantage.kind=reinforce"]
SFT = ["loss={policy: null, sft: {kind: nll}}", "sft.share=0.25"]
REPLAYED = ["loss.policy.kind=nll", "loss.replay={kind: ppo_clip}", "replay.groups_per_step=1"]
KL = "kl={coef: 0.1, estimator: k1, place: reward}"


def controller(options: str) -> list[str]:
    return [f"controllers.move={{{options}}}"]


NO_EFFECT = {
    "no room": (controller(f"{MOVES}, delta: 0.1"), "controllers.move.high"),
    "factor 0": (controller(f"{MOVES}, factor: 0, initial: 0.1, high: 1"), "controllers.move.factor"),
    "factor 1": (controller(f"{MOVES}, factor: 1, initial: 0.1, high: 1"), "controllers.move.factor"),
    "from 0": (controller(f"{MOVES}, high: 1"), "controllers.move.initial"),
    "below 0": (controller(f"{MOVES}, initial: 0.1, low: -1, high: 1"), "controllers.move.low"),
    "backwards": (controller(f"{MOVES}, delta: -0.1, high: 1"), "controllers.move.delta"),
    "rate 0": (controller("kind: projected_band, rate: 0"), "controllers.move.rate"),
    "no band": (controller("kind: projected_band, initial: 0, high: 0"), "controllers.move.high"),
    "backwards too": (controller("kind: adaptive_entropy, delta: -1"), "controllers.move.delta"),
    "no gain": (controller("kind: entropy_bands, gain: 0, push: 0"), "controllers.move.gain"),
    "novelty alone": ([*ONE, "bonus.f={kind: format_novelty}"], "bonus.f.centred"),
    "nothing to count": (
        [*ONE, "bonus.f={kind: format_novelty, counts: group, centred: false}"],
        "bonus.f.counts",
    ),
    "reward replaced": (
        ["reward_shape={long: {kind: overlong}, v: {kind: vpo, components: [correct]}}"],
        "reward_shape.v.kind",
    ),
    "KL unused": (["loss.policy.kind=nll", KL], "kl.place"),
    "shape unused": (["loss.policy.kind=nll", "reward_shape.x={kind: cosine_length}"], "reward_shape.x.kind"),
    "nothing to anchor": ([*SFT, "kl_base.coef=0.1"], "kl_base.coef"),
    "no entropy": ([*SFT, "entropy.coef=0.1"], "entropy.coef"),
    "no entropy to move": ([*SFT, *controller("kind: adaptive_entropy")], "entropy.coef"),
}
EFFECTIVE = (
    controller(f"{MOVES}, factor: 0.5, initial: 0.1, high: 1"),
    controller(f"{MOVES}, delta: 0.1, low: -1, high: 1"),
    controller("kind: adaptive_entropy, delta: 0, initial: 0.001"),
    controller("kind: entropy_bands, gain: 0"),
    [*ONE, "bonus.f={kind: format_novelty, centred: false}"],
    ["reward_shape={v: {kind: vpo, components: [correct]}, long: {kind: overlong}}"],
    [*REPLAYED, KL, "reward_shape.x={kind: cosine_length}"],
    ["loss.policy.kind=nll", "reward_shape.x={kind: overlong, filter: true}"],
    SFT,
)


@pytest.mark.parametrize("case", NO_EFFECT)
def test_what_could_not_act_is_refused(case: str) -> None:
    overrides, key = NO_EFFECT[case]
    with pytest.raises(ConfigError) as caught:
        load_config("debug", overrides)
    assert [problem.key for problem in caught.value.problems] == [key]


@pytest.mark.parametrize("overrides", EFFECTIVE)
def test_what_can_act_is_accepted(overrides: list[str]) -> None:
    load_config("debug", overrides)
