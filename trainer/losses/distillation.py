"""Self-distillation: the divergence between policy and teacher at each token, over the likeliest tokens.

The loss `sdpo` (SDPO, arXiv 2601.20802), and what is logged of a teacher. Both distributions are given as
logprobs [T, k + 1] at the same k token ids and, in the last column, of all other tokens together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from configs.kinds.losses import SdpoLossOptions
from trainer.losses.per_token import LossInputs, TokenLoss, ratio


def sdpo(inputs: LossInputs, options: SdpoLossOptions) -> TokenLoss:
    """w D, D = (1 - alpha) KL(pi || m) + alpha KL(q || m), m = (1 - alpha) pi + alpha q;
    D = KL(q || pi) at alpha = 0 and KL(pi || q) at alpha = 1

    SDPO, arXiv 2601.20802, with pi the policy and q the teacher at one token, [T] -> [T]. The weight w =
    min(pi / proximal, ratio_cap) min(proximal / behavior, tis_cap) of the sampled token has no gradient, and
    neither has q. Strictly between 0 and 1, D goes to 0 with alpha and with 1 - alpha, while KL(q || pi) and
    KL(pi || q) do not: a small alpha is no approximation of alpha = 0 but nearly no loss.
    """
    assert inputs.support is not None and inputs.teacher is not None, "rows of this loss have a teacher"
    policy, teacher = over_words(inputs.support, options.tail), over_words(inputs.teacher, options.tail)
    loss, marks = divergence(policy, teacher, options.alpha), {}
    factors = (
        ("ratio_cap", options.ratio_cap, inputs.policy_logprobs, inputs.proximal_logprobs),
        ("tis_cap", options.tis_cap, inputs.proximal_logprobs, inputs.behavior_logprobs),
    )
    for name, cap, new, old in factors:
        if cap:
            r = ratio(new, old).detach()
            loss, marks[name] = loss * r.clamp(max=cap), r > cap
    return TokenLoss(loss=loss, marks=marks)


def over_words(logprobs: Tensor, tail: bool) -> Tensor:
    """The distribution that is compared: with the tail as one more token, or renormalised without. [T, k + 1]
    -> [T, k + 1] or [T, k]
    """
    return logprobs if tail else torch.log_softmax(logprobs[:, :-1], dim=1)


def divergence(policy: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """D of `sdpo` from logprobs [T, n] of the same n tokens. [T], in nats, at least 0."""
    if alpha == 0:
        return kl(teacher, policy)
    if alpha == 1:
        return kl(policy, teacher)
    parts = torch.stack([policy + torch.tensor(1 - alpha).log(), teacher + torch.tensor(alpha).log()])
    mixture = torch.logsumexp(parts, dim=0)
    return (1 - alpha) * kl(policy, mixture) + alpha * kl(teacher, mixture)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of logprobs [T, n]: the sum of p (log p - log q). [T]"""
    return (p.exp() * (p - q)).sum(1)


def teacher_columns(
    policy: Tensor, teacher: Tensor, policy_logprobs: Tensor, teacher_logprobs: Tensor
) -> dict[str, Tensor]:
    """Per token [T]: `teacher_kl`, KL(teacher || policy) over the support and the tail, whatever the loss is;
    `teacher_gain`, by how much the teacher finds the sampled token more likely, in nats.
    """
    return {"teacher_kl": kl(teacher, policy), "teacher_gain": teacher_logprobs - policy_logprobs}
