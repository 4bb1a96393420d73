"""Token advantages in Python floats, written from the papers' equations without code of the trainer."""

from __future__ import annotations

import math
from collections.abc import Sequence

Floats = Sequence[float]


def entropy_advantage(advantage: float, entropy: float, alpha: float, kappa: float) -> float:
    """arXiv 2506.14758: A + psi(H), psi = min(alpha H, |A| / kappa)."""
    return advantage + min(alpha * entropy, abs(advantage) / kappa)


def top_entropy(advantages: Floats, entropies: Floats, fraction: float) -> list[float]:
    """arXiv 2506.01939: A 1[H among the largest `fraction` of the batch], ties in the order given."""
    ranked = sorted(range(len(entropies)), key=lambda token: (-entropies[token], token))
    kept = {token for place, token in enumerate(ranked) if place < fraction * len(entropies) - 1e-9}
    return [advantage if token in kept else 0.0 for token, advantage in enumerate(advantages)]


def quantile(values: Floats, share: float) -> float:
    """Linear between the order statistics."""
    ordered, place = sorted(values), share * (len(values) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def entropy_quadrants(advantages: Floats, logprobs: Floats, strength: float, fraction: float) -> list[float]:
    """Our weights for arXiv 2606.19236: raise |A| in two of the four quadrants of A and surprisal."""
    if not logprobs:
        return []
    surprisal = [-logprob for logprob in logprobs]
    low, high = quantile(surprisal, fraction), quantile(surprisal, 1.0 - fraction)
    found = []
    for advantage, s in zip(advantages, surprisal, strict=True):
        side = 1 if s > high else -1 if s < low else 0
        sign = 1 if advantage > 0 else -1 if advantage < 0 else 0
        found.append(advantage * (1.0 + strength * side * sign))
    return found


def stare(advantages: Floats, logprobs: Floats, amplify: float, damp: float, share: float) -> list[float]:
    """hp-luo/STARE, compute_stare_token_weights with the gate on: weights by rank within each sign of A."""
    weights = [1.0] * len(advantages)
    for weight, sign in ((amplify, 1), (damp, -1)):
        candidates = [place for place, advantage in enumerate(advantages) if sign * advantage > 0]
        count = min(len(candidates), max(1, int(len(candidates) * share + 0.999999)))
        for place in sorted(candidates, key=lambda place: (logprobs[place], place))[:count]:
            weights[place] = weight
    return [advantage * weight for advantage, weight in zip(advantages, weights, strict=True)]


def tis(advantage: float, proximal: float, behavior: float, cap: float) -> float:
    """min(pi_proximal / pi_behavior, cap) A."""
    return min(math.exp(proximal) / math.exp(behavior), cap) * advantage


def tis_sequence(advantage: float, proximal: Floats, behavior: Floats, cap: float) -> float:
    """The same with the probabilities of the whole sequence."""
    weight = 1.0
    for now, sampled in zip(proximal, behavior, strict=True):
        weight *= math.exp(now) / math.exp(sampled)
    return min(weight, cap) * advantage


def icepop(advantage: float, proximal: float, behavior: float, low: float, high: float) -> float:
    """arXiv 2510.18855: M(k) A with M(k) = k within [low, high], else 0."""
    k = math.exp(proximal) / math.exp(behavior)
    return k * advantage if low <= k <= high else 0.0


def is_rejected(proximal: Floats, behavior: Floats, low: float, high: float) -> bool:
    """The sequence's probability ratio, to the power 1 / length."""
    ratio = math.exp(math.fsum(proximal) - math.fsum(behavior)) ** (1.0 / len(proximal))
    return not low <= ratio <= high


def decoupled(
    policy: float,
    proximal: float,
    behavior: float,
    advantage: float,
    bounds: tuple[float, float],
    cap: float,
) -> float:
    """-w min(r A, clip(r) A): r to the proximal policy, w = min(proximal / behavior, cap) held fixed.

    arXiv 2110.00641; the cap is verl's.
    """
    w, r = min(math.exp(proximal - behavior), cap), math.exp(policy - proximal)
    clipped = min(max(r, 1.0 - bounds[0]), 1.0 + bounds[1])
    return -w * min(r * advantage, clipped * advantage)
