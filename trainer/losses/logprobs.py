"""Exact logprobs and entropies from hidden states, in chunks, with an analytic backward.

The output head is applied to `chunk_tokens` positions at a time, in forward and backward, so the float32
matrix of all logits [T, V] is never in memory at once. Used by `trainer.model.policy.ScoringHead`. Tests
compare it with autograd.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


class TokenScores(NamedTuple):
    """Per token [T], float32, in nats: `logprobs` and `entropy` at the row's temperature, `entropy_t1` at 1.

    `entropy_clamped` is the entropy over the more likely part of the vocabulary; see `ChunkedScores`.
    """

    logprobs: Tensor
    entropy: Tensor
    entropy_t1: Tensor
    entropy_clamped: Tensor


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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        columns: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
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
            columns.append((chosen, entropy, at_one, clamped))
        ctx.save_for_backward(hidden_TD, weight_VD, targets_T, tau_T)
        ctx.chunk_tokens, ctx.num_dropped = chunk_tokens, num_dropped  # type: ignore[attr-defined]
        if not columns:
            empty = hidden_TD.new_zeros(0, dtype=torch.float32)
            # Separate tensors, because each output gets a gradient of its own.
            return empty, empty.clone(), empty.clone(), empty.clone()
        logprobs, entropies, at_ones, clamps = (torch.cat(column) for column in zip(*columns, strict=True))
        ctx.mark_non_differentiable(at_ones)  # type: ignore[attr-defined]
        return logprobs, entropies, at_ones, clamps

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(  # type: ignore[override]
        ctx: FunctionCtx, grad_logprobs: Tensor, grad_entropy: Tensor, _grad_t1: Tensor, grad_clamped: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VD, targets_T, tau_T = ctx.saved_tensors  # type: ignore[attr-defined]
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
            grad_logits /= tau_T[part, None]
            grad_hidden[part] = (grad_logits @ weight).to(grad_hidden.dtype)
            grad_weight.addmm_(grad_logits.T, hidden)
        return grad_hidden, grad_weight.to(weight_VD.dtype), None, None, None, None


def score_tokens(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    tau_T: Tensor,
    chunk_tokens: int,
    clamp: float = 0.0,
) -> TokenScores:
    """Score `targets_T` under the softmax of ``hidden_TD @ weight_VD.T / tau_T``; see `ChunkedScores`.

    `clamp` is the share of the vocabulary, in [0, 1), that `entropy_clamped` leaves out.
    """
    return TokenScores(*ChunkedScores.apply(hidden_TD, weight_VD, targets_T, tau_T, chunk_tokens, clamp))
