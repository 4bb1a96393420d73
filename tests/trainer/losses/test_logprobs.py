"""Chunked token scores against the plain softmax, in float64, with autograd and finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.losses.logprobs import TokenScores, _entropy, score_tokens

torch.set_num_threads(1)
T, D, V = 7, 5, 11


def inputs(seed: int = 0, tau: tuple[float, ...] = (1.0, 0.5, 2.0)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden [T, D], weight [V, D], targets [T], tau [T], cycling through `tau`."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(T, D, generator=generator)
    weight = torch.randn(V, D, generator=generator)
    targets = torch.randint(0, V, (T,), generator=generator)
    return hidden, weight, targets, torch.tensor([tau[i % len(tau)] for i in range(T)])


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, tau: Tensor, clamp: float = 0.0) -> TokenScores:
    """The definition, written out for the whole [T, V] matrix in float64; the clamped entropy row by row."""
    logits = hidden.double() @ weight.double().T
    logp, logp_t1 = (logits / tau.double()[:, None]).log_softmax(-1), logits.log_softmax(-1)
    chosen = logp[torch.arange(len(targets)), targets]
    entropy, entropy_t1 = -(logp.exp() * logp).sum(-1), -(logp_t1.exp() * logp_t1).sum(-1)
    clamped = []
    for row in logp:
        likely = row.exp()[row.argsort(descending=True)[: len(row) - int(clamp * len(row))]]
        q = likely / likely.sum()
        clamped.append(-(q * q.log()).sum())
    return TokenScores(chosen, entropy, entropy_t1, torch.stack(clamped))


@pytest.mark.parametrize("chunk", [1, 3, T, 100])
@pytest.mark.parametrize("tau", [(1.0,), (0.7,), (1.0, 0.5, 2.0)])
@pytest.mark.parametrize("clamp", [0.0, 0.3, 0.95])
def test_values(chunk: int, tau: tuple[float, ...], clamp: float) -> None:
    """Logprob, entropy at tau, at 1 and clamped, for any chunk size and a temperature per token.

    Of 11 entries a clamp of 0.3 keeps 8 and one of 0.95 one, whose entropy is 0.
    """
    given_inputs = inputs(tau=tau)
    pairs = zip(score_tokens(*given_inputs, chunk, clamp)[:4], plain(*given_inputs, clamp)[:4], strict=True)
    for found, wanted in pairs:
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wanted, atol=2e-6, rtol=2e-6)


def test_known_numbers() -> None:
    """Logits (0, ln 3) are (1/4, 3/4): logprob ln(3/4), entropy ln(4)/4 + 3 ln(4/3)/4 = .562335."""
    weight = torch.tensor([[0.0], [3.0]]).log().clamp_min(0)
    found = score_tokens(torch.ones(1, 1), weight, torch.tensor([1]), torch.ones(1), 8)
    assert found.logprobs.item() == pytest.approx(-0.2876821)
    assert found.entropy.item() == pytest.approx(0.5623351)
    assert found.entropy_clamped.item() == found.entropy.item()
    uniform = score_tokens(torch.zeros(1, 1), weight, torch.tensor([0]), torch.ones(1), 8)
    assert uniform.entropy.item() == pytest.approx(0.6931472)


def test_a_clamped_entropy_by_hand() -> None:
    """Probabilities 1/2, 1/4, 1/8, 1/16, 1/16 without the least two (clamp 0.4): 4/7, 2/7, 1/7 of entropy
    ln 7 - 10/7 ln 2 = .955700; without the least one (0.2), whichever of the two it is, 8/15, 4/15, 2/15 and
    1/15 of entropy ln 15 - 34/15 ln 2 = 1.136916. All have 15/8 ln 2 = 1.299651; a clamp of 0.1 drops none.
    """
    weight = torch.tensor([[0.5], [0.25], [0.125], [0.0625], [0.0625]]).log()
    for clamp, wanted in ((0.4, 0.9557), (0.2, 1.136916), (0.1, 1.299651)):
        found = score_tokens(torch.ones(1, 1), weight, torch.tensor([4]), torch.ones(1), 8, clamp)
        assert found.entropy_clamped.item() == pytest.approx(wanted, abs=2e-6)
        assert found.entropy.item() == pytest.approx(1.299651, abs=2e-6)


def gradients(
    score: Callable[..., TokenScores], which: int, seed: int, *options: float
) -> tuple[Tensor, Tensor]:
    """Gradients of a random combination of one output with respect to hidden and weight."""
    hidden, weight, targets, tau = inputs(seed)
    hidden.requires_grad_(), weight.requires_grad_()
    factors = torch.randn(T, generator=torch.Generator().manual_seed(seed + 1))
    (score(hidden, weight, targets, tau, *options)[:4][which] * factors).sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    return hidden.grad, weight.grad


@pytest.mark.parametrize("chunk", [1, 3, T])
@pytest.mark.parametrize(
    ("which", "clamp"),
    [(0, 0.0), (1, 0.0), (3, 0.0), (3, 0.3), (3, 0.7), (1, 0.3)],
    ids=["logprobs", "entropy", "clamp 0", "clamp 0.3", "clamp 0.7", "entropy beside a clamp"],
)
@examples(10)
@given(seed=st.integers(0, 2**20))
def test_gradients_against_autograd(chunk: int, which: int, clamp: float, seed: int) -> None:
    """The analytic backward of each output is autograd's through the plain definition."""
    pairs = zip(
        gradients(score_tokens, which, seed, chunk, clamp), gradients(plain, which, seed, clamp), strict=True
    )
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


def test_gradients_add_over_outputs() -> None:
    """A loss with an entropy term uses both at once: its gradient is the sum of the two."""
    hidden, weight, targets, tau = inputs()
    hidden.requires_grad_()
    scores = score_tokens(hidden, weight, targets, tau, 3, 0.3)
    mixed = scores.logprobs + 2 * scores.entropy + 4 * scores.entropy_clamped
    both = torch.autograd.grad(mixed.sum(), hidden, retain_graph=True)[0]
    parts = [torch.autograd.grad(scores[:4][k].sum(), hidden, retain_graph=True)[0] for k in (0, 1, 3)]
    torch.testing.assert_close(both, parts[0] + 2 * parts[1] + 4 * parts[2])


@pytest.mark.parametrize("which", [0, 1, 3], ids=["logprobs", "entropy", "clamped entropy"])
def test_gradients_against_finite_differences(which: int) -> None:
    """(f(h + e) - f(h - e)) / 2e of the definition, by coordinate: shares no code with autograd."""
    hidden, weight, targets, tau = inputs()
    grad = torch.autograd.grad(
        score_tokens(hidden.requires_grad_(), weight, targets, tau, 2, 0.3)[:4][which].sum(), hidden
    )[0]
    step = 1e-5
    for row in range(T):
        for column in range(D):
            moved = torch.zeros(T, D, dtype=torch.float64)
            moved[row, column] = step
            up, down = (
                plain(hidden.detach() + sign * moved, weight, targets, tau, 0.3)[:4][which].sum()
                for sign in (1, -1)
            )
            assert grad[row, column].item() == pytest.approx(((up - down) / (2 * step)).item(), abs=1e-4)


def test_entropy_at_one_is_a_measurement() -> None:
    """It has no gradient, so no loss can depend on it by mistake."""
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
    assert all(column.shape == (0,) and column.dtype == torch.float32 for column in scores[:4])
    scores.logprobs[:0].sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() == 0


def test_a_clamp_leaves_certain_tokens_finite() -> None:
    """Logits (1e4, 0, -1e4): for any clamp the entropy is 0, and so is its gradient."""
    weight = torch.tensor([[1e4], [0.0], [-1e4]])
    for clamp in (0.2, 0.4, 0.7):
        hidden = torch.ones(1, 1, requires_grad=True)
        scores = score_tokens(hidden, weight, torch.tensor([0]), torch.ones(1), 1, clamp)
        assert scores.entropy_clamped.tolist() == [0.0]
        scores.entropy_clamped.sum().backward()
        assert hidden.grad is not None and hidden.grad.item() == 0.0


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
