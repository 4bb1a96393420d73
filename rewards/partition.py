"""The scorer `partition`: how different a completion is from the others of its group, as in DARLING.

In: a prompt and the completions of its group. Out: one Judgement per completion: the diversity score, the
completion's partition, numbers about the group, and the histogram of edge probabilities as text.
docs/scorers/partition.md describes it; `rewards.partition_rules` has the rules, `rewards.partition_pairs` the
kinds of equivalence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from configs.kinds.partition import PartitionOptions
from rewards.model_calls import Model
from rewards.partition_pairs import Edges, equivalence, threshold_of
from rewards.partition_rules import RULES, Floats, histogram, mean_distances, normalised, size_scores
from rollouts.records import Completion, Judgement, Partition, Prompt

OUTCOMES: Final = "outcomes"
"""The text of a judgement that has one word for each test of a program."""


@dataclass(frozen=True, slots=True)
class _Groups:
    """The partition of M completions."""

    ids: list[int]
    """The class of each; 0 is the largest class."""
    probability_MM: Floats
    """Probability that two completions are equivalent; 1 on the diagonal."""
    numbers: Mapping[str, float]
    """About the calls of a model, each completion's share of the group's."""


class PartitionScorer:
    """Diversity within the group: the share of other completions that are not equivalent to this one.

    DARLING, arXiv 2509.02534: Div = (N - s) / (N - 1), with s the size of the completion's class. With `over`
    correct, N counts the correct completions only, and the others score `floor`. Nothing depends on the order
    of the completions.
    """

    def __init__(self, options: PartitionOptions, models: Mapping[str, Model] | None = None) -> None:
        self._options, self._threshold = options, threshold_of(options)
        self._equivalence = equivalence(options, models or {})

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        """One judgement per completion, in order.

        A completion whose quality is not known gets the status of the scorer that should have said it.

        Raises:
            ValueError: the judgements of the scorer `quality` are missing.
            Exception: what a model raised; then no completion of the group has a score, because scores over
                fewer comparisons would not be comparable.
        """
        options = self._options
        unknown = {at: each for at, each in enumerate(map(self._unknown, completions)) if each is not None}
        members = [at for at in range(len(completions)) if at not in unknown and self._is_in(completions[at])]
        groups = await self._partition(prompt, [self._text(completions[at]) for at in members])
        by_size = options.score == "size"
        plain = size_scores(groups.ids) if by_size else mean_distances(groups.probability_MM)
        scores = normalised(plain, options.normalise, options.floor)
        found = {at: self._judgement(groups, place, scores[place]) for place, at in enumerate(members)}
        # A wrong completion that differs from all others must not be paid for it.
        outside = Judgement(score=options.floor)
        return [unknown.get(at) or found.get(at) or outside for at in range(len(completions))]

    async def _partition(self, prompt: Prompt, texts: Sequence[str]) -> _Groups:
        """The partition of texts. Equal texts are equivalent and are compared with the others once.

        The distinct texts are sorted first, so that no rule sees in which order the completions came.
        """
        distinct = sorted(set(texts))
        place = {text: at for at, text in enumerate(distinct)}
        at_M = [place[text] for text in texts]
        alone = Edges(np.eye(len(distinct)))
        edges = await self._equivalence(prompt, distinct) if len(distinct) > 1 else alone
        of_distinct = RULES[self._options.rule](edges.probability_DD, self._threshold)
        ids = [of_distinct[at] for at in at_M]
        sizes = np.bincount(ids, minlength=1)
        # Ids by size, so that a class has the same number whatever the order of the completions was.
        by_size = sorted(set(ids), key=lambda each: (-sizes[each], each))
        rank = {each: number for number, each in enumerate(by_size)}
        return _Groups(
            ids=[rank[each] for each in ids],
            probability_MM=edges.probability_DD[np.ix_(at_M, at_M)],
            numbers={name: value / len(texts) for name, value in edges.numbers.items()},
        )

    def _judgement(self, groups: _Groups, place: int, score: float) -> Judgement:
        mine, ids = groups.ids[place], groups.ids
        edges = groups.probability_MM[np.triu_indices(len(ids), k=1)]
        return Judgement(
            score=score,
            partition=Partition(partition_id=mine, size=ids.count(mine)),
            numbers={
                "partitions": float(len(set(ids))),
                "members": float(len(ids)),
                "distance": mean_distances(groups.probability_MM)[place],
                **groups.numbers,
            },
            texts={"edges": histogram(edges.tolist())},
        )

    def _quality(self, completion: Completion) -> Judgement:
        name = self._options.quality
        if name not in completion.judgements:
            raise ValueError(f"partition: the judgement of scorer {name!r} must be there, got none")
        return completion.judgements[name]

    def _unknown(self, completion: Completion) -> Judgement | None:
        """A null judgement where the quality is not known, else None."""
        if not self._options.quality:
            return None
        quality = self._quality(completion)
        detail = f"scorer {self._options.quality} has no score"
        return (
            None if quality.score is not None else Judgement(score=None, status=quality.status, detail=detail)
        )

    def _is_in(self, completion: Completion) -> bool:
        """Whether the completion is among those that are partitioned."""
        if self._options.over == "all":
            return True
        quality = self._quality(completion)
        assert quality.score is not None, "a completion of unknown quality is left out before"
        # A verdict goes before a score, which may have parts for style or length.
        if quality.answer_ok is not None:
            return quality.answer_ok
        return quality.score >= self._options.correct_from

    def _text(self, completion: Completion) -> str:
        """What is compared: the text, or the answer that `quality` read (marked, so that none is not "")."""
        if self._options.equivalence == "answer":
            answer = self._quality(completion).answer
            return "" if answer is None else f"={answer}"
        if self._options.equivalence == "behaviour":
            if OUTCOMES not in self._quality(completion).texts:
                raise ValueError(
                    f"partition: scorer {self._options.quality!r} must store the text {OUTCOMES}"
                )
            return self._quality(completion).texts[OUTCOMES]
        # Spaces and line breaks are no difference in content.
        return " ".join(completion.text.split())
