"""Self-distillation by hand: two or three words, every number worked out. Also for the mutation tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from configs.kinds.losses import SdpoLossOptions
from trainer.losses.distillation import divergence, kl, over_words, sdpo, teacher_columns
from trainer.losses.per_token import LossInputs

Check = Callable[[], None]
LN2, LN3 = math.log(2), math.log(3)


def logs(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows).log()


POLICY = logs((0.75, 0.25), (0.5, 0.5))
TEACHER = logs((0.25, 0.75), (0.5, 0.5))


def check_kl() -> None:
    """(3/4, 1/4) from (1/4, 3/4): 3/4 ln 3 - 1/4 ln 3 = ln 3 / 2; (1, 0) from (1/2, 1/2): ln 2."""
    assert kl(POLICY, TEACHER).tolist() == pytest.approx([LN3 / 2, 0.0])
    sure = torch.tensor([[0.0, -1e30]])
    assert kl(sure, logs((0.5, 0.5))).tolist() == pytest.approx([LN2])
    # The two directions differ: from (1/2, 1/2) to (3/4, 1/4) ln 2 - ln 3 / 2, and back 3/4 ln 3 - ln 2.
    half, most = logs((0.5, 0.5)), logs((0.75, 0.25))
    assert kl(half, most).tolist() == pytest.approx([LN2 - LN3 / 2])
    assert kl(most, half).tolist() == pytest.approx([0.75 * LN3 - LN2])


def check_divergence() -> None:
    """pi (3/4, 1/4), q (1/2, 1/2): KL(q || pi) = ln 2 - ln 3 / 2 at 0, KL(pi || q) = 3/4 ln 3 - ln 2 at 1.

    alpha = 1/4: m = 3/4 pi + 1/4 q = (11/16, 5/16), so
    3/4 (3/4 ln 12/11 + 1/4 ln 4/5) + 1/4 (1/2 ln 8/11 + 1/2 ln 8/5). At 3/4 m = (9/16, 7/16).
    """
    policy, teacher = logs((0.75, 0.25)), logs((0.5, 0.5))
    assert divergence(policy, teacher, 0.0).tolist() == pytest.approx([LN2 - LN3 / 2])
    assert divergence(policy, teacher, 1.0).tolist() == pytest.approx([0.75 * LN3 - LN2])
    ln = math.log
    quarter = 0.75 * (0.75 * ln(12 / 11) + 0.25 * ln(4 / 5)) + 0.25 * (0.5 * ln(8 / 11) + 0.5 * ln(8 / 5))
    assert divergence(policy, teacher, 0.25).tolist() == pytest.approx([quarter], rel=1e-5)
    most = 0.25 * (0.75 * ln(4 / 3) + 0.25 * ln(4 / 7)) + 0.75 * (0.5 * ln(8 / 9) + 0.5 * ln(8 / 7))
    assert divergence(policy, teacher, 0.75).tolist() == pytest.approx([most], rel=1e-5)


def check_words() -> None:
    """1/2, 1/4 and 1/4 for the tail: as they are with the tail, 2/3 and 1/3 without."""
    given = logs((0.5, 0.25, 0.25))
    assert torch.equal(over_words(given, tail=True), given)
    assert over_words(given, tail=False).exp().tolist()[0] == pytest.approx([2 / 3, 1 / 3])


def inputs() -> LossInputs:
    """Four tokens of one word and a tail, all with D(alpha = 1) = ln 3 / 2.

    policy / proximal is 1, 3/2, 4 and 4; proximal / behavior is 1/2, 1, 1 and 8.
    """
    zeros = torch.zeros(4)
    ratios, older = torch.tensor([1.0, 1.5, 4.0, 4.0]).log(), torch.tensor([0.5, 1.0, 1.0, 8.0]).log()
    return LossInputs(
        policy_logprobs=ratios - 3.0,
        entropy=zeros,
        proximal_logprobs=zeros - 3.0,
        behavior_logprobs=-older - 3.0,
        advantages=zeros,
        rows=zeros.long(),
        token_ids=zeros.long(),
        positions=torch.arange(4),
        prepared={},
        support=logs(*[(0.75, 0.25)] * 4),
        teacher=logs(*[(0.25, 0.75)] * 4),
    )


def check_loss() -> None:
    """Weights min(ratio, 2) min(proximal / behavior, 2): 1/2, 3/2, 2 and 2 x 2; each cap can be off."""
    d = LN3 / 2
    found = sdpo(inputs(), SdpoLossOptions(alpha=1.0))
    assert found.loss.tolist() == pytest.approx([0.5 * d, 1.5 * d, 2 * d, 4 * d], rel=1e-5)
    assert found.marks["ratio_cap"].tolist() == [False, False, True, True]
    assert found.marks["tis_cap"].tolist() == [False, False, False, True]
    first = sdpo(inputs(), SdpoLossOptions(alpha=1.0, tis_cap=0.0, ratio_cap=3.0))
    assert first.loss.tolist() == pytest.approx([d, 1.5 * d, 3 * d, 3 * d], rel=1e-5)
    assert set(first.marks) == {"ratio_cap"}
    second = sdpo(inputs(), SdpoLossOptions(alpha=1.0, ratio_cap=0.0, tis_cap=4.0))
    assert second.loss.tolist() == pytest.approx([0.5 * d, d, d, 4 * d], rel=1e-5)
    # Of one word without a tail nothing can differ.
    assert sdpo(inputs(), SdpoLossOptions(tail=False)).loss.tolist() == pytest.approx([0.0] * 4)
    # The weights have no gradient.
    free = replace(inputs(), policy_logprobs=inputs().policy_logprobs.requires_grad_())
    assert not sdpo(free, SdpoLossOptions()).loss.requires_grad
    # Exactly at a cap nothing is capped.
    at = sdpo(inputs(), SdpoLossOptions(alpha=1.0, ratio_cap=1.0, tis_cap=0.0))
    assert at.marks["ratio_cap"].tolist() == [False, True, True, True]
    assert at.loss.tolist() == pytest.approx([d] * 4, rel=1e-5)


def check_teacher_columns() -> None:
    """Forward KL whatever the loss is, and the gain in log p of the sampled token."""
    found = teacher_columns(logs((0.75, 0.25)), logs((0.5, 0.5)), torch.tensor([-3.0]), torch.tensor([-1.0]))
    assert found["teacher_kl"].tolist() == pytest.approx([LN2 - LN3 / 2])
    assert found["teacher_gain"].tolist() == [2.0]


CHECKS: dict[str, tuple[Check, ...]] = {
    "sdpo": (check_loss,),
    "over_words": (check_words,),
    "divergence": (check_divergence,),
    "kl": (check_kl,),
    "teacher_columns": (check_teacher_columns,),
}
"""By function of `trainer.losses.distillation`: what must fail when anything in it is changed."""
