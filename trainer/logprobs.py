"""Exact logprobs and entropies from hidden states, in chunks, with an analytic backward.

The output head is applied to `chunk_tokens` positions at a time, forward and backward, so a [tokens, V]
matrix of float32 never exists whole. Used by `trainer.policy.ScoringHead`; checked against autograd in tests.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


class TokenScores(NamedTuple):
    """Per token, float32, nats: `logprobs` and `entropy` at the sampling temperature, `entropy_t1` at 1."""

    logprobs: Tensor
    entropy: Tensor
    entropy_t1: Tensor


def _entropy(logp_TV: Tensor) -> Tensor:
    # exp(-inf) * -inf is NaN where the right value is 0, so -inf is clamped to a finite number first.
    return -(logp_TV.exp() * logp_TV.clamp_min(-1e30)).sum(-1)


class ChunkedScores(torch.autograd.Function):
    """log softmax(h W' / tau)[target] and its entropy, for hidden states h [T, D] and a head W [V, D].

    With z the tempered logits, p their softmax and H its entropy:
    d logp_y / dz = 1_y - p and dH / dz = -p (log p + H). `entropy_t1` is a measurement and has no gradient.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        targets_T: Tensor,
        tau_T: Tensor,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        columns: list[tuple[Tensor, Tensor, Tensor]] = []
        weight = weight_VD.float()
        for start in range(0, hidden_TD.shape[0], chunk_tokens):
            part = slice(start, start + chunk_tokens)
            logits = hidden_TD[part].float() @ weight.T
            logp = torch.log_softmax(logits / tau_T[part, None], dim=-1)
            chosen = logp.gather(1, targets_T[part, None]).squeeze(1)
            entropy = _entropy(logp)
            at_one = (
                entropy if bool((tau_T[part] == 1).all()) else _entropy(torch.log_softmax(logits, dim=-1))
            )
            columns.append((chosen, entropy, at_one))
        ctx.save_for_backward(hidden_TD, weight_VD, targets_T, tau_T)
        ctx.chunk_tokens = chunk_tokens  # type: ignore[attr-defined]
        if not columns:
            empty = hidden_TD.new_zeros(0, dtype=torch.float32)
            return empty, empty.clone(), empty.clone()
        logprobs, entropies, at_ones = (torch.cat(column) for column in zip(*columns, strict=True))
        ctx.mark_non_differentiable(at_ones)  # type: ignore[attr-defined]
        return logprobs, entropies, at_ones

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(  # type: ignore[override]
        ctx: FunctionCtx, grad_logprobs: Tensor, grad_entropy: Tensor, _grad_t1: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VD, targets_T, tau_T = ctx.saved_tensors  # type: ignore[attr-defined]
        chunk_tokens: int = ctx.chunk_tokens  # type: ignore[attr-defined]
        weight = weight_VD.float()
        grad_hidden = torch.empty_like(hidden_TD)
        grad_weight = torch.zeros_like(weight)
        for start in range(0, hidden_TD.shape[0], chunk_tokens):
            part = slice(start, start + chunk_tokens)
            hidden = hidden_TD[part].float()
            logp = torch.log_softmax(hidden @ weight.T / tau_T[part, None], dim=-1)
            p = logp.exp()
            grad_logits = -p * grad_logprobs[part, None]
            grad_logits.scatter_add_(1, targets_T[part, None], grad_logprobs[part, None])
            if bool(grad_entropy[part].any()):
                logp = logp.clamp_min(-1e30)
                entropy = -(p * logp).sum(-1, keepdim=True)
                grad_logits -= p * (logp + entropy) * grad_entropy[part, None]
            grad_logits /= tau_T[part, None]
            grad_hidden[part] = (grad_logits @ weight).to(grad_hidden.dtype)
            grad_weight.addmm_(grad_logits.T, hidden)
        return grad_hidden, grad_weight.to(weight_VD.dtype), None, None, None


def score_tokens(
    hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, tau_T: Tensor, chunk_tokens: int
) -> TokenScores:
    """Score `targets_T` under the softmax of ``hidden_TD @ weight_VD.T / tau_T``; see `ChunkedScores`."""
    return TokenScores(*ChunkedScores.apply(hidden_TD, weight_VD, targets_T, tau_T, chunk_tokens))
