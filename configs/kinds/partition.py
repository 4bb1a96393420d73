"""Options of the scorer `partition`, diversity within a group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from configs.errors import Broken
from configs.fields import POSITIVE, SHARE, SHARE_ABOVE_ZERO, one_of, option
from configs.kinds.base import Options


@dataclass
class PartitionOptions(Options):
    """The share of other completions of the group that are not equivalent to this one, as in DARLING."""

    equivalence: str = option("answer", one_of("answer", "ngram"))
    """answer (what `quality` read as the answer is equal) or ngram (share of common word n-grams)."""
    rule: str = option("complete", one_of("components", "greedy", "complete"))
    """components (union-find, as DARLING trains), greedy (by representatives) or complete (linkage)."""
    threshold: float = option(0.5, SHARE_ABOVE_ZERO)
    """Two texts are equivalent from this probability, cosine or overlap on."""
    over: str = option("correct", one_of("all", "correct"))
    """correct: only correct completions are compared, and the others score `floor`."""
    quality: str = ""
    """The scorer that says which completions are correct, and which answer each gives."""
    correct_from: float = 1.0
    """Score of `quality` from which a completion is correct, where that scorer reads no answers."""
    score: str = option("size", one_of("size", "distance"))
    """size ((N - s) / (N - 1), s the class's size) or distance (1 - the mean probability of the pairs)."""
    normalise: str = option("none", one_of("none", "largest"))
    """largest: divide by the largest score of the group."""
    floor: float = option(0.1, SHARE)
    """The smallest score. DARLING's code has 0.1; at 0, a group of equal answers learns nothing with combine
    multiply."""
    ngram: int = option(4, POSITIVE)
    """Words in an n-gram."""

    def reads(self) -> Mapping[str, str]:
        return {"quality": self.quality} if self.quality else {}

    def check(self) -> Iterator[Broken]:
        if self.quality:
            return
        if self.over == "correct":
            yield (
                "quality",
                "must name the scorer that says what is correct, or over must be all",
            )
        if self.equivalence == "answer":
            yield "quality", "must name the scorer that reads the answers, or equivalence must be another"
