"""Transforms of the advantage: by hand, the papers' equations in floats, in an objective, from a config."""

from __future__ import annotations

import loss_cases
import pytest
import reference_losses as papers
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import loss_inputs

from configs.bound import bind
from configs.errors import ConfigError
from configs.kinds.base import Kind, Options
from configs.kinds.losses import LOSSES, LossCommon, PpoClipOptions
from configs.kinds.token_advantages import (
    TOKEN_ADVANTAGES,
    PositiveReweightOptions,
    RepoOptions,
    RepoROptions,
)
from configs.load import load_config
from configs.schema import KLConfig
from trainer.losses.logprobs import TokenScores
from trainer.losses.per_token import LossInputs
from trainer.metrics import update_metrics
from trainer.objective import BoundLoss, Objective, TokenColumns, microbatch_loss
from trainer.token_advantages.transforms import (
    BoundTransform,
    TokenTransform,
    apply_transforms,
    bound_transforms,
    positive_reweight,
    repo,
    repo_r,
)

torch.set_num_threads(1)
SHAPE = "token_advantage.mine={kind: repo_r}"


@pytest.mark.parametrize("name", loss_cases.TRANSFORM_CHECKS)
def test_by_hand(name: str) -> None:
    for check in loss_cases.TRANSFORM_CHECKS[name]:
        check()


@given(
    st.lists(st.tuples(st.floats(-10, 0), st.just(0.0) | st.floats(-5, 5)), max_size=6),
    st.floats(0, 3),
)
def test_against_the_papers_in_scalars(tokens: list[tuple[float, float]], amount: float) -> None:
    """Token by token; no gradient; finite; and 0 stays 0 except for REPO, which acts there too."""
    logprobs, advantages = [p for p, _ in tokens], [a for _, a in tokens]
    inputs = loss_inputs(logprobs, logprobs, advantages)
    reweighted = positive_reweight(inputs, PositiveReweightOptions(weight=amount))
    pushed, scaled = repo(inputs, RepoOptions(beta=amount)), repo_r(inputs, RepoROptions(zeta=amount))
    assert reweighted.tolist() == [papers.positive_reweight(a, amount) for a in advantages]
    assert pushed.tolist() == pytest.approx([papers.repo(a, p, amount) for p, a in tokens])
    assert scaled.tolist() == pytest.approx([papers.repo_r(a, p, amount) for p, a in tokens])
    for found in (reweighted, pushed, scaled):
        assert found.isfinite().all() and not found.requires_grad
    flat = inputs.advantages == 0
    assert not reweighted[flat].any() and not scaled[flat].any()


def bound(kind: str, options: object) -> BoundTransform:
    return BoundTransform(kind=TOKEN_ADVANTAGES[kind], options=options)


HALF = {"pos": bound("positive_reweight", PositiveReweightOptions(weight=0.5))}
THEN = HALF | {"push": bound("repo_r", RepoROptions(zeta=0.25))}


def objective(shapes: dict[str, BoundTransform], origin: str = "policy") -> Objective:
    common = LossCommon(kind="ppo_clip")
    loss = BoundLoss(common=common, kind=LOSSES["ppo_clip"], options=PpoClipOptions())
    return Objective(losses={origin: loss}, anchors={"kl": KLConfig()}, transforms=shapes)


def loss_and_gradient(found: Objective, origin: str = "policy") -> list[float]:
    """Loss and gradients of two on-policy tokens: logprobs -2 and -4, advantages 2 and -1, weights 1/2."""
    logprobs = torch.tensor([-2.0, -4.0], requires_grad=True)
    unknown = torch.full((2,), float("nan"))
    columns = TokenColumns(
        proximal_logprobs=logprobs.detach(),
        behavior_logprobs=unknown,
        anchor_logprobs={},
        advantages=torch.tensor([2.0, -1.0]),
        weights=torch.tensor([0.5, 0.5]),
        rows=torch.tensor([0, 1]),
        origins={origin: torch.tensor([True, True])},
        token_ids=torch.zeros(2, dtype=torch.long),
        positions=torch.zeros(2, dtype=torch.long),
        prepared={},
    )
    total, _ = microbatch_loss(TokenScores(logprobs, unknown, unknown, unknown), columns, found)
    total.backward()
    assert logprobs.grad is not None
    return [total.item(), *logprobs.grad.tolist()]


def test_in_an_objective_by_hand() -> None:
    """On policy the gradient is -A'/2. Halved: A' = 1, -1. Then + |A'| x 2/4 and 4/4: 1.5 and 0."""
    assert loss_and_gradient(objective({})) == pytest.approx([-0.5, -1.0, 0.5])
    assert loss_and_gradient(objective(HALF)) == pytest.approx([0.0, -0.5, 0.5])
    assert loss_and_gradient(objective(THEN)) == pytest.approx([-0.75, -0.75, 0.0])


def test_only_rows_of_the_policy_are_shaped() -> None:
    plain = loss_and_gradient(objective({}, "replay"), "replay")
    assert loss_and_gradient(objective(THEN, "replay"), "replay") == pytest.approx(plain)


def test_a_controller_reaches_them() -> None:
    """token_advantage.<name>.<option>; the original objective does not change."""
    start = objective(THEN)
    settings = {
        "token_advantage.pos.weight": 1.0,
        "token_advantage.push.zeta": 0.0,
        "loss.policy.clip_low": 0.1,
    }
    moved = start.with_settings(settings)
    assert loss_and_gradient(moved) == pytest.approx([-0.5, -1.0, 0.5])
    assert moved.losses["policy"].options.clip_low == 0.1
    assert loss_and_gradient(start) == pytest.approx([-0.75, -0.75, 0.0])
    for key in (
        "token_advantage.nobody.weight",
        "token_advantage.pos.zeta",
        "token_advantage.pos",
        "loss.nobody.clip_low",
    ):
        with pytest.raises(ValueError, match="must be a number of the objective"):
            start.with_settings({key: 1.0})


def test_from_a_config() -> None:
    """In the config's order, with the kinds' defaults."""
    overrides = [
        "token_advantage.push={kind: repo, beta: 0.02}",
        "token_advantage.pos={kind: positive_reweight}",
    ]
    shapes = bound_transforms(bind(load_config("debug", overrides)))
    assert list(shapes) == ["push", "pos"]
    assert shapes["push"].options == RepoOptions(beta=0.02)
    assert shapes["pos"].options == PositiveReweightOptions(weight=0.5)
    assert bound_transforms(bind(load_config("debug"))) == {}


def doubled(inputs: object, options: object) -> torch.Tensor:
    return 2 * inputs.advantages  # type: ignore[attr-defined, no-any-return]


def test_own_code_is_a_shape_too() -> None:
    shapes = {"mine": BoundTransform(kind=Kind(Options, "test_transforms:doubled"), options=None)}
    found, _ = apply_transforms(loss_inputs([-1.0], [-1.0], [3.0]), shapes, {})
    assert found.advantages.tolist() == [6.0]


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["token_advantage.mine={kind: repo, beta: -1}"], "must not be negative"),
        (["token_advantage.mine={kind: repo_r, zeta: -1}"], "must not be negative"),
        (["token_advantage.mine={kind: positive_reweight, weight: -1}"], "must not be negative"),
        (["token_advantage.mine={kind: rep}"], "must be one of positive_reweight, repo, repo_r, "),
        ([SHAPE, "loss.policy.kind=nll"], "nll does not"),
        (["loss.policy.dual_clip=1"], "must be 0 \\(off\\) or above 1"),
        (["loss.policy.dual_clip=-3"], "must be 0 \\(off\\) or above 1"),
        (["loss.policy={kind: ce_gppo, beta_low: -1, ratio_to: behavior}"], "must not be negative"),
        (["loss.policy.kind=gspo"], "gspo needs learner.updates_per_step above 1 or ratio_to: behavior"),
        (["loss.policy={kind: gppo, clip_low: 0, ratio_to: behavior}"], "must be above 0"),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        load_config("debug", overrides)


@pytest.mark.parametrize("kind", ["gspo", "cispo", "gppo", "ce_gppo"])
def test_ratios_that_can_differ_from_one_are_allowed(kind: str) -> None:
    """More than one update per step, or a ratio to the sampler."""
    load_config("debug", [f"loss.policy.kind={kind}", "learner.updates_per_step=2"])
    load_config("debug", [f"loss.policy={{kind: {kind}, ratio_to: behavior}}"])


def test_what_a_shape_found_reaches_its_tokens_and_its_marks_the_sums() -> None:
    """In an objective: A = 2, + 100 prepared + token 30 + position 5, times the weight 1/2; marked once.

    The second token has weight 0: the transform does not get it.
    """
    kind = Kind(Options, "test_transforms:add_seen", prepare="loss_cases:note_advantage")
    found = objective({"mine": BoundTransform(kind=kind, options=None)})
    logprobs = torch.tensor([-2.0, -4.0], requires_grad=True)
    zeros = torch.zeros(2)
    columns = TokenColumns(
        proximal_logprobs=logprobs.detach(),
        behavior_logprobs=zeros,
        anchor_logprobs={},
        advantages=torch.tensor([2.0, -1.0]),
        weights=torch.tensor([0.5, 0.0]),
        rows=torch.tensor([0, 1]),
        origins={"policy": torch.tensor([True, True])},
        token_ids=torch.tensor([30, 40]),
        positions=torch.tensor([5, 6]),
        prepared={"token_advantage.mine": {"seen": torch.tensor([100.0, 200.0])}},
    )
    total, sums = microbatch_loss(TokenScores(logprobs, zeros, zeros, zeros), columns, found)
    assert total.item() == pytest.approx(-0.5 * (2 + 100 + 30 + 5))
    assert sums["mark/policy/token_advantage.mine/up"] == 1.0
    share = update_metrics(
        [sums | {"grad/norm": 1.0, "grad/applied": 1.0, "stat/token_advantage.mine/count": 3.0}]
    )
    assert share["clip/token_advantage.mine/up"] == 1.0 and share["prepare/token_advantage.mine/count"] == 3.0


def add_seen(inputs: LossInputs, options: object) -> TokenTransform:
    total = inputs.advantages + inputs.prepared["seen"] + inputs.token_ids + inputs.positions
    return TokenTransform(advantages=total, marks={"up": inputs.advantages > 0})
