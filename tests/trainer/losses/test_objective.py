"""The objective of a microbatch: masked, weighted, by origin, and independent of how rows are divided."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from configs.kinds.losses import LOSSES, LossCommon, NllOptions, PpoClipOptions
from configs.schema import KLConfig
from trainer.losses.logprobs import TokenScores
from trainer.objective import BoundLoss, Objective, TokenColumns, microbatch_loss

torch.set_num_threads(1)
BOUND = {
    "policy": BoundLoss(
        common=LossCommon(kind="ppo_clip"), kind=LOSSES["ppo_clip"], options=PpoClipOptions()
    ),
    "sft": BoundLoss(common=LossCommon(kind="nll"), kind=LOSSES["nll"], options=NllOptions()),
}
POLICY = torch.tensor([-1.0, -1.0, -math.inf, -2.0, -3.0])
"""Three policy tokens, the last of them masked and impossible; two sft tokens."""
WEIGHTS = torch.tensor([0.25, 0.25, 0.0, 0.5, 0.5])


def token_scores(logprobs: Tensor) -> TokenScores:
    return TokenScores(logprobs, *[torch.zeros_like(logprobs)] * 3)


def token_columns(part: slice = slice(None), anchors: dict[str, Tensor] | None = None) -> TokenColumns:
    is_policy = torch.tensor([True, True, True, False, False])[part]
    return TokenColumns(
        proximal_logprobs=torch.tensor([-1.0, -1.0, -1.0, math.nan, math.nan])[part],
        behavior_logprobs=torch.full((5,), math.nan)[part],
        anchor_logprobs={name: values[part] for name, values in (anchors or {}).items()},
        advantages=torch.tensor([2.0, -1.0, 9.0, 0.0, 0.0])[part],
        weights=WEIGHTS[part],
        rows=torch.tensor([0, 0, 1, 2, 2])[part],
        origins={"policy": is_policy, "sft": ~is_policy},
        token_ids=torch.zeros(5, dtype=torch.long)[part],
        positions=torch.zeros(5, dtype=torch.long)[part],
        prepared={},
    )


def test_by_hand() -> None:
    """On policy a token's loss is -A: (-2 + 1)/4; sft: (2 + 3)/2 = 2.5; the masked -inf counts nowhere."""
    logprobs = POLICY.clone().requires_grad_()
    total, sums = microbatch_loss(
        token_scores(logprobs), token_columns(), Objective(losses=BOUND, anchors={})
    )
    total.backward()
    assert total.item() == pytest.approx(2.25)
    assert sums == pytest.approx(
        {
            "loss/policy": -0.25,
            "loss/sft": 2.5,
            "loss/total": 2.25,
            "tokens/sft": 2.0,
            "sum/k3_proximal_vs_policy": 0.0,
            "tokens/policy": 2.0,
            "mark/policy/clip_high": 0.0,
            "mark/policy/clip_low": 0.0,
        }
    )
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.5, 0.25, 0.0, -0.5, -0.5])


def test_kl_anchors_by_hand() -> None:
    """Reference ln 2 below the policy: k3 = ln 2 - 1/2; base ln 4 below: k2 = (2 ln 2)^2 / 2 = 2 (ln 2)^2.

    Times coef 0.1 and 0.3 and weights 1/4 + 1/4; policy rows only. Gradients: k3' = 1 - 1/2, k2' = 2 ln 2.
    """
    held = {"kl": POLICY - math.log(2), "kl_base": POLICY - math.log(4)}
    anchors = {"kl": KLConfig(estimator="k3", coef=0.1), "kl_base": KLConfig(estimator="k2", coef=0.3)}
    logprobs = POLICY.clone().requires_grad_()
    objective = Objective(losses=BOUND, anchors=anchors)
    total, sums = microbatch_loss(token_scores(logprobs), token_columns(anchors=held), objective)
    assert sums["loss/kl"] == pytest.approx(0.05 * (math.log(2) - 0.5))
    assert sums["loss/kl_base"] == pytest.approx(0.3 * math.log(2) ** 2)
    assert total.item() == pytest.approx(2.25 + sums["loss/kl"] + sums["loss/kl_base"])
    total.backward()
    pull = 0.25 * (0.1 * 0.5 + 0.3 * 2 * math.log(2))
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.5 + pull, 0.25 + pull, 0.0, -0.5, -0.5])


@pytest.mark.parametrize("weight", [5.0, 0.25])
def test_the_weight_of_the_loss_is_not_that_of_the_terms(weight: float) -> None:
    """It is a factor of the row weights: the loss is `weight` times as large, anchors and bonus do not
    change.

    Entropy 3 at each of two tokens of row weight 1/4: -0.02 x 3 x 1/2 = -0.03.
    """
    held = {"kl": POLICY - math.log(2), "kl_base": POLICY - math.log(4)}
    anchors = {"kl": KLConfig(estimator="k3", coef=0.1), "kl_base": KLConfig(estimator="k2", coef=0.3)}
    common = LossCommon(kind="ppo_clip", weight=weight)
    bound = BOUND | {"policy": replace(BOUND["policy"], common=common)}
    objective = Objective(losses=bound, anchors=anchors, entropy_coef=0.02)
    columns = token_columns(anchors=held)
    weights = torch.where(columns.origins["policy"], weight * columns.weights, columns.weights)
    logprobs = POLICY.clone().requires_grad_()
    scores = TokenScores(logprobs, *[torch.full_like(POLICY, 3.0)] * 3)
    total, sums = microbatch_loss(scores, replace(columns, weights=weights), objective)
    assert sums["loss/policy"] == pytest.approx(-0.25 * weight)
    assert sums["loss/kl"] == pytest.approx(0.05 * (math.log(2) - 0.5))
    assert sums["loss/kl_base"] == pytest.approx(0.3 * math.log(2) ** 2)
    assert sums["loss/entropy"] == pytest.approx(-0.03)
    total.backward()
    pull = 0.25 * (0.1 * 0.5 + 0.3 * 2 * math.log(2))
    assert logprobs.grad is not None
    wanted = [-0.5 * weight + pull, 0.25 * weight + pull, 0.0, -0.5, -0.5]
    assert logprobs.grad.tolist() == pytest.approx(wanted, abs=1e-6)


def test_a_loss_of_weight_0_takes_its_rows_out() -> None:
    """No row of that origin is learned from, so no anchor acts on them."""
    bound = BOUND | {"policy": replace(BOUND["policy"], common=LossCommon(kind="ppo_clip", weight=0.0))}
    objective = Objective(losses=bound, anchors={"kl": KLConfig(coef=0.1)}, entropy_coef=0.1)
    columns = token_columns(anchors={"kl": POLICY - 1.0})
    weights = torch.where(columns.origins["policy"], 0.0, columns.weights)
    _, sums = microbatch_loss(token_scores(POLICY), replace(columns, weights=weights), objective)
    assert (sums["loss/policy"], sums["loss/kl"], sums["loss/entropy"]) == (0.0, 0.0, 0.0)
    assert sums["loss/total"] == pytest.approx(2.5)


def test_controllers_move_each_anchor() -> None:
    """By the section's name; an anchor of place reward is no term of the loss."""
    anchors = {"kl": KLConfig(), "kl_base": KLConfig(estimator="k1", place="reward")}
    moved = Objective(losses=BOUND, anchors=anchors).with_settings({"kl.coef": 0.2, "kl_base.coef": 0.4})
    assert (moved.anchors["kl"].coef, moved.anchors["kl_base"].coef) == (0.2, 0.4)
    held = {"kl": POLICY - math.log(2), "kl_base": POLICY - math.log(4)}
    _, sums = microbatch_loss(token_scores(POLICY), token_columns(anchors=held), moved)
    assert sums["loss/kl"] == pytest.approx(0.1 * (math.log(2) - 0.5)) and "loss/kl_base" not in sums


@pytest.mark.parametrize("cut", range(6))
def test_cutting_the_microbatch_changes_nothing(cut: int) -> None:
    """Loss and gradient add over microbatches, an empty one included."""
    logprobs = POLICY.clone().requires_grad_()
    parts = (slice(0, cut), slice(cut, None))
    losses = [
        microbatch_loss(
            token_scores(logprobs[part]), token_columns(part), Objective(losses=BOUND, anchors={})
        )[0]
        for part in parts
    ]
    total = losses[0] + losses[1]
    total.backward()
    assert total.item() == pytest.approx(2.25)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.5, 0.25, 0.0, -0.5, -0.5])


def test_nothing_to_learn_stays_in_the_graph() -> None:
    """A padding microbatch: loss 0 with a backward, which every rank must run."""
    logprobs = torch.zeros(0, requires_grad=True)
    total, _ = microbatch_loss(
        token_scores(logprobs), token_columns(slice(0, 0)), Objective(losses=BOUND, anchors={})
    )
    total.backward()
    assert total.item() == 0.0 and logprobs.grad is not None
