"""Advantages, bonuses and weights row by row in Python floats, written from the equations.

They import nothing of the trainer. `rewards` are those of one group unless said otherwise; `me` is the
row's place in it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

Floats = Sequence[float]


def mean(values: Floats) -> float:
    return math.fsum(values) / len(values)


def std(values: Floats) -> float:
    """Over n - 1; 0 for a single value."""
    centre = mean(values)
    return (
        math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))
        if len(values) > 1
        else 0.0
    )


def reinforce_pp(groups: Sequence[Floats], baseline: bool, eps: float) -> list[list[float]]:
    """arXiv 2501.03262: all groups of the step."""
    centred = [[r - mean(group) if baseline else r for r in group] for group in groups]
    whole = [c for group in centred for c in group]
    return [[(c - mean(whole)) / (std(whole) + eps) for c in group] for group in centred]


def pass_at_k(is_right: Sequence[bool], me: int, k: int) -> Fraction:
    """arXiv 2508.10751 by its meaning: the mean, over all k-subsets that hold the row, of the centred reward.

    A subset's reward is 1 if one of its rows is right. Not yet divided by the standard deviation.
    """
    subsets = list(itertools.combinations(range(len(is_right)), k))
    best = {subset: Fraction(any(is_right[row] for row in subset)) for subset in subsets}
    p = sum(best.values(), Fraction(0)) / len(subsets)
    mine = [best[subset] - p for subset in subsets if me in subset]
    return sum(mine, Fraction(0)) / len(mine)


def pass_rate(is_right: Sequence[bool], k: int) -> Fraction:
    """The share of k-subsets with a right row."""
    subsets = list(itertools.combinations(range(len(is_right)), k))
    return Fraction(sum(any(is_right[row] for row in subset) for subset in subsets), len(subsets))


def quantile(rewards: Floats, share: Fraction) -> float:
    """The smallest reward x with P(r <= x) >= share."""
    for x in sorted(rewards):
        if Fraction(sum(r <= x for r in rewards), len(rewards)) >= share:
            return x
    raise AssertionError("the largest reward has P = 1")


def ucb(visits: int) -> float:
    """arXiv 2509.06941: min(1, sqrt(1 / N)), and 1 for what was never seen."""
    return min(1.0, math.sqrt(1.0 / visits)) if visits else 1.0


def overlong(reward: float, tokens: int, longest: int, cache: int, penalty: float) -> float:
    """arXiv 2503.14476, eq. 13, in its three cases."""
    if tokens <= longest - cache:
        return reward
    if tokens <= longest:
        return reward + penalty * ((longest - cache) - tokens) / cache
    return reward - penalty


def cosine_length(reward: float, right: bool, tokens: int, longest: int) -> float:
    """Open-R1's cosine_scaled_reward with its defaults, less its accuracy of 1 or 0, up to `longest`."""
    cosine = math.cos(min(tokens, longest) / longest * math.pi)
    low, high = (0.5, 1.0) if right else (-0.5, -1.0)
    return reward + low + 0.5 * (high - low) * (1.0 + cosine) - float(right)


def relative_length(reward: float, right: bool, tokens: int, of_group: Sequence[int]) -> float:
    """arXiv 2501.12599, section 2.3.3: lambda for a right answer, min(0, lambda) for a wrong one."""
    shortest, longest = min(of_group), max(of_group)
    if shortest == longest:
        return reward
    value = 0.5 - (tokens - shortest) / (longest - shortest)
    return reward + (value if right else min(0.0, value))


def mara(rewards: Floats, ref: Floats, me: int, beta: float, threshold: float) -> float:
    """arXiv 2510.20817: R(z) + beta (log ref(z) - log ref(y)) for good y, z = argmax ref among the good."""
    good = [row for row, reward in enumerate(rewards) if reward >= threshold]
    if me not in good:
        return rewards[me]
    z = max(good, key=lambda row: (ref[row], rewards[row]))
    return rewards[z] + beta * (ref[z] - ref[me])


def ucpo(base: Floats, logprobs: Floats, is_right: Sequence[bool], me: int, tau: float) -> float:
    """arXiv 2605.00365: the advantage of row `me` times n w, for the right rows of a group."""
    if not is_right[me]:
        return base[me]
    right = [row for row, good in enumerate(is_right) if good]
    total = math.fsum(math.exp(logprobs[row]) for row in right)
    q = {row: math.exp(logprobs[row]) / total for row in right}
    weight = (1 - tau) / len(right) + tau * (1 / q[me]) / math.fsum(1 / q[row] for row in right)
    return base[me] * len(right) * weight


def set_diversity(classes: Sequence[int], measure: str) -> float:
    """Of a set of rows, by its kernel: 1 for two rows of a class, else 0."""
    size = len(classes)
    if size == 0:
        return 0.0
    kernel = np.array([[float(a == b) for b in classes] for a in classes])
    if measure == "distinct":
        return float(np.linalg.matrix_rank(kernel))
    if measure == "vendi":
        shares = [value for value in np.linalg.eigvalsh(kernel / size) if value > 1e-9]
        return math.exp(-math.fsum(value * math.log(value) for value in shares))
    pairs = list(itertools.combinations(range(size), 2))
    return math.fsum(1 - kernel[a, b] for a, b in pairs) / len(pairs) if pairs else 0.0


def setpo(classes: Sequence[int], me: int, measure: str) -> float:
    """arXiv 2602.01062: the diversity of the set less that of the set without row `me`."""
    rest = [each for row, each in enumerate(classes) if row != me]
    return set_diversity(classes, measure) - set_diversity(rest, measure)


def vpo(candidates: Sequence[Floats], draws: Sequence[Floats]) -> float:
    """arXiv 2605.22817: the mean over weights of the best candidate's weighted score."""
    best = [
        max(math.fsum(w * s for w, s in zip(draw, each, strict=True)) for each in candidates)
        for draw in draws
    ]
    return math.fsum(best) / len(best)


def pass_at_k_value(k: int, right: float, wrong: float, steps: int = 20000) -> float:
    """E[k (1 - p)^(k - 1)] for p ~ Beta(right, wrong), by the midpoint rule; both must be 1 or more."""
    points = [(i + 0.5) / steps for i in range(steps)]
    density = [p ** (right - 1) * (1 - p) ** (wrong - 1) for p in points]
    value = math.fsum(d * k * (1 - p) ** (k - 1) for d, p in zip(density, points, strict=True))
    return value / math.fsum(density)
