"""Losses for one row of tokens in Python floats, written from the papers' equations.

They import nothing of the trainer. `frozen` is the policy where the equation stops the gradient: left out
it is the policy itself (the loss's value); held fixed while the policy moves, the difference is the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Floats = Sequence[float]


def dual(loss: float, advantage: float, c: float) -> float:
    """arXiv 1912.09729: for A < 0 the objective is max(min(r A, clip(r) A), c A); c = 0 is off."""
    return -max(-loss, c * advantage) if c and advantage < 0 else loss


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, 1.0 - low), 1.0 + high)


def ppo(policy: float, old: float, advantage: float, low: float, high: float, c: float = 0.0) -> float:
    """arXiv 1707.06347, eq. 7, with the two bounds of arXiv 2503.14476."""
    r = math.exp(policy - old)
    return dual(-min(r * advantage, clip(r, low, high) * advantage), advantage, c)


def gspo_sequence(policy: Floats, old: Floats, advantage: float, low: float, high: float) -> float:
    """arXiv 2507.18071: one sequence, s = (pi(y) / pi_old(y)) ** (1 / |y|)."""
    s = (math.exp(math.fsum(policy)) / math.exp(math.fsum(old))) ** (1.0 / len(policy))
    return -min(s * advantage, clip(s, low, high) * advantage)


def gspo_token(
    policy: Floats, old: Floats, advantages: Floats, low: float, high: float, frozen: Floats | None = None
) -> list[float]:
    """arXiv 2507.18071, GSPO-token: s_t = sg[s] pi_t / sg[pi_t], each token with its own advantage."""
    frozen = policy if frozen is None else frozen
    s = math.exp(math.fsum(p - q for p, q in zip(frozen, old, strict=True)) / len(policy))
    losses = []
    for moving, still, advantage in zip(policy, frozen, advantages, strict=True):
        s_t = s * math.exp(moving) / math.exp(still)
        losses.append(-min(s_t * advantage, clip(s_t, low, high) * advantage))
    return losses


def cispo(
    policy: float, old: float, advantage: float, low: float, high: float, frozen: float | None = None
) -> float:
    """arXiv 2506.13585, eq. 4 and 5: sg(clip(r)) A log pi."""
    still = policy if frozen is None else frozen
    return -clip(math.exp(still - old), low, high) * advantage * policy


def gppo(
    policy: float,
    old: float,
    advantage: float,
    low: float,
    high: float,
    c: float = 0.0,
    frozen: float | None = None,
) -> float:
    """arXiv 2508.07629: clip(r, (1 - low) / sg(r) r, (1 + high) / sg(r) r), as written there."""
    r, still = math.exp(policy - old), math.exp((policy if frozen is None else frozen) - old)
    held = min(max(r, (1.0 - low) / still * r), (1.0 + high) / still * r)
    return dual(-min(r * advantage, held * advantage), advantage, c)


def ce_gppo(
    policy: float,
    old: float,
    advantage: float,
    low: float,
    high: float,
    betas: tuple[float, float],
    c: float = 0.0,
    frozen: float | None = None,
) -> float:
    """arXiv 2509.20712: three cases by the sign of A and the side of the ratio; betas are (low, high)."""
    r, still = math.exp(policy - old), math.exp((policy if frozen is None else frozen) - old)
    if advantage < 0 and still < 1.0 - low:
        loss = -betas[0] * (1.0 - low) / still * r * advantage
    elif advantage > 0 and still > 1.0 + high:
        loss = -betas[1] * (1.0 + high) / still * r * advantage
    else:
        loss = -r * advantage
    return dual(loss, advantage, c)


def positive_reweight(advantage: float, weight: float) -> float:
    """arXiv 2511.05993: lambda on tokens with A > 0."""
    return weight * advantage if advantage > 0 else advantage


def repo(advantage: float, logprob: float, beta: float) -> float:
    """arXiv 2603.11682: A' = A - beta L."""
    return advantage - beta * logprob


def repo_r(advantage: float, logprob: float, zeta: float) -> float:
    """arXiv 2603.11682: A' = A - beta_t L with beta_t = zeta |A|."""
    return advantage - zeta * abs(advantage) * logprob
