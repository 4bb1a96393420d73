"""Self-distillation: divergences by hand, the support and its tail against full logits, clips, gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import distillation_cases
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from configs.kinds.losses import SdpoLossOptions
from trainer.losses.distillation import divergence, kl, over_words, sdpo
from trainer.losses.logprobs import score_tokens
from trainer.losses.per_token import LossInputs

torch.set_num_threads(1)
T, D, V = 6, 5, 13
ALPHAS = (0.0, 0.25, 0.5, 0.9, 1.0)


def test_by_hand() -> None:
    distillation_cases.check_kl()
    distillation_cases.check_divergence()
    distillation_cases.check_words()
    distillation_cases.check_loss()
    distillation_cases.check_teacher_columns()


def test_the_ends_are_not_the_limits() -> None:
    """The pitfall of alpha: the divergence goes to 0 with alpha; at alpha = 0 it is a KL of 0.144 nats."""
    policy, teacher = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    at_zero = divergence(policy, teacher, 0.0).item()
    assert at_zero == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    near = [divergence(policy, teacher, alpha).item() for alpha in (1e-1, 1e-2, 1e-3)]
    assert near[0] < at_zero / 5 and near[1] < near[0] / 5 and near[2] < near[1] / 5
    # For a small alpha it is alpha times the KL, and so for 1 - alpha.
    assert near[2] == pytest.approx(1e-3 * at_zero, rel=1e-2)
    at_one = divergence(policy, teacher, 1.0).item()
    assert divergence(policy, teacher, 0.999).item() == pytest.approx(1e-3 * at_one, rel=1e-2)


def model(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """hidden [T, D], weight [V, D], the teacher's hidden [T, D], targets [T], tau [T]."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, teacher = (torch.randn(n, D, generator=generator) for n in (T, V, T))
    targets = torch.randint(0, V, (T,), generator=generator)
    return hidden, weight, teacher, targets, torch.tensor([1.0, 0.5, 2.0] * (T // 3))


def plain_loss(policy_TV: Tensor, teacher_TV: Tensor, ids: list[int], alpha: float, tail: bool) -> Tensor:
    """The definition, word by word in float64: of one token, over `ids` and the rest as one more word."""
    p, q = policy_TV.double().exp(), teacher_TV.double().exp()
    rest = [word for word in range(V) if word not in ids]
    pairs = [(p[word], q[word]) for word in ids]
    if tail and rest:
        pairs.append((p[rest].sum(), q[rest].sum()))
    if not tail:
        sums = [sum(pair[side] for pair in pairs) for side in (0, 1)]
        pairs = [(pi / sums[0], qi / sums[1]) for pi, qi in pairs]
    total = torch.zeros((), dtype=torch.float64)
    for pi, qi in pairs:
        if alpha == 0:
            total = total + qi * (qi / pi).log()
        elif alpha == 1:
            total = total + pi * (pi / qi).log()
        else:
            m = (1 - alpha) * pi + alpha * qi
            total = total + (1 - alpha) * pi * (pi / m).log() + alpha * qi * (qi / m).log()
    return total


def both_ways(seed: int, k: int, alpha: float, tail: bool, chunk: int) -> tuple[list[Tensor], list[Tensor]]:
    """(losses, gradients of hidden and weight) by the head in chunks, and by autograd through all logits."""
    hidden, weight, teacher_hidden, targets, tau = model(seed)
    factors = torch.randn(T, generator=torch.Generator().manual_seed(seed + 1))
    found = score_tokens(hidden, weight, targets, tau, chunk, top_k=k)
    assert found.support_ids is not None and found.support_ids.shape == (T, min(k, V))
    ids = found.support_ids
    teacher = score_tokens(teacher_hidden, weight, targets, tau, chunk, support_Tk=ids).support
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    scores = score_tokens(h, w, targets, tau, chunk, support_Tk=ids)
    assert scores.support is not None and teacher is not None
    loss = divergence(over_words(scores.support, tail), over_words(teacher, tail), alpha)
    (loss * factors).sum().backward()
    h2, w2 = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    policy_TV = torch.log_softmax(h2 @ w2.T / tau[:, None], dim=1)
    teacher_TV = torch.log_softmax(teacher_hidden @ weight.T / tau[:, None], dim=1)
    wanted = torch.stack(
        [plain_loss(policy_TV[t], teacher_TV[t], ids[t].tolist(), alpha, tail) for t in range(T)]
    )
    (wanted * factors).sum().backward()
    assert h.grad is not None and w.grad is not None and h2.grad is not None and w2.grad is not None
    return [loss.detach(), h.grad, w.grad], [wanted.detach().float(), h2.grad, w2.grad]


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("k", "tail"), [(1, True), (4, True), (4, False), (V, True), (V, False), (50, True)])
@examples(5)
@given(seed=st.integers(0, 2**20), chunk=st.sampled_from([1, 4, T, 100]))
def test_against_full_logits(k: int, tail: bool, alpha: float, seed: int, chunk: int) -> None:
    """Values and gradients; k as large as the vocabulary, or larger, is the divergence over all of it."""
    for found, wanted in zip(*both_ways(seed, k, alpha, tail, chunk), strict=True):
        torch.testing.assert_close(found, wanted, atol=3e-5, rtol=2e-3)


def test_a_tail_of_nearly_nothing() -> None:
    """Logits 30, 0, 0: of one word asked for, the others have 2 exp(-30), which 1 - p would round to 0."""
    weight, hidden = torch.tensor([[30.0], [0.0], [0.0]]), torch.ones(1, 1, requires_grad=True)
    scores = score_tokens(hidden, weight, torch.tensor([0]), torch.ones(1), 8, support_Tk=torch.tensor([[0]]))
    assert scores.support is not None
    assert scores.support[0, 1].item() == pytest.approx(math.log(2) - 30, rel=1e-6)
    # d log tail / d hidden = (mean weight of the tail) - (mean weight) = 0 - 30.
    scores.support[0, 1].backward()
    assert hidden.grad is not None and hidden.grad.item() == pytest.approx(-30.0, rel=1e-6)


def test_nothing_is_asked_for() -> None:
    """Without a support the scores are those of before, bit for bit, and there are four of them."""
    hidden, weight, _, targets, tau = model(1)
    plain = score_tokens(hidden, weight, targets, tau, 4)
    assert plain.support is None and plain.support_ids is None
    asked = score_tokens(hidden, weight, targets, tau, 4, top_k=3)
    assert all(torch.equal(one, other) for one, other in zip(plain[:4], asked[:4], strict=True))
    none = score_tokens(hidden[:0], weight, targets[:0], tau[:0], 4, top_k=3)
    assert none.support is not None and none.support.shape == (0, 4)


def test_the_ids_are_the_likeliest() -> None:
    hidden, weight, _, targets, tau = model(2)
    scores = score_tokens(hidden, weight, targets, tau, 4, top_k=3)
    logp = torch.log_softmax(hidden @ weight.T / tau[:, None], dim=1)
    assert scores.support_ids is not None and scores.support is not None
    assert scores.support_ids.tolist() == logp.argsort(1, descending=True)[:, :3].tolist()
    torch.testing.assert_close(scores.support[:, :3], logp.sort(1, descending=True).values[:, :3])
    torch.testing.assert_close(scores.support.exp().sum(1), torch.ones(T))


def test_weights_carry_no_gradient() -> None:
    """Only the policy's distribution does: neither the ratio's weight nor the teacher."""
    inputs = distillation_cases.inputs()
    policy = inputs.policy_logprobs.clone().requires_grad_()
    support = inputs.support.clone().requires_grad_() if inputs.support is not None else None
    teacher = inputs.teacher.clone().requires_grad_() if inputs.teacher is not None else None
    assert support is not None and teacher is not None
    changed = replace(inputs, policy_logprobs=policy, support=support, teacher=teacher.detach())
    sdpo(changed, SdpoLossOptions()).loss.sum().backward()
    assert policy.grad is None and support.grad is not None and bool(support.grad.any())


def test_divergences_are_never_negative_and_0_for_equals() -> None:
    generator = torch.Generator().manual_seed(3)
    one, other = (torch.log_softmax(3 * torch.randn(50, 7, generator=generator), 1) for _ in range(2))
    for alpha in ALPHAS:
        assert float(divergence(one, other, alpha).min()) > 0
        torch.testing.assert_close(divergence(one, one, alpha), torch.zeros(50), atol=1e-6, rtol=0)
    assert isinstance(distillation_cases.inputs(), LossInputs) and kl(one, one).abs().max() == 0
