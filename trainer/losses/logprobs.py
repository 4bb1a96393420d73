"""Exact logprobs and entropies from hidden states, in chunks, with an analytic backward.

The output head is applied to `chunk_tokens` positions at a time, in forward and backward, so the float32
matrix of all logits [T, V] is never in memory at once. Used by `trainer.model.policy.ScoringHead`. Tests
compare it with autograd.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


class TokenScores(NamedTuple):
    """Per token [T], float32, in nats: `logprobs` and `entropy` at the row's temperature, `entropy_t1` at 1.

    `entropy_clamped` is the entropy over the more likely part of the vocabulary; see `ChunkedScores`. Where a
    support was asked for, `support` [T, k + 1] has the logprobs of the k token ids `support_ids` [T, k] and,
    in its last column, that of all other tokens together.
    """

    logprobs: Tensor
    entropy: Tensor
    entropy_t1: Tensor
    entropy_clamped: Tensor
    support: Tensor | None = None
    support_ids: Tensor | None = None


NO_MASS: Final = -1e30
"""In place of log 0, which would make NaN of 0 log 0: of a tail where all tokens are asked for."""


def _at_support(logp_TV: Tensor, ids_Tk: Tensor) -> Tensor:
    """[T, k + 1]: the logprobs of the ids, and the log of the probability of all other tokens."""
    # Summed over the others and not 1 - sum(p), which is all rounding error where the ids have nearly all.
    tail = logp_TV.scatter(1, ids_Tk, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([logp_TV.gather(1, ids_Tk), tail], dim=1).clamp_min(NO_MASS)


def _support_gradient(logp_TV: Tensor, ids_Tk: Tensor, grad: Tensor) -> Tensor:
    """The gradient with respect to the logits of a sum of `_at_support` weighted by `grad` [T, k + 1]."""
    others = logp_TV.scatter(1, ids_Tk, -torch.inf)
    # Of the others each has its share of the tail; without any tail all shares are 0.
    shares = (others - others.logsumexp(1, keepdim=True).clamp_min(NO_MASS)).exp()
    found = shares * grad[:, -1:] - logp_TV.exp() * grad.sum(1, keepdim=True)
    return found.scatter_add_(1, ids_Tk, grad[:, :-1])


def _entropy(logp_TV: Tensor) -> Tensor:
    # exp(-inf) * -inf is NaN where the right value is 0, so -inf is clamped to a finite number first.
    return -(logp_TV.exp() * logp_TV.clamp_min(-1e30)).sum(-1)


def _clamped(logp_TV: Tensor, num_dropped: int) -> Tensor:
    """Renormalised logprobs without the `num_dropped` least likely entries of each row, which get -inf."""
    least = logp_TV.topk(num_dropped, dim=1, largest=False, sorted=False).indices
    return torch.log_softmax(logp_TV.scatter(1, least, -torch.inf), dim=1)


def _entropy_gradient(logp_TV: Tensor) -> Tensor:
    """dH / dz = -p (log p + H), the gradient with respect to the logits; 0 where p is 0. [T, V] -> [T, V]"""
    p, logp = logp_TV.exp(), logp_TV.clamp_min(-1e30)
    return -p * (logp - (p * logp).sum(1, keepdim=True))


class ChunkedScores(torch.autograd.Function):
    """log softmax(h W' / tau)[target] and its entropy, for hidden states h [T, D] and a head W [V, D].

    With z the logits divided by tau, p their softmax and H its entropy:
    d logp_y / dz = 1_y - p and dH / dz = -p (log p + H). `entropy_t1` is a metric and has no gradient.

    The clamped entropy is H of q, where q is p without its floor(clamp V) least likely entries, renormalised
    (AEnt, arXiv 2509.03493): dH / dz = -q (log q + H), 0 for the dropped entries. With clamp 0 it is H.

    `support_Tk` are token ids whose logprobs are wanted, or `top_k` the number of most likely ones to find;
    then two more outputs follow, as in `TokenScores`. d log q / dz = 1_i - p for an id i, and for the tail of
    all others its own softmax minus p.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        targets_T: Tensor,
        tau_T: Tensor,
        chunk_tokens: int,
        clamp: float,
        support_Tk: Tensor | None = None,
        top_k: int = 0,
    ) -> tuple[Tensor, ...]:
        columns: list[tuple[Tensor, ...]] = []
        weight = weight_VD.float()  # bf16 logits are too coarse to compare with the engine's logprobs
        num_dropped = int(clamp * weight.shape[0])
        for start in range(0, hidden_TD.shape[0], chunk_tokens):
            part = slice(start, start + chunk_tokens)
            logits = hidden_TD[part].float() @ weight.T
            logp = torch.log_softmax(logits / tau_T[part, None], dim=-1)
            chosen = logp.gather(1, targets_T[part, None]).squeeze(1)
            entropy = _entropy(logp)
            at_one = (
                entropy if bool((tau_T[part] == 1).all()) else _entropy(torch.log_softmax(logits, dim=-1))
            )
            clamped = _entropy(_clamped(logp, num_dropped)) if num_dropped else entropy.clone()
            columns.append((chosen, entropy, at_one, clamped, *_support(logp, support_Tk, part, top_k)))
        ctx.save_for_backward(hidden_TD, weight_VD, targets_T, tau_T, support_Tk)
        ctx.chunk_tokens, ctx.num_dropped = chunk_tokens, num_dropped  # type: ignore[attr-defined]
        if not columns:
            empty = hidden_TD.new_zeros(0, dtype=torch.float32)
            # Separate tensors, because each output gets a gradient of its own.
            none = _support(weight.new_zeros((0, len(weight))), support_Tk, slice(0), top_k)
            return empty, empty.clone(), empty.clone(), empty.clone(), *none
        outputs = tuple(torch.cat(column) for column in zip(*columns, strict=True))
        ctx.mark_non_differentiable(outputs[2], *outputs[5:])  # type: ignore[attr-defined]
        return outputs

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(  # type: ignore[override]
        ctx: FunctionCtx, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VD, targets_T, tau_T, support_Tk = ctx.saved_tensors  # type: ignore[attr-defined]
        grad_logprobs, grad_entropy, _, grad_clamped, *grad_support = grads
        chunk_tokens: int = ctx.chunk_tokens  # type: ignore[attr-defined]
        num_dropped: int = ctx.num_dropped  # type: ignore[attr-defined]
        weight = weight_VD.float()
        grad_hidden = torch.empty_like(hidden_TD)
        grad_weight = torch.zeros_like(weight)
        for start in range(0, hidden_TD.shape[0], chunk_tokens):
            part = slice(start, start + chunk_tokens)
            hidden = hidden_TD[part].float()
            # Computed again, because storing the logits of all chunks would need the whole [T, V] matrix.
            logp = torch.log_softmax(hidden @ weight.T / tau_T[part, None], dim=-1)
            p = logp.exp()
            grad_logits = -p * grad_logprobs[part, None]
            grad_logits.scatter_add_(1, targets_T[part, None], grad_logprobs[part, None])
            # Without an entropy bonus these gradients are all 0; skipping them saves [chunk, V] work.
            if bool(grad_entropy[part].any()):
                grad_logits += _entropy_gradient(logp) * grad_entropy[part, None]
            if bool(grad_clamped[part].any()):
                kept = _clamped(logp, num_dropped) if num_dropped else logp
                grad_logits += _entropy_gradient(kept) * grad_clamped[part, None]
            if support_Tk is not None:
                grad_logits += _support_gradient(logp, support_Tk[part], grad_support[0][part])
            grad_logits /= tau_T[part, None]
            grad_hidden[part] = (grad_logits @ weight).to(grad_hidden.dtype)
            grad_weight.addmm_(grad_logits.T, hidden)
        return grad_hidden, grad_weight.to(weight_VD.dtype), *[None] * 6


def _support(
    logp_TV: Tensor, support_Tk: Tensor | None, part: slice, top_k: int
) -> tuple[Tensor, Tensor] | tuple[()]:
    """Values and ids of a chunk's support: those given, or the `top_k` likeliest; nothing for neither."""
    if support_Tk is None and not top_k:
        return ()
    k = min(top_k, logp_TV.shape[1])
    ids = logp_TV.topk(k, dim=1).indices if support_Tk is None else support_Tk[part]
    return _at_support(logp_TV, ids), ids


def score_tokens(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    tau_T: Tensor,
    chunk_tokens: int,
    clamp: float = 0.0,
    support_Tk: Tensor | None = None,
    top_k: int = 0,
) -> TokenScores:
    """Score `targets_T` under the softmax of ``hidden_TD @ weight_VD.T / tau_T``; see `ChunkedScores`.

    `clamp` is the share of the vocabulary, in [0, 1), that `entropy_clamped` leaves out. `support_Tk` asks
    for the logprobs of these token ids, distinct in each row; `top_k`, without gradient, for the ids as well.
    """
    support = (support_Tk, top_k)
    return TokenScores(
        *ChunkedScores.apply(hidden_TD, weight_VD, targets_T, tau_T, chunk_tokens, clamp, *support)
    )
