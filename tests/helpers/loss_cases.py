"""Policy losses by hand: per kind a table of tokens with the loss, gradient weight and marks of each.

Bounds are 0.8 and 1.3 (low 0.2, high 0.3), advantages +-2. Used by the tests of the losses and by the check
that these numbers notice every changed sign, comparison and bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from configs.kinds.base import Kind, Options, load_target
from configs.kinds.losses import (
    LOSSES,
    AdvantageNllOptions,
    CeGppoOptions,
    CispoOptions,
    GppoOptions,
    GspoOptions,
    PpoClipOptions,
    ShapedOptions,
)
from configs.kinds.token_advantages import (
    TOKEN_ADVANTAGES,
    PositiveReweightOptions,
    RepoOptions,
    RepoROptions,
)
from trainer.losses.batch_statistics import Prepared
from trainer.losses.clamping import clamp_value
from trainer.losses.per_token import LossInputs, TokenLoss, advantage_nll, mean_by_row, shaped
from trainer.token_advantages.transforms import (
    BoundTransform,
    TokenTransform,
    apply_transforms,
    positive_reweight,
    prepare_transforms,
    repo,
    repo_r,
)

torch.set_num_threads(1)
Check = Callable[[], None]
BOUNDS: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.3}
OPTIONS: dict[str, Any] = {
    "ppo_clip": PpoClipOptions(**BOUNDS, dual_clip=3.0),
    "gspo": GspoOptions(**BOUNDS),
    "cispo": CispoOptions(**BOUNDS),
    "gppo": GppoOptions(**BOUNDS, dual_clip=3.0),
    "ce_gppo": CeGppoOptions(**BOUNDS, beta_low=0.5, beta_high=0.75, dual_clip=3.0),
}


@dataclass(frozen=True, slots=True)
class Token:
    """One token alone: its ratio and advantage; the loss, d loss / d log pi, and which marks it has."""

    ratio: float
    advantage: float
    loss: float
    grad: float
    marks: tuple[str, ...] = ()


PPO = (
    Token(1.0, 2.0, -2.0, -2.0),  # on policy: -A, and the plain policy gradient -A
    Token(1.1, 2.0, -2.2, -2.2),  # inside: -r A, gradient -r A
    Token(1.5, 2.0, -2.6, 0.0, ("clip_high",)),  # above 1 + 0.3 with A > 0: -1.3 A, no gradient
    Token(0.5, 2.0, -1.0, -1.0),  # below with A > 0: min picks r A, gradient stays
    Token(0.9, -2.0, 1.8, 1.8),  # inside, A < 0
    Token(0.5, -2.0, 1.6, 0.0, ("clip_low",)),  # below 1 - 0.2 with A < 0: -0.8 A, no gradient
    Token(1.5, -2.0, 3.0, 3.0),  # above with A < 0: min picks r A, gradient stays
    Token(2.5, -2.0, 5.0, 5.0),  # the same, not yet at the dual clip
    Token(4.0, -2.0, 6.0, 0.0, ("clip_dual",)),  # r > 3 with A < 0: held to 3 |A|, no gradient
    Token(4.0, 2.0, -2.6, 0.0, ("clip_high",)),  # the dual clip is for A < 0 only
    Token(math.exp(25), -2.0, 6.0, 0.0, ("clip_dual",)),
    Token(1.5, 0.0, 0.0, 0.0),
    Token(0.75, -2.0, 1.6, 0.0, ("clip_low",)),  # below 0.8, not below 0.7: whose bound is whose
    Token(1.25, 2.0, -2.5, -2.5),  # above 1.2, not above 1.3
)
# What PPO's clip drops keeps the bound as its weight: 1.3 A above, 0.8 A below; the rest is PPO's.
GPPO = tuple(
    {
        PPO[2]: Token(1.5, 2.0, -2.6, -2.6, ("clip_high",)),
        PPO[5]: Token(0.5, -2.0, 1.6, 1.6, ("clip_low",)),
        PPO[9]: Token(4.0, 2.0, -2.6, -2.6, ("clip_high",)),
        PPO[12]: Token(0.75, -2.0, 1.6, 1.6, ("clip_low",)),
    }.get(token, token)
    for token in PPO
)
# With beta 1/2 below and 3/4 above: 0.5 x 0.8 x 2 and 0.75 x 1.3 x 2.
CE_GPPO = tuple(
    {
        PPO[2]: Token(1.5, 2.0, -1.95, -1.95, ("clip_high",)),
        PPO[5]: Token(0.5, -2.0, 0.8, 0.8, ("clip_low",)),
        PPO[9]: Token(4.0, 2.0, -1.95, -1.95, ("clip_high",)),
        PPO[12]: Token(0.75, -2.0, 0.8, 0.8, ("clip_low",)),
    }.get(token, token)
    for token in PPO
)


def cispo_token(ratio: float, advantage: float, grad: float, *marks: str) -> Token:
    """The loss is the gradient weight times log pi, which is ln r - 1 in these tables."""
    return Token(ratio, advantage, grad * (math.log(ratio) - 1.0), grad, marks)


CISPO = (
    cispo_token(1.0, 2.0, -2.0),
    cispo_token(1.1, 2.0, -2.2),
    cispo_token(1.5, 2.0, -2.6, "clip_high"),  # the weight is held to 1.3 and stays
    cispo_token(1.5, -2.0, 2.6, "clip_high"),  # whatever the sign of A
    cispo_token(0.5, 2.0, -1.6, "clip_low"),
    cispo_token(0.5, -2.0, 1.6, "clip_low"),
    cispo_token(1.5, 0.0, 0.0, "clip_high"),
    cispo_token(0.75, -2.0, 1.6, "clip_low"),
    cispo_token(1.25, 2.0, -2.5),
)
# One token is a sequence of its own: GSPO is PPO without a dual clip.
GSPO = tuple(token for token in PPO if "clip_dual" not in token.marks)
TABLES = {"ppo_clip": PPO, "gspo": GSPO, "cispo": CISPO, "gppo": GPPO, "ce_gppo": CE_GPPO}


def loss_inputs(
    policy: Sequence[float],
    old: Sequence[float],
    advantages: Sequence[float],
    rows: Sequence[int] | None = None,
    to: str = "proximal",
) -> LossInputs:
    """Tokens whose ratio is to `ratio_to`; the other old logprobs are NaN, as is the entropy."""
    policy_T = torch.tensor(list(policy), dtype=torch.float64, requires_grad=True)
    unknown = torch.full_like(policy_T, float("nan")).detach()
    old_T = torch.tensor(list(old), dtype=torch.float64)
    return LossInputs(
        policy_logprobs=policy_T,
        entropy=unknown,
        proximal_logprobs=old_T if to == "proximal" else unknown,
        behavior_logprobs=old_T if to == "behavior" else unknown,
        advantages=torch.tensor(list(advantages), dtype=torch.float64),
        rows=torch.tensor(list(range(len(policy_T))) if rows is None else list(rows), dtype=torch.long),
        token_ids=torch.zeros(len(policy_T), dtype=torch.long),
        positions=torch.zeros(len(policy_T), dtype=torch.long),
        prepared={},
    )


def call(kind: str, inputs: LossInputs, options: object) -> TokenLoss:
    """The loss of this kind, found as an objective finds it."""
    found = load_target(LOSSES[kind].target)(inputs, options)
    assert isinstance(found, TokenLoss)
    return found


def gradient(found: TokenLoss, inputs: LossInputs) -> Tensor:
    """d(sum of the losses) / d log pi, per token."""
    (grad,) = torch.autograd.grad(found.loss.sum(), inputs.policy_logprobs)
    return grad


def check_table(kind: str) -> None:
    """Every token of the kind's table, all at once and each a row of its own."""
    table = TABLES[kind]
    inputs = loss_inputs(
        [math.log(token.ratio) - 1.0 for token in table],
        [-1.0] * len(table),
        [token.advantage for token in table],
    )
    found = call(kind, inputs, OPTIONS[kind])
    assert found.loss.tolist() == pytest.approx([token.loss for token in table])
    assert gradient(found, inputs).tolist() == pytest.approx([token.grad for token in table])
    for name in ("clip_high", "clip_low", "clip_dual"):
        wanted = [name in token.marks for token in table]
        assert found.marks.get(name, torch.zeros(len(table))).tolist() == wanted, name


def check_gspo_rows() -> None:
    """Two rows of two tokens, mixed up. Ratios 2 and 1: s = sqrt 2 > 1.3, so with A = 2 the row is at -2.6
    and has no gradient, though its second token alone would be inside. Ratios 0.9 and 1.6: s = 1.2 though the
    second alone would be clipped; -2.4 and gradient -2.4 for each.
    """
    ratios, rows = (2.0, 0.9, 1.6, 1.0), (5, 3, 3, 5)
    inputs = loss_inputs([math.log(r) - 1.0 for r in ratios], [-1.0] * 4, [2.0] * 4, rows)
    found = call("gspo", inputs, OPTIONS["gspo"])
    assert found.loss.tolist() == pytest.approx([-2.6, -2.4, -2.4, -2.6])
    assert gradient(found, inputs).tolist() == pytest.approx([0.0, -2.4, -2.4, 0.0])
    assert found.marks["clip_high"].tolist() == [True, False, False, True]
    assert not found.marks["clip_low"].any()


def check_mean_by_row() -> None:
    """Rows 2 and 0 of float32: means of (1, 3) and of 5, in float64; of no tokens at all, none."""
    found = mean_by_row(torch.tensor([1.0, 5.0, 3.0]), torch.tensor([2, 0, 2]))
    assert found.dtype == torch.float64 and found.tolist() == [2.0, 5.0, 2.0]
    none = mean_by_row(torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert none.dtype == torch.float64 and none.shape == (0,)


def check_stray_tokens() -> None:
    """A log-ratio of +-1000 is clamped to +-20: values and gradients are exp(20) = 4.85e8 and exp(-20)."""
    for kind in ("ppo_clip", "gppo", "ce_gppo"):
        bounds = {"clip_low": 2.0, "clip_high": 1e9, "dual_clip": 0.0}
        inputs = loss_inputs([0.0, -1000.0], [-1000.0, 0.0], [2.0, 2.0])
        found = call(kind, inputs, type(OPTIONS[kind])(**bounds))
        wanted = [-2.0 * math.exp(20), -2.0 * math.exp(-20)]
        assert found.loss.tolist() == pytest.approx(wanted)
        assert gradient(found, inputs).tolist() == pytest.approx(wanted)


def check_far_tokens() -> None:
    """A logprob that fell from -0.1 to -22.1 or -1000, A = -1: 0.8 in gppo; 0.4 in ce_gppo with beta 1/2.

    cispo has 0.8 as well; ppo_clip drops it by its clip, which its mark tells.
    """
    wanted = {"gppo": 0.8, "ce_gppo": 0.4, "cispo": 0.8, "ppo_clip": 0.0}
    for kind, grad in wanted.items():
        inputs = loss_inputs([-22.1, -1000.0, -1.1], [-0.1] * 3, [-1.0] * 3)
        found = call(kind, inputs, OPTIONS[kind])
        assert gradient(found, inputs).tolist() == pytest.approx([grad] * 3), kind
        assert found.marks["clip_low"].all()


def check_gspo_far() -> None:
    """One token of four at -22: s = exp(-22 / 4) = 0.00409 is the gradient of each, the stray one's too.

    A row of mean -30 has s = exp(-20), and one of mean +30 exp(20).
    """
    options = GspoOptions(clip_low=2.0, clip_high=1e9)
    inputs = loss_inputs([-22.0, 0.0, 0.0, 0.0], [0.0] * 4, [-1.0] * 4, [0] * 4)
    found = call("gspo", inputs, options)
    assert found.loss.tolist() == pytest.approx([math.exp(-5.5)] * 4)
    assert gradient(found, inputs).tolist() == pytest.approx([0.0040868] * 4, rel=1e-4)
    inputs = loss_inputs([-30.0, -30.0, 30.0, 30.0], [0.0] * 4, [-1.0] * 4, [0, 0, 1, 1])
    wanted = [math.exp(-20)] * 2 + [math.exp(20)] * 2
    found = call("gspo", inputs, options)
    assert found.loss.tolist() == pytest.approx(wanted)
    assert gradient(found, inputs).tolist() == pytest.approx(wanted)


def check_clamp_value() -> None:
    """-30, -1, 30 become -20, -1, 20, or -2, -1, 1; their gradient is 1. +-inf are clamped and have none."""
    for bounds, wanted in (((), [-20.0, -1.0, 20.0]), ((-2.0, 1.0), [-2.0, -1.0, 1.0])):
        values = torch.tensor([-30.0, -1.0, 30.0], requires_grad=True)
        found = clamp_value(values, *bounds)
        assert found.tolist() == wanted
        (grad,) = torch.autograd.grad((torch.tensor([1.0, 2.0, 3.0]) * found).sum(), values)
        assert grad.tolist() == [1.0, 2.0, 3.0]
    endless = torch.tensor([-math.inf, math.inf], requires_grad=True)
    found = clamp_value(endless)
    (grad,) = torch.autograd.grad(found.sum(), endless)
    assert found.tolist() == [-20.0, 20.0] and grad.tolist() == [0.0, 0.0]
    assert clamp_value(torch.tensor([math.nan])).isnan().all(), "what is undefined shows"


def check_shaped() -> None:
    """gamma 0.1: f(0.1) = 1/2 and the largest gradient, A / 4; f(0.9) = 0.9 with 0.09 A; f(1) = 10/11.

    Old logprobs are NaN: there is no ratio. With gamma 0.3, f(0.1) = 1/4 and f'(0.1) 0.1 = 0.03 / 0.16.
    """
    probabilities, unknown = [0.1, 0.9, 1.0, 0.1, 0.9, 0.1], [math.nan] * 6
    inputs = loss_inputs([math.log(p) for p in probabilities], unknown, [2.0, 2.0, 2.0, -2.0, -2.0, 0.0])
    found = TokenLoss(loss=shaped(inputs, ShapedOptions(gamma=0.1)), marks={})
    assert found.loss.tolist() == pytest.approx([-1.0, -1.8, -20 / 11, 1.0, 1.8, 0.0])
    assert gradient(found, inputs).tolist() == pytest.approx([-0.5, -0.18, -0.2 / 1.21, 0.5, 0.18, 0.0])
    other = TokenLoss(loss=shaped(inputs, ShapedOptions(gamma=0.3)), marks={})
    assert other.loss[0].item() == pytest.approx(-0.5)
    assert gradient(other, inputs)[0].item() == pytest.approx(-2.0 * 0.03 / 0.16)


def check_advantage_nll() -> None:
    """log pi = -3: 3 A with the gradient -A, whatever the old logprobs."""
    inputs = loss_inputs([-3.0] * 3, [math.nan] * 3, [2.0, -2.0, 0.0])
    found = TokenLoss(loss=advantage_nll(inputs, AdvantageNllOptions()), marks={})
    assert found.loss.tolist() == [6.0, -6.0, 0.0]
    assert gradient(found, inputs).tolist() == [-2.0, 2.0, 0.0]


def check_which_old() -> None:
    """`ratio_to` names the column that counts: the other is NaN here; a missing one is refused."""
    for kind in TABLES:
        for to in ("proximal", "behavior"):
            options = type(OPTIONS[kind])(**BOUNDS, ratio_to=to)
            inputs = loss_inputs([math.log(1.1) - 1.0], [-1.0], [2.0], to=to)
            found = call(kind, inputs, options)
            assert gradient(found, inputs).tolist() == pytest.approx([-2.2])
        inputs = loss_inputs([-1.0, -1.0], [-1.0, math.nan], [2.0, 2.0], to="behavior")
        with pytest.raises(AssertionError, match="learned tokens have behavior logprobs"):
            call(kind, inputs, options)


CHECKS: dict[str, tuple[Check, ...]] = {
    "log_ratio": (check_stray_tokens, check_far_tokens, lambda: check_table("ppo_clip")),
    "ratio": (check_stray_tokens, lambda: check_table("ppo_clip")),
    "old_logprobs": (check_which_old,),
    "clip_marks": (lambda: check_table("ppo_clip"),),
    "apply_dual_clip": (lambda: check_table("ppo_clip"),),
    "ppo_clip": (lambda: check_table("ppo_clip"),),
    "mean_by_row": (check_mean_by_row, check_gspo_rows),
    "gspo": (lambda: check_table("gspo"), check_gspo_rows, check_gspo_far),
    "cispo": (lambda: check_table("cispo"),),
    "_preserved": (lambda: check_table("gppo"), lambda: check_table("ce_gppo"), check_far_tokens),
    "gppo": (lambda: check_table("gppo"),),
    "ce_gppo": (lambda: check_table("ce_gppo"),),
    "shaped": (check_shaped,),
    "advantage_nll": (check_advantage_nll,),
}
"""By function of `trainer.losses.per_token`: what must fail when anything in it is changed."""
CLAMPING_CHECKS: dict[str, tuple[Check, ...]] = {"clamp_value": (check_clamp_value,)}
"""The same for `trainer.losses.clamping`."""


def check_positive_reweight() -> None:
    """A quarter of what is above 0; -2 and 0 stay."""
    inputs = loss_inputs([-1.0] * 3, [-1.0] * 3, [2.0, -2.0, 0.0])
    found = positive_reweight(inputs, PositiveReweightOptions(weight=0.25))
    assert found.tolist() == [0.5, -2.0, 0.0] and not found.requires_grad


def check_repo() -> None:
    """log pi = -3, beta 1/2: +3/2 on every advantage."""
    inputs = loss_inputs([-3.0] * 3, [-1.0] * 3, [2.0, -2.0, 0.0])
    found = repo(inputs, RepoOptions(beta=0.5))
    assert found.tolist() == [3.5, -0.5, 1.5] and not found.requires_grad


def check_repo_r() -> None:
    """log pi = -3, zeta 1/2: +3/2 |A|, which is 3 for A = +-2."""
    inputs = loss_inputs([-3.0] * 3, [-1.0] * 3, [2.0, -2.0, 0.0])
    found = repo_r(inputs, RepoROptions(zeta=0.5))
    assert found.tolist() == [5.0, 1.0, 0.0] and not found.requires_grad


def check_order() -> None:
    """First half of A = 4, then + 1/2: 5/2; the other way round 9/4."""
    halve = BoundTransform(
        kind=TOKEN_ADVANTAGES["positive_reweight"], options=PositiveReweightOptions(weight=0.5)
    )
    push = BoundTransform(kind=TOKEN_ADVANTAGES["repo"], options=RepoOptions(beta=0.5))
    inputs = loss_inputs([-1.0], [-1.0], [4.0])
    for shapes, wanted in (({"a": halve, "b": push}, 2.5), ({"a": push, "b": halve}, 2.25), ({}, 4.0)):
        found, marks = apply_transforms(inputs, shapes, {})
        assert found.advantages.tolist() == [wanted] and not marks


TABLE = {
    "sample_id": np.array(["b", "b", "a", "c"]),
    "position": np.array([0, 1, 0, 0]),
    "token_ids": np.array([7, 8, 9, 6]),
    "origin": np.array(["policy", "policy", "policy", "sft"]),
    "weight": np.ones(4),
    "advantage": np.array([4.0, -4.0, 8.0, 0.0]),
    "draw": np.zeros(4),
    "policy_logprobs": np.array([-1.0, -2.0, -3.0, -4.0]),
    "policy_entropy": np.array([0.1, 0.2, 0.3, 0.4]),
    "entropy": np.array([0.5, 0.6, 0.7, 0.8]),
    "proximal_logprobs": np.array([-1.5, -2.5, -3.5, -4.5]),
    "behavior_logprobs": np.array([-1.25, -2.25, -3.25, -4.25]),
}
"""What `prepare` is shown of two policy rows, a (one token) and b (two), and a demonstration c."""


def note_advantage(columns: Mapping[str, np.ndarray], options: object) -> Prepared:
    """A `prepare` that answers with what it was shown, and counts it."""
    return Prepared(columns={"seen": columns["advantage"]}, stats={"count": float(len(columns["draw"]))})


def add_seen(inputs: LossInputs, options: object) -> TokenTransform:
    """A shape that adds up all that it is shown, so that each number can be told; marks A > 0."""
    total = inputs.advantages + inputs.prepared["seen"] + inputs.rows + inputs.positions + inputs.token_ids
    total = total + inputs.policy_logprobs + 100 * inputs.entropy
    total = total + 1000 * inputs.proximal_logprobs + 10000 * inputs.behavior_logprobs
    return TokenTransform(advantages=total, marks={"up": inputs.advantages > 0})


def _must_not_gather(own: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    raise AssertionError("a transform without a `prepare` needs no gathering")


SEEING = BoundTransform(
    kind=Kind(Options, "loss_cases:add_seen", prepare="loss_cases:note_advantage"), options=None
)


def check_prepare_chain() -> None:
    """Halved if above 0, the second is shown A = 2, -4 (b) and 4 (a), and adds to each: what it saw, the
    row (a is 0, b is 1), position, token, logprob, 100 H, 1000 and 10000 times the old logprobs.

    b0: 2+2+1+0+7-1+10-1500-12500 = -13979; b1: -4-4+1+1+8-2+20-2500-22500 = -24980;
    a0: 4+4+0+0+9-3+30-3500-32500 = -35956. The third, the same kind, sees those; c is no policy row.
    """
    halve = BoundTransform(
        kind=TOKEN_ADVANTAGES["positive_reweight"], options=PositiveReweightOptions(weight=0.5)
    )
    shapes = {"half": halve, "one": SEEING, "two": SEEING, "three": SEEING, "last": halve}
    found = prepare_transforms(TABLE, shapes, lambda own: [own])
    assert list(found) == ["token_advantage.one", "token_advantage.two", "token_advantage.three"]
    assert found["token_advantage.one"].columns["seen"].tolist()[:3] == [2.0, -4.0, 4.0]
    wanted = [-13979.0, -24980.0, -35956.0]
    assert found["token_advantage.two"].columns["seen"].tolist()[:3] == pytest.approx(wanted)
    assert all(math.isnan(each.columns["seen"][3]) for each in found.values())
    assert [each.stats for each in found.values()] == [{"count": 3.0}] * 3
    assert prepare_transforms(TABLE, {"half": halve}, _must_not_gather) == {}


def check_prepared_and_marks() -> None:
    """Each shape is handed what its own `prepare` found; the loss's is back after them. Marks are by shape.

    A = 1, + 5 as found, - 1 for the logprob, and the same again with - 7; all else is 0.
    """
    inputs = replace(
        loss_inputs([-1.0], [0.0], [1.0]),
        entropy=torch.zeros(1),
        behavior_logprobs=torch.zeros(1),
        prepared={"loss": torch.ones(1)},
    )
    prepared = {"one": {"seen": torch.tensor([5.0])}, "two": {"seen": torch.tensor([-7.0])}}
    found, marks = apply_transforms(inputs, {"one": SEEING, "two": SEEING}, prepared)
    assert found.advantages.tolist() == [1 + 5 - 1 - 7 - 1] and list(found.prepared) == ["loss"]
    assert {name: mark.tolist() for name, mark in marks.items()} == {
        "token_advantage.one/up": [True],
        "token_advantage.two/up": [True],
    }


TRANSFORM_CHECKS: dict[str, tuple[Check, ...]] = {
    "positive_reweight": (check_positive_reweight,),
    "repo": (check_repo,),
    "repo_r": (check_repo_r,),
    "apply_transforms": (check_order, check_prepared_and_marks),
    "prepare_transforms": (check_prepare_chain,),
    "_inputs_of": (check_prepare_chain,),
}
"""The same for `trainer.token_advantages.transforms`."""
