"""AEnt's controller by hand and in scalars, and its clamped entropy bonus inside an objective."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.bound import bind
from configs.errors import ConfigError
from configs.kinds.controllers import ProjectedBandOptions
from configs.kinds.losses import LOSSES, LossCommon, PpoClipOptions
from configs.load import load_config
from lab.base_model import ModelShape, make_base
from trainer.controllers.projected_band import ProjectedBand
from trainer.controllers.setting_controllers import make_controllers
from trainer.losses.logprobs import TokenScores
from trainer.metrics import update_metrics
from trainer.model.batch_plan import build_microbatch
from trainer.model.policy import load_policy
from trainer.objective import BoundLoss, Objective, TokenColumns, microbatch_loss

torch.set_num_threads(1)
OPTIONS = ProjectedBandOptions(floor=1.0, ceiling=2.0, rate=0.1, initial=0.5, low=0.25, high=0.75)
METRIC = "entropy/token_mean"


def test_by_hand() -> None:
    """Half a nat below the band adds 0.05, one above subtracts 0.1, inside and at its ends nothing changes;
    far outside the value stays within its bounds. A step without the metric, or with NaN, changes nothing.
    """
    band = ProjectedBand(OPTIONS)
    assert band.settings() == {"entropy.coef": 0.5}
    steps = [(0.5, 0.55), (3.0, 0.45), (1.0, 0.45), (2.0, 0.45), (1.5, 0.45), (math.nan, 0.45)]
    for entropy, wanted in [*steps, (-9.0, 0.75), (99.0, 0.25)]:
        band.observe({METRIC: entropy})
        assert band.settings()["entropy.coef"] == pytest.approx(wanted)
    band.observe({})
    assert band.settings()["entropy.coef"] == pytest.approx(0.25)


@given(st.lists(st.floats(-5, 5), max_size=10), st.integers(0, 10))
def test_against_the_equation_and_after_a_restart(entropies: list[float], at: int) -> None:
    """Clipped to [low, high] after each step; a controller restored half-way continues equally."""
    band, value = ProjectedBand(OPTIONS), 0.5
    for number, entropy in enumerate(entropies):
        if number == at:
            again = ProjectedBand(OPTIONS)
            again.restore(band.state())
            band = again
        band.observe({METRIC: entropy})
        raised = value - 0.1 * min(entropy - 1.0, 0.0) + 0.1 * min(2.0 - entropy, 0.0)
        value = sorted((0.25, raised, 0.75))[1]
        assert band.settings()["entropy.coef"] == pytest.approx(value)


def test_no_fixed_step_does_it() -> None:
    """Twice as far below the band, twice the change: adaptive_setting adds its delta in both cases."""
    moves = []
    for entropy in (0.9, 0.8):
        band = ProjectedBand(OPTIONS)
        band.observe({METRIC: entropy})
        moves.append(band.settings()["entropy.coef"] - 0.5)
    assert moves == pytest.approx([0.01, 0.02])


def test_from_a_config() -> None:
    entry = "controllers.band={kind: projected_band, metric: entropy/clamped_mean, floor: 0.2}"
    (band,) = make_controllers(bind(load_config("debug", [entry, "entropy.clamp=0.3"]))).values()
    assert band.settings() == {"entropy.coef": 2e-4}
    for key, rule in (
        ("entropy.clamp=1", "must be at least 0 and below 1"),
        ("entropy.clamp=-0.1", "must be at least 0 and below 1"),
        ("controllers.band={kind: projected_band, floor: 0.6}", "must not be above ceiling"),
        ("controllers.band={kind: projected_band, initial: 1}", "must be within low and high"),
        ("controllers.band={kind: projected_band, setting: entropy.clamp}", "must be entropy.coef"),
    ):
        with pytest.raises(ConfigError, match=rule):
            load_config("debug", [key])


@pytest.mark.parametrize(("coef", "clamp"), [(0.5, 0.3), (0.0, 0.3), (0.5, 0.0)])
def test_the_bonus_is_of_the_clamped_entropy(coef: float, clamp: float) -> None:
    """Two tokens of weight 1/4 and 1/2, clamped entropies 2 and 3: the term is -coef (2/4 + 3/2), its
    gradients are -coef / 4 and -coef / 2, and none reaches the full entropy. The mean 5/2 is logged whenever
    there is a clamp, also at a coefficient of 0, because a controller starts from it.
    """
    logprobs, entropy = torch.tensor([-1.0, -1.0]), torch.tensor([9.0, 9.0], requires_grad=True)
    clamped = torch.tensor([2.0, 3.0], requires_grad=True)
    zeros = torch.zeros(2)
    columns = TokenColumns(
        proximal_logprobs=logprobs,
        behavior_logprobs=zeros,
        anchor_logprobs={},
        advantages=zeros,
        weights=torch.tensor([0.25, 0.5]),
        rows=torch.tensor([0, 1]),
        origins={"policy": torch.tensor([True, True])},
        token_ids=torch.tensor([0, 0]),
        positions=torch.tensor([0, 0]),
        prepared={},
    )
    loss = BoundLoss(common=LossCommon(kind="ppo_clip"), kind=LOSSES["ppo_clip"], options=PpoClipOptions())
    objective = Objective(losses={"policy": loss}, anchors={}, entropy_coef=coef, entropy_clamp=clamp)
    total, sums = microbatch_loss(TokenScores(logprobs, entropy, zeros, clamped), columns, objective)
    assert total.item() == pytest.approx(-2.0 * coef)
    if coef:
        total.backward()
        assert clamped.grad is not None and entropy.grad is None
        assert clamped.grad.tolist() == pytest.approx([-coef / 4, -coef / 2])
    metrics = update_metrics([sums | {"grad/norm": 0.0, "grad/applied": 1.0}])
    assert metrics.get("entropy/clamped_mean") == (2.5 if clamp else None)


def test_the_model_clamps_as_configured(tmp_path: Path) -> None:
    """A fresh model has nearly uniform logits: without half of V, H falls by about ln 2; without a clamp it
    stays. The clamp may change between runs on the same ranks; the other scores do not.
    """
    make_base(ModelShape(hidden_size=32, num_layers=1, num_heads=1, num_kv_heads=1), tmp_path)
    policy = load_policy(str(tmp_path), "fp32", 16, False)
    batch = build_microbatch([np.array([5, 6])], [np.array([7, 8, 9])], np.ones(1), torch.device("cpu"))
    with torch.no_grad():
        found = {}
        for clamp in (0.0, 0.5, 0.25, 0.0):
            policy.clamp_entropy(clamp)
            scores = TokenScores(*policy(batch))
            found[clamp] = (scores.entropy - scores.entropy_clamped).mean().item()
            assert torch.equal(scores.entropy, TokenScores(*policy(batch)).entropy)
    assert found[0.0] == 0.0
    assert found[0.5] == pytest.approx(math.log(2), abs=0.1)
    assert found[0.25] == pytest.approx(math.log(4 / 3), abs=0.1)
