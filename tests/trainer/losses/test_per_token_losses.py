"""Policy losses: tables by hand, the papers' equations in floats, finite differences, degenerate tokens."""

from __future__ import annotations

import math
from dataclasses import replace

import loss_cases
import pytest
import reference_losses as papers
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import OPTIONS, TABLES, call, gradient, loss_inputs

from configs.kinds.losses import CeGppoOptions, CispoOptions, GppoOptions, GspoOptions, ShapedOptions
from trainer.losses.per_token import shaped

KINDS = sorted(TABLES)
LOW, HIGH, DUAL, BETAS = 0.2, 0.3, 3.0, (0.5, 0.75)
LOGPROBS = st.floats(-10, 0)
ADVANTAGES = st.floats(-5, 5)
TOKENS = st.lists(st.tuples(LOGPROBS, st.floats(-3, 3), ADVANTAGES), min_size=1, max_size=6)


def columns_of(tokens: list[tuple[float, float, float]]) -> tuple[list[float], list[float], list[float]]:
    """Policy and old logprobs and advantages, from (policy, policy - old, advantage)."""
    return [p for p, _, _ in tokens], [p - drift for p, drift, _ in tokens], [a for *_, a in tokens]


@pytest.mark.parametrize("kind", KINDS)
def test_regions_by_hand(kind: str) -> None:
    loss_cases.check_table(kind)


def test_a_row_is_clipped_as_a_whole() -> None:
    loss_cases.check_mean_by_row()
    loss_cases.check_gspo_rows()


def test_stray_tokens() -> None:
    loss_cases.check_stray_tokens()


def test_a_clamp_kills_no_gradient() -> None:
    loss_cases.check_far_tokens()
    loss_cases.check_gspo_far()
    loss_cases.check_clamp_value()


def test_which_old_logprobs_count() -> None:
    loss_cases.check_which_old()


def test_losses_without_a_ratio() -> None:
    loss_cases.check_shaped()
    loss_cases.check_advantage_nll()


@given(st.lists(st.tuples(st.floats(-12, 0), ADVANTAGES), min_size=1, max_size=6))
def test_shaped_against_finite_differences(tokens: list[tuple[float, float]]) -> None:
    """f(p) = p / (p + gamma) in plain floats, and its slope by a central difference in log p."""
    policy, advantages = [p for p, _ in tokens], [a for _, a in tokens]
    inputs = loss_inputs(policy, [math.nan] * len(tokens), advantages)
    found = shaped(inputs, ShapedOptions(gamma=0.25))

    def loss(logprob: float, advantage: float) -> float:
        return -advantage / (1.0 + 0.25 / math.exp(logprob))

    assert found.tolist() == pytest.approx([loss(p, a) for p, a in tokens], rel=1e-9, abs=1e-12)
    (grad,) = torch.autograd.grad(found.sum(), inputs.policy_logprobs)
    slopes = [(loss(p + 1e-5, a) - loss(p - 1e-5, a)) / 2e-5 for p, a in tokens]
    assert grad.tolist() == pytest.approx(slopes, rel=1e-5, abs=1e-8)


def from_paper(kind: str, policy: float, old: float, advantage: float, frozen: float) -> float:
    """The paper's loss of one token that is its own sequence."""
    if kind == "ppo_clip":
        return papers.ppo(policy, old, advantage, LOW, HIGH, DUAL)
    if kind == "gspo":
        return papers.gspo_token([policy], [old], [advantage], LOW, HIGH, [frozen])[0]
    if kind == "cispo":
        return papers.cispo(policy, old, advantage, LOW, HIGH, frozen)
    if kind == "gppo":
        return papers.gppo(policy, old, advantage, LOW, HIGH, DUAL, frozen)
    return papers.ce_gppo(policy, old, advantage, LOW, HIGH, BETAS, DUAL, frozen)


@pytest.mark.parametrize("kind", KINDS)
@given(tokens=TOKENS)
def test_against_the_paper_in_scalars(kind: str, tokens: list[tuple[float, float, float]]) -> None:
    """Each token alone gives the same as the vector: nothing is averaged or masked."""
    policy, old, advantages = columns_of(tokens)
    found = call(kind, loss_inputs(policy, old, advantages), OPTIONS[kind])
    wanted = [from_paper(kind, p, q, a, p) for p, q, a in zip(policy, old, advantages, strict=True)]
    assert found.loss.tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def at_a_kink(r: float) -> bool:
    """Where the derivative does not exist."""
    return min(abs(r - kink) for kink in (1 - LOW, 1 + HIGH, DUAL)) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
@given(policy=LOGPROBS, drift=st.floats(-2, 2), advantage=ADVANTAGES)
def test_gradient_against_finite_differences(
    kind: str, policy: float, drift: float, advantage: float
) -> None:
    """The paper's scalar changes by 1e-6 to both sides; what it stops the gradient of is constant."""
    if at_a_kink(math.exp(drift)):
        return
    old, step = policy - drift, 1e-6
    inputs = loss_inputs([policy], [old], [advantage])
    found = gradient(call(kind, inputs, OPTIONS[kind]), inputs)
    up, down = (from_paper(kind, policy + way * step, old, advantage, policy) for way in (1, -1))
    wanted = (up - down) / (2 * step)
    assert found.item() == pytest.approx(wanted, abs=1e-4)


@given(
    st.lists(st.tuples(LOGPROBS, st.floats(-1, 1)), min_size=1, max_size=5),
    ADVANTAGES,
)
def test_gspo_averages_to_the_sequence(tokens: list[tuple[float, float]], advantage: float) -> None:
    """sequence_mean of the token form: the loss of the sequence, and its gradient by finite differences."""
    policy, old = [p for p, _ in tokens], [p - d for p, d in tokens]
    inputs = loss_inputs(policy, old, [advantage] * len(tokens), rows=[7] * len(tokens))
    found = call("gspo", inputs, OPTIONS["gspo"])
    grads = gradient(found, inputs) / len(tokens)
    assert found.loss.mean().item() == pytest.approx(
        papers.gspo_sequence(policy, old, advantage, LOW, HIGH), rel=1e-9, abs=1e-9
    )
    s = math.exp(sum(d for _, d in tokens) / len(tokens))
    if at_a_kink(s):
        return
    for place, grad in enumerate(grads.tolist()):
        moved = [
            papers.gspo_sequence(
                [p + way * 1e-6 * (at == place) for at, p in enumerate(policy)], old, advantage, LOW, HIGH
            )
            for way in (1, -1)
        ]
        assert grad == pytest.approx((moved[0] - moved[1]) / 2e-6, abs=1e-4)


@given(TOKENS, st.lists(st.integers(0, 2), min_size=6, max_size=6))
def test_gspo_rows_are_independent(tokens: list[tuple[float, float, float]], rows: list[int]) -> None:
    """Independent of other rows in the microbatch, and per-token advantages as in GSPO-token."""
    policy, old, advantages = columns_of(tokens)
    rows = rows[: len(tokens)]
    found = call("gspo", loss_inputs(policy, old, advantages, rows), OPTIONS["gspo"]).loss.tolist()
    for row in set(rows):
        mine = [at for at, other in enumerate(rows) if other == row]
        part = [[column[at] for at in mine] for column in (policy, old, advantages)]
        wanted = papers.gspo_token(part[0], part[1], part[2], LOW, HIGH)
        assert [found[at] for at in mine] == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@given(TOKENS)
def test_gppo_is_ce_gppo_with_both_betas_one(tokens: list[tuple[float, float, float]]) -> None:
    """Its value, but not its gradient, equals PPO's."""
    policy, old, advantages = columns_of(tokens)
    inputs = loss_inputs(policy, old, advantages)
    gppo = call("gppo", inputs, GppoOptions(dual_clip=3.0))
    both = call("ce_gppo", inputs, CeGppoOptions(beta_low=1.0, beta_high=1.0, dual_clip=3.0))
    assert torch.equal(gppo.loss, both.loss)
    assert torch.equal(gradient(gppo, inputs), gradient(both, inputs))
    clipped = call("ppo_clip", inputs, replace(OPTIONS["ppo_clip"], clip_high=0.2))
    assert gppo.loss.tolist() == pytest.approx(clipped.loss.tolist())


@given(TOKENS)
def test_gppo_above_has_the_gradient_of_cispo(tokens: list[tuple[float, float, float]]) -> None:
    """Where A > 0, and r is not below the lower bound, which CISPO holds as well."""
    inputs = loss_inputs(*columns_of([(p, abs(d), abs(a)) for p, d, a in tokens]))
    one = gradient(call("gppo", inputs, GppoOptions()), inputs)
    other = gradient(call("cispo", inputs, CispoOptions(clip_low=0.2, clip_high=0.2)), inputs)
    assert one.tolist() == pytest.approx(other.tolist(), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@given(policy=st.lists(LOGPROBS, min_size=1, max_size=5), advantage=ADVANTAGES)
def test_on_policy_all_have_the_plain_gradient(kind: str, policy: list[float], advantage: float) -> None:
    """At r = 1 every one of them is -A on log pi."""
    inputs = loss_inputs(policy, policy, [advantage] * len(policy), rows=[0] * len(policy))
    found = gradient(call(kind, inputs, type(OPTIONS[kind])()), inputs)
    assert found.tolist() == pytest.approx([-advantage] * len(policy))


WILD = st.floats(-1e4, 0, width=32)


@pytest.mark.parametrize("kind", KINDS)
@given(
    tokens=st.lists(
        st.tuples(WILD, WILD, st.just(0.0) | st.floats(-1e3, 1e3, width=32), st.integers(0, 2)), max_size=6
    )
)
def test_degenerate_tokens(kind: str, tokens: list[tuple[float, float, float, int]]) -> None:
    """Float32, no tokens at all, logprobs 10,000 apart: finite; where the advantage is 0, loss and gradient
    are 0.
    """
    columns = [list(column) for column in zip(*tokens, strict=True)] or [[], [], [], []]
    exact = loss_inputs(columns[0], columns[1], columns[2], columns[3])
    policy = exact.policy_logprobs.detach().float().requires_grad_()
    inputs = replace(
        exact,
        policy_logprobs=policy,
        proximal_logprobs=exact.proximal_logprobs.float(),
        advantages=exact.advantages.float(),
    )
    found = call(kind, inputs, type(OPTIONS[kind])())
    grad = gradient(found, inputs)
    assert found.loss.dtype == torch.float32 and found.loss.shape == grad.shape == (len(tokens),)
    assert found.loss.isfinite().all() and grad.isfinite().all()
    flat = inputs.advantages == 0
    assert not found.loss[flat].any() and not grad[flat].any()
    assert all(mark.dtype == torch.bool and mark.shape == (len(tokens),) for mark in found.marks.values())


def test_published_defaults() -> None:
    """The defaults of a config that gives only the kind."""
    assert (GspoOptions().clip_low, GspoOptions().clip_high) == (3e-4, 4e-4)
    assert (CispoOptions().clip_low, CispoOptions().clip_high) == (1.0, 4.0)
    assert (CeGppoOptions().beta_low, CeGppoOptions().beta_high, CeGppoOptions().dual_clip) == (
        0.5,
        1.0,
        10.0,
    )
