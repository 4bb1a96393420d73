"""Chunked token scores against the plain softmax, in float64, with autograd and finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.logprobs import TokenScores, _entropy, score_tokens

torch.set_num_threads(1)
T, D, V = 7, 5, 11


def inputs(seed: int = 0, tau: tuple[float, ...] = (1.0, 0.5, 2.0)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden [T, D], weight [V, D], targets [T], tau [T], cycling through `tau`."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(T, D, generator=generator)
    weight = torch.randn(V, D, generator=generator)
    targets = torch.randint(0, V, (T,), generator=generator)
    return hidden, weight, targets, torch.tensor([tau[i % len(tau)] for i in range(T)])


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, tau: Tensor) -> TokenScores:
    """The definition, written out for the whole [T, V] matrix in float64."""
    logits = hidden.double() @ weight.double().T
    logp, logp_t1 = (logits / tau.double()[:, None]).log_softmax(-1), logits.log_softmax(-1)
    chosen = logp[torch.arange(len(targets)), targets]
    return TokenScores(chosen, -(logp.exp() * logp).sum(-1), -(logp_t1.exp() * logp_t1).sum(-1))


@pytest.mark.parametrize("chunk", [1, 3, T, 100])
@pytest.mark.parametrize("tau", [(1.0,), (0.7,), (1.0, 0.5, 2.0)])
def test_values(chunk: int, tau: tuple[float, ...]) -> None:
    """Logprob, entropy at tau and entropy at 1, whatever the chunk and with a temperature per token."""
    given_inputs = inputs(tau=tau)
    for found, wanted in zip(score_tokens(*given_inputs, chunk), plain(*given_inputs), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wanted, atol=2e-6, rtol=2e-6)


def test_known_numbers() -> None:
    """Logits (0, ln 3) are (1/4, 3/4): logprob ln(3/4), entropy ln(4)/4 + 3 ln(4/3)/4 = .562335."""
    weight = torch.tensor([[0.0], [3.0]]).log().clamp_min(0)
    found = score_tokens(torch.ones(1, 1), weight, torch.tensor([1]), torch.ones(1), 8)
    assert found.logprobs.item() == pytest.approx(-0.2876821)
    assert found.entropy.item() == pytest.approx(0.5623351)
    uniform = score_tokens(torch.zeros(1, 1), weight, torch.tensor([0]), torch.ones(1), 8)
    assert uniform.entropy.item() == pytest.approx(0.6931472)


def gradients(score: Callable[..., TokenScores], which: int, seed: int, *chunk: int) -> tuple[Tensor, Tensor]:
    """Gradients of a random combination of one output with respect to hidden and weight."""
    hidden, weight, targets, tau = inputs(seed)
    hidden.requires_grad_(), weight.requires_grad_()
    factors = torch.randn(T, generator=torch.Generator().manual_seed(seed + 1))
    (score(hidden, weight, targets, tau, *chunk)[which] * factors).sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    return hidden.grad, weight.grad


@pytest.mark.parametrize("chunk", [1, 3, T])
@pytest.mark.parametrize("which", [0, 1], ids=["logprobs", "entropy"])
@settings(max_examples=10)
@given(seed=st.integers(0, 2**20))
def test_gradients_against_autograd(chunk: int, which: int, seed: int) -> None:
    """The analytic backward of either output is autograd's through the plain definition."""
    for found, wanted in zip(
        gradients(score_tokens, which, seed, chunk), gradients(plain, which, seed), strict=True
    ):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


def test_gradients_add_over_outputs() -> None:
    """A loss with an entropy term uses both at once: its gradient is the sum of the two."""
    hidden, weight, targets, tau = inputs()
    hidden.requires_grad_()
    scores = score_tokens(hidden, weight, targets, tau, 3)
    both = torch.autograd.grad((scores.logprobs + 2 * scores.entropy).sum(), hidden, retain_graph=True)[0]
    parts = [torch.autograd.grad(scores[k].sum(), hidden, retain_graph=True)[0] for k in (0, 1)]
    torch.testing.assert_close(both, parts[0] + 2 * parts[1])


@pytest.mark.parametrize("which", [0, 1], ids=["logprobs", "entropy"])
def test_gradients_against_finite_differences(which: int) -> None:
    """(f(h + e) - f(h - e)) / 2e of the definition, by coordinate: shares no code with autograd."""
    hidden, weight, targets, tau = inputs()
    grad = torch.autograd.grad(
        score_tokens(hidden.requires_grad_(), weight, targets, tau, 2)[which].sum(), hidden
    )[0]
    step = 1e-5
    for row in range(T):
        for column in range(D):
            moved = torch.zeros(T, D, dtype=torch.float64)
            moved[row, column] = step
            up, down = (
                plain(hidden.detach() + sign * moved, weight, targets, tau)[which].sum() for sign in (1, -1)
            )
            assert grad[row, column].item() == pytest.approx(((up - down) / (2 * step)).item(), abs=1e-4)


def test_entropy_at_one_is_a_measurement() -> None:
    """It carries no gradient, so no loss can depend on it by mistake."""
    hidden, weight, targets, tau = inputs()
    scores = score_tokens(hidden.requires_grad_(), weight, targets, tau, 3)
    assert scores.logprobs.requires_grad and scores.entropy.requires_grad
    assert not scores.entropy_t1.requires_grad


def test_bf16_is_computed_in_float32() -> None:
    """With bf16 hidden states and weights only the inputs are rounded; gradients come back as bf16."""
    hidden, weight, targets, tau = inputs()
    hidden, weight = hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_()
    scores = score_tokens(hidden, weight, targets, tau, 3)
    wanted = plain(hidden, weight, targets, tau)
    torch.testing.assert_close(scores.logprobs.double(), wanted.logprobs, atol=2e-6, rtol=2e-6)
    scores.logprobs.sum().backward()
    exact = torch.autograd.grad(wanted.logprobs.sum(), [hidden, weight])
    for found, reference in zip((hidden.grad, weight.grad), exact, strict=True):
        assert found is not None and found.dtype == torch.bfloat16
        torch.testing.assert_close(found, reference, atol=2e-2, rtol=1e-2)


def test_no_tokens() -> None:
    """The padding microbatch of a ZeRO-3 rank: empty columns that still have a (zero) gradient."""
    hidden, weight = torch.zeros(0, D, requires_grad=True), torch.ones(V, D, requires_grad=True)
    scores = score_tokens(hidden, weight, torch.zeros(0, dtype=torch.long), torch.zeros(0), 3)
    assert all(column.shape == (0,) and column.dtype == torch.float32 for column in scores)
    scores.logprobs[:0].sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() == 0


def test_certain_and_impossible_tokens_stay_finite() -> None:
    """Probabilities that underflow to 0 add 0 to the entropy, not NaN, and give zero gradients.

    Logits (1e4, 0, -1e4): the first has probability 1, entropy is 0, the last has logprob -2e4.
    """
    hidden = torch.tensor([[1.0], [1.0]], requires_grad=True)
    weight = torch.tensor([[1e4], [0.0], [-1e4]], requires_grad=True)
    scores = score_tokens(hidden, weight, torch.tensor([0, 2]), torch.ones(2), 1)
    assert scores.logprobs.tolist() == [0.0, -2e4]
    assert scores.entropy.tolist() == [0.0, 0.0]
    scores.entropy.sum().backward()
    assert hidden.grad is not None and torch.equal(hidden.grad, torch.zeros(2, 1))


def test_entropy_of_a_banned_token() -> None:
    """A logprob of -inf is probability 0: (1/2, 1/2, 0) has entropy ln 2."""
    logp = torch.tensor([[0.5, 0.5, 0.0]]).log()
    assert _entropy(logp).item() == pytest.approx(0.6931472)
