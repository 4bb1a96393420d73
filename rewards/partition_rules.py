"""From pairwise probabilities of equivalence to a partition, and from a partition to diversity scores.

In: a symmetric matrix of probabilities for N texts. Out: a class id per text, and a score per text. Pure
functions of their inputs; `rewards.partition` makes the matrix, `benchmarks/partition_noise.py` measures the
rules.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
NUM_BINS: Final = 10
"""Bins of the histogram of edge probabilities, of equal width over [0, 1]."""


def components(probability_NN: Floats, threshold: float) -> list[int]:
    """Connected components of the edges of at least `threshold`: union-find, as DARLING trains.

    arXiv 2509.02534. One wrong edge joins two classes, so that errors add up with the number of texts. Ids
    count from 0 in the order of each class's first text.
    """
    parent = list(range(len(probability_NN)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for first, second in np.argwhere(np.triu(probability_NN >= threshold, k=1)).tolist():
        parent[root(second)] = root(first)
    return _numbered([root(node) for node in range(len(parent))])


def greedy(probability_NN: Floats, threshold: float) -> list[int]:
    """Each text joins the first class whose representative, its first text, is at least `threshold`.

    The rule of NoveltyBench and of DARLING's evaluation: one wrong edge moves one text. It depends on the
    order of the texts, which `rewards.partition` therefore sorts. Ids as in `components`.
    """
    representatives: list[int] = []
    found: list[int] = []
    for text in range(len(probability_NN)):
        joined = (at for at, first in enumerate(representatives) if probability_NN[first, text] >= threshold)
        number = next(joined, len(representatives))
        if number == len(representatives):
            representatives.append(text)
        found.append(number)
    return found


def complete(probability_NN: Floats, threshold: float) -> list[int]:
    """Complete linkage: as long as all pairs of two classes are at least `threshold`, join the closest two.

    The closest are those whose least likely pair is the likeliest; ties go to the classes with the earlier
    texts. One wrong edge between two classes joins nothing. Ids as in `components`.
    """
    linkage = np.where(np.triu(np.ones(probability_NN.shape, bool), k=1), probability_NN, -np.inf)
    linkage = np.maximum(linkage, linkage.T)
    owner = np.arange(len(linkage))
    while linkage.size:
        first, second = sorted(divmod(int(linkage.argmax()), len(linkage)))
        if not linkage[first, second] >= threshold:
            break
        # A class is known by its first text; the other text's row and column leave the comparison.
        linkage[first] = np.minimum(linkage[first], linkage[second])
        linkage[:, first] = linkage[first]
        linkage[second], linkage[:, second] = -np.inf, -np.inf
        owner[owner == second] = first
    return _numbered(owner.tolist())


RULES: Final[dict[str, Callable[[Floats, float], list[int]]]] = {
    "components": components,
    "greedy": greedy,
    "complete": complete,
}


def _numbered(owners: Sequence[int]) -> list[int]:
    """The same classes with ids 0, 1, 2, ... in the order of their first members."""
    order: dict[int, int] = {}
    return [order.setdefault(owner, len(order)) for owner in owners]


def size_scores(ids: Sequence[int]) -> list[float]:
    """(N - s) / (N - 1), with s the size of the text's class: Div of DARLING, arXiv 2509.02534.

    The share of the other texts that are in another class. A single text scores 1: nothing is like it, and
    the formula would divide by zero.
    """
    sizes = np.bincount(ids, minlength=1)
    return [(len(ids) - int(sizes[each])) / (len(ids) - 1) if len(ids) > 1 else 1.0 for each in ids]


def mean_distances(probability_NN: Floats) -> list[float]:
    """1 - the mean probability that the text is equivalent to another one; 1 for a single text.

    With probabilities of 0 and 1 that are transitive it equals `size_scores`.
    """
    count = len(probability_NN)
    if count <= 1:
        return [1.0] * count
    others = probability_NN.copy()
    np.fill_diagonal(others, 0.0)
    # Exact sums: those of numpy depend on the order of the texts in their last digit.
    return [1.0 - math.fsum(row) / (count - 1) for row in others.tolist()]


def normalised(scores: Sequence[float], by: str, floor: float) -> list[float]:
    """The scores, divided by the group's largest where `by` is largest, and at least `floor`."""
    divisor = max(scores, default=0.0) if by == "largest" else 1.0
    return [max(score / divisor if divisor > 0 else score, floor) for score in scores]


def histogram(probabilities: Sequence[float]) -> str:
    """The numbers of edges by probability, as a JSON list of `NUM_BINS` counts; 1.0 is in the last bin."""
    counts, _ = np.histogram(np.clip(probabilities, 0.0, 1.0), bins=NUM_BINS, range=(0.0, 1.0))
    return json.dumps(counts.tolist())
