"""Clip-Cov and KL-Cov from the equations of arXiv 2505.22617: Python floats, one token at a time.

Shares no code with the trainer. Tokens are dicts with sample_id, position, logp (of the weights the update
starts from), old, advantage and draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

Token = dict[str, Any]


def by_place(tokens: Sequence[Token]) -> list[Token]:
    """The tokens in order of sample_id and position."""
    return sorted(tokens, key=lambda token: (token["sample_id"], token["position"]))


def token_covariances(tokens: Sequence[Token]) -> list[float]:
    """(log pi_i - mean_j log pi_j)(A_i - mean_j A_j), the means rounded once from the exact fractions."""
    mean_logp = float(sum((Fraction(t["logp"]) for t in tokens), Fraction(0)) / len(tokens))
    mean_adv = float(sum((Fraction(t["advantage"]) for t in tokens), Fraction(0)) / len(tokens))
    return [(t["logp"] - mean_logp) * (t["advantage"] - mean_adv) for t in tokens]


def count_to_take(fraction: float, tokens: Sequence[Token]) -> int:
    """fraction x tokens, its remainder rounded up with chance equal to the remainder."""
    chance = math.fsum(t["draw"] for t in by_place(tokens)) % 1.0
    return min(len(tokens), int(fraction * len(tokens) + chance))


def kl_cov_choice(tokens: Sequence[Token], fraction: float) -> set[tuple[str, int]]:
    """The positions of the highest covariances, as long as they are positive."""
    ordered = by_place(tokens)
    ranked = sorted(zip(token_covariances(ordered), range(len(ordered)), strict=True), key=_down)
    taken = ranked[: count_to_take(fraction, ordered)]
    return {(ordered[n]["sample_id"], ordered[n]["position"]) for cov, n in taken if cov > 0}


def _down(pair: tuple[float, int]) -> tuple[float, int]:
    return -pair[0], pair[1]


def clip_cov_choice(
    tokens: Sequence[Token], fraction: float, band: tuple[float, float], bounds: tuple[float, float]
) -> set[tuple[str, int]]:
    """Tokens in the open band that the ratio's clip has not stopped, those of smallest draw first."""
    ordered = by_place(tokens)
    candidates = []
    for number, (token, cov) in enumerate(zip(ordered, token_covariances(ordered), strict=True)):
        r, advantage = math.exp(token["logp"] - token["old"]), token["advantage"]
        stopped = -advantage * min(max(r, bounds[0]), bounds[1]) > -advantage * r
        if band[0] < cov < band[1] and not stopped:
            candidates.append((token["draw"], number))
    taken = sorted(candidates)[: count_to_take(fraction, ordered)]
    return {(ordered[n]["sample_id"], ordered[n]["position"]) for _, n in taken}


def clip_cov_loss(
    logp: float, old: float, advantage: float, bounds: tuple[float, float], chosen: bool
) -> float:
    """The clipped surrogate, or nothing where the token was chosen."""
    if chosen:
        return 0.0
    r = math.exp(logp - old)
    return max(-advantage * r, -advantage * min(max(r, bounds[0]), bounds[1]))


def kl_cov_loss(logp: float, old: float, advantage: float, beta: float, chosen: bool) -> float:
    """The surrogate without a clip, and the pull back where the token was chosen."""
    loss = -advantage * math.exp(logp - old)
    return loss + beta * abs(logp - old) if chosen else loss
