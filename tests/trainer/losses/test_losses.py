"""PPO's clip to either old policy, and nll: numbers by hand, a scalar loop, finite differences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import reference_losses as papers
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import loss_inputs
from torch import Tensor

from configs.kinds.losses import NllOptions, PpoClipOptions
from trainer.losses.per_token import LossInputs, nll, ppo_clip, ratio

torch.set_num_threads(1)
OPTIONS = PpoClipOptions(clip_low=0.2, clip_high=0.3)
TO_BEHAVIOR = PpoClipOptions(clip_low=0.2, clip_high=0.3, ratio_to="behavior")


def ppo_loss(inputs: LossInputs, options: PpoClipOptions) -> Tensor:
    return ppo_clip(inputs, options).loss


LOGPROBS = st.floats(-10, 0)
ADVANTAGES = st.floats(-5, 5)


@given(st.lists(st.tuples(LOGPROBS, LOGPROBS, ADVANTAGES), min_size=1, max_size=6))
def test_ppo_against_the_scalar_loop(tokens: list[tuple[float, float, float]]) -> None:
    """Each token alone gives what the vector gives: nothing is averaged or masked here."""
    policy, proximal, advantages = (list(column) for column in zip(*tokens, strict=True))
    found = ppo_loss(loss_inputs(policy, proximal, advantages), OPTIONS)
    wanted = [papers.ppo(*token, 0.2, 0.3) for token in tokens]
    assert found.tolist() == pytest.approx(wanted, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("options", [OPTIONS, TO_BEHAVIOR], ids=["proximal", "behavior"])
@given(policy=LOGPROBS, drift=st.floats(-1, 1), advantage=ADVANTAGES)
def test_gradient_against_finite_differences(
    options: PpoClipOptions, policy: float, drift: float, advantage: float
) -> None:
    """To either old policy, away from the two kinks of the clip, where no derivative exists."""
    r = math.exp(drift)
    if min(abs(r - 0.8), abs(r - 1.3)) < 1e-3:
        return
    old, step = policy - drift, 1e-6
    inputs = loss_inputs([policy], [old], [advantage], to=options.ratio_to)
    (grad,) = torch.autograd.grad(ppo_loss(inputs, options).sum(), inputs.policy_logprobs)
    up, down = (papers.ppo(policy + s * step, old, advantage, 0.2, 0.3) for s in (1, -1))
    assert grad.item() == pytest.approx((up - down) / (2 * step), abs=1e-4)


def replayed(policy: list[float], behavior: list[float], advantages: list[float]) -> LossInputs:
    """Tokens of older weights: the proximal logprobs are the policy's own, the behavior's are given."""
    inputs = loss_inputs(policy, policy, advantages)
    return replace(inputs, behavior_logprobs=torch.tensor(behavior, dtype=torch.float64))


def test_the_ratio_to_the_sampler_by_hand() -> None:
    """The sampler gave 1/2, 1/4 and 1/2 where the policy gives 1/4, 1/2 and 9/20: ratios 1/2, 2 and 9/10.

    With A = 2, -1, 1: min picks 1/2 x 2, 2 x -1 and 9/10 x 1. To the proximal policy all ratios are 1.
    """
    policy, behavior = [math.log(p) for p in (0.25, 0.5, 0.45)], [math.log(p) for p in (0.5, 0.25, 0.5)]
    inputs = replayed(policy, behavior, [2.0, -1.0, 1.0])
    loss = ppo_loss(inputs, TO_BEHAVIOR)
    (grad,) = torch.autograd.grad(loss.sum(), inputs.policy_logprobs)
    assert loss.tolist() == pytest.approx([-1.0, 2.0, -0.9])
    assert grad.tolist() == pytest.approx([-1.0, 2.0, -0.9])
    assert ppo_loss(inputs, OPTIONS).tolist() == pytest.approx([-2.0, 1.0, -1.0])


def test_the_ratio_to_the_sampler_is_unbiased() -> None:
    """Summed over all tokens with the sampler's chances, r A has the gradient of the policy's mean reward.

    With A log pi instead (the ratio to the proximal policy, which is 1) it has another.
    """
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    sampler = torch.tensor([0.35, 0.30, 0.35], dtype=torch.float64)
    reward = torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64)
    policy = torch.log_softmax(logits, 0)
    (wanted,) = torch.autograd.grad((policy.exp() * reward).sum(), logits, retain_graph=True)
    wide = {"clip_low": 0.9, "clip_high": 9.0}
    gradients = {}
    for old in ("proximal", "behavior"):
        inputs = replace(
            replayed([0.0] * 3, sampler.log().tolist(), reward.tolist()),
            policy_logprobs=policy,
            proximal_logprobs=policy.detach(),
        )
        loss = (sampler * ppo_loss(inputs, PpoClipOptions(**wide, ratio_to=old))).sum()
        (gradients[old],) = torch.autograd.grad(-loss, logits, retain_graph=True)
    assert gradients["behavior"].tolist() == pytest.approx(wanted.tolist())
    assert (gradients["proximal"] - wanted).abs().max() > 0.01


@given(st.lists(st.tuples(LOGPROBS, LOGPROBS, ADVANTAGES), min_size=1, max_size=6), LOGPROBS)
def test_only_the_chosen_old_logprobs_count(tokens: list[tuple[float, float, float]], other: float) -> None:
    """Each option ignores the other's column, and both agree where the columns do."""
    policy, old, advantages = (list(column) for column in zip(*tokens, strict=True))
    to_behavior = replayed(policy, old, advantages)
    elsewhere = torch.full_like(to_behavior.behavior_logprobs, other)
    found = ppo_loss(to_behavior, TO_BEHAVIOR)
    assert torch.equal(found, ppo_loss(replace(to_behavior, proximal_logprobs=elsewhere), TO_BEHAVIOR))
    to_proximal = loss_inputs(policy, old, advantages)
    assert torch.equal(found, ppo_loss(to_proximal, OPTIONS))
    assert torch.equal(found, ppo_loss(replace(to_proximal, behavior_logprobs=elsewhere), OPTIONS))


def test_no_sampler_no_ratio() -> None:
    """A token without behavior logprob must not silently get the proximal policy's."""
    with pytest.raises(AssertionError, match="learned tokens have behavior logprobs"):
        ppo_loss(replayed([-1.0, -1.0], [-1.0, math.nan], [1.0, 1.0]), TO_BEHAVIOR)


def test_nll() -> None:
    """-log pi and a gradient of -1, whatever the advantages and even without proximal logprobs."""
    inputs = loss_inputs([-0.5, -3.0], [math.nan, math.nan], [math.nan, math.nan])
    loss = nll(inputs, NllOptions())
    (grad,) = torch.autograd.grad(loss.sum(), inputs.policy_logprobs)
    assert loss.tolist() == [0.5, 3.0] and grad.tolist() == [-1.0, -1.0]


def test_a_stray_token_cannot_overflow() -> None:
    """exp(1000) is inf; clamped to exp(20) = 4.85e8 the loss of the other tokens stays finite."""
    found = ratio(torch.tensor([0.0, -1000.0]), torch.tensor([-1000.0, 0.0]))
    assert found.tolist() == pytest.approx([math.exp(20), math.exp(-20)])
