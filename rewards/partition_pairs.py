"""How likely two texts of a group are equivalent, by the kinds of `equivalence` of the scorer `partition`.

In: a prompt and D distinct texts. Out: a symmetric matrix of probabilities [D, D]; the diagonal is not used.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import numpy as np

from configs.kinds.partition import PartitionOptions
from rewards.model_calls import Model
from rewards.partition_rules import Floats
from rollouts.records import Prompt

Probabilities = Callable[[Prompt, Sequence[str]], Awaitable[Floats]]


def equivalence(options: PartitionOptions, models: Mapping[str, Model]) -> Probabilities:
    """The function that `options.equivalence` names.

    Raises:
        ValueError: an unknown name.
    """
    if options.equivalence == "answer":
        return _same
    if options.equivalence == "ngram":
        return _NgramOverlap(options.ngram)
    raise ValueError(f"partition: unknown equivalence {options.equivalence!r}")


async def _same(prompt: Prompt, texts: Sequence[str]) -> Floats:
    """0 for all pairs: the texts are distinct."""
    return np.eye(len(texts))


class _NgramOverlap:
    """|A and B| / max(|A|, |B|) for the sets of word n-grams A and B of two texts, in lower case.

    With n = 1 and a threshold of 0.5 this is DARLING's rule for short answers, but for repeated words.
    A text of fewer than n words is one n-gram.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    async def __call__(self, prompt: Prompt, texts: Sequence[str]) -> Floats:
        grams = [self._grams(text) for text in texts]
        overlap_DD = np.eye(len(texts))
        for first in range(len(texts)):
            for second in range(first):
                larger = max(len(grams[first]), len(grams[second]))
                overlap_DD[first, second] = len(grams[first] & grams[second]) / larger
                overlap_DD[second, first] = overlap_DD[first, second]
        return overlap_DD

    def _grams(self, text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        starts = range(max(1, len(words) - self._size + 1))
        return {tuple(words[start : start + self._size]) for start in starts}
