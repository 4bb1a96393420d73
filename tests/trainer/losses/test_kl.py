"""KL estimators: known numbers, signs, and what they are estimates of."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.losses.kl import ESTIMATORS, k1, k2, k3

torch.set_num_threads(1)
LOGPROBS = st.floats(-30, 0)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_known_numbers() -> None:
    """policy 1/2, reference 1/4: d = k1 = ln 2 = 0.693147, k2 = d^2 / 2 = 0.240227, k3 = d - 1/2 = 0.193147.

    With the two exchanged d = -ln 2: k1 = -0.693147, k2 the same, k3 = 2 - 1 - ln 2 = 0.306853.
    """
    policy, ref = tensor(0.5, 0.25).log(), tensor(0.25, 0.5).log()
    assert k1(policy, ref).tolist() == pytest.approx([0.6931472, -0.6931472])
    assert k2(policy, ref).tolist() == pytest.approx([0.2402265, 0.2402265])
    assert k3(policy, ref).tolist() == pytest.approx([0.1931472, 0.3068528])
    assert set(ESTIMATORS) == {"k1", "k2", "k3"}


@given(LOGPROBS, LOGPROBS)
def test_k3_is_never_negative(policy: float, ref: float) -> None:
    """Also in float32, as used; zero where the two are equal."""
    assert k3(torch.tensor([policy]), torch.tensor([ref])).item() >= 0.0
    assert k3(torch.tensor([policy]), torch.tensor([policy])).item() == 0.0


@given(LOGPROBS, LOGPROBS)
def test_against_the_scalar_equations(policy: float, ref: float) -> None:
    """The definitions in Python floats (k3's exponent clamped to 20)."""
    d = policy - ref
    found = [estimate(tensor(policy), tensor(ref)).item() for estimate in (k1, k2, k3)]
    wanted = [d, d * d / 2, math.expm1(min(-d, 20.0)) - min(-d, 20.0)]
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3), st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_expectations(policy_logits: list[float], ref_logits: list[float]) -> None:
    """Under the policy, E[k1] = E[k3] = KL(policy || ref), and E[d k2 / d theta] is the KL's gradient."""
    theta = tensor(*policy_logits).requires_grad_()
    policy, ref = theta.log_softmax(0), tensor(*ref_logits).log_softmax(0)
    p = policy.exp()
    kl = (p * (policy - ref)).sum()
    for estimate in (k1, k3):
        assert (p * estimate(policy, ref)).sum().item() == pytest.approx(kl.item(), abs=1e-9)
    (wanted,) = torch.autograd.grad(kl, theta, retain_graph=True)
    (found,) = torch.autograd.grad((p.detach() * k2(policy, ref)).sum(), theta, retain_graph=True)
    assert found.tolist() == pytest.approx(wanted.tolist(), abs=1e-9)
    (nothing,) = torch.autograd.grad((p.detach() * k1(policy, ref)).sum(), theta)
    assert nothing.tolist() == pytest.approx([0.0] * 3, abs=1e-9)


@given(LOGPROBS, st.floats(-15, 15))
def test_gradients_against_finite_differences(policy: float, drift: float) -> None:
    """d k1 = 1, d k2 = d, d k3 = 1 - exp(-d): checked by central differences of the functions themselves."""
    ref, step = policy - drift, 1e-5
    for estimate in (k1, k2, k3):
        at = tensor(policy).requires_grad_()
        (grad,) = torch.autograd.grad(estimate(at, tensor(ref)).sum(), at)
        up, down = (estimate(tensor(policy + s * step), tensor(ref)).item() for s in (1, -1))
        assert grad.item() == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-5)


def test_a_stray_token_cannot_overflow() -> None:
    """A reference logprob 1000 above the policy's would be exp(1000)."""
    policy = tensor(-1000.0).requires_grad_()
    found = k3(policy, tensor(0.0))
    assert found.item() == pytest.approx(math.expm1(20) - 20)
    (grad,) = torch.autograd.grad(found, policy)
    assert grad.item() == pytest.approx(1 - math.exp(20)), "the clamp is of the value alone"
