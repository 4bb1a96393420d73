"""Counts of what earlier steps sampled for each prompt: how often each answer and tag, how often correct.

`trainer.credit.credit` reads the counts before a step's update. The loop adds the step after its commit, and
checkpoints keep all counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.origins import POLICY
from rollouts.files import Json

MAX_ANSWERS: Final = 64
"""Distinct answers of a prompt with a count of their own; all later ones share one count.

arXiv 2509.06941 reports fewer than 50 distinct answers per question.
"""
UNREAD: Final = ""
"""The key of samples without an extracted answer."""
OTHERS: Final = "others"
"""The key of answers beyond MAX_ANSWERS."""


@dataclass(slots=True)
class _Prompt:
    """The counts of one prompt: `answers` by the key of each (`_key`), `tags` by tag and key of its value."""

    successes: int = 0
    failures: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    tags: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierCounts:
    """The counts before a step for each of its rows, [N] each; see `RewardedRows`."""

    visits_N: np.ndarray
    successes_N: np.ndarray
    failures_N: np.ndarray
    tag_visits_N: np.ndarray


class AnswerHistory:
    """Counts per prompt over the committed rows of origin policy that have a reward.

    Each such row counts once. Replayed, refined and supervised rows never count. `state` holds for each
    sampled prompt two numbers and at most MAX_ANSWERS + 2 pairs of a 16-character key and a number: under
    2 kB as JSON, however long the run. Each of `tags`, whose values are counted too, adds as much.
    """

    def __init__(self, tags: Sequence[str] = ()) -> None:
        self._prompts: dict[str, _Prompt] = {}
        self._tags = tuple(tags)

    def before(self, index: pa.Table) -> EarlierCounts:
        """The current counts for every row of a step's index."""
        prompts = [self._prompts.get(name, _Prompt()) for name in index.column("prompt_id").to_pylist()]
        answers = index.column("answer").to_pylist()
        visits = [
            each.answers.get(_key(each.answers, answer), 0)
            for each, answer in zip(prompts, answers, strict=True)
        ]
        tag_visits = np.empty(index.num_rows, dtype=object)
        tag_visits[:] = [
            {
                tag: each.tags.get(tag, {}).get(_key(each.tags.get(tag, {}), value), 0)
                for tag, value in row.items()
            }
            for each, row in zip(prompts, self._tags_of(index), strict=True)
        ]
        return EarlierCounts(
            tag_visits_N=tag_visits,
            visits_N=np.array(visits, np.int64),
            successes_N=np.array([each.successes for each in prompts], np.int64),
            failures_N=np.array([each.failures for each in prompts], np.int64),
        )

    def add(self, index: pa.Table) -> None:
        """Count the rows of a committed step."""
        # A sample without a reward was not judged, so it tells nothing about right and wrong.
        counted = pc.and_(pc.equal(index.column("origin"), POLICY), pc.is_valid(index.column("reward")))
        rows = index.filter(counted)
        columns = (rows.column(name).to_pylist() for name in ("prompt_id", "answer", "answer_ok"))
        for prompt_id, answer, is_right, tags in zip(*columns, self._tags_of(rows), strict=True):
            prompt = self._prompts.setdefault(prompt_id, _Prompt())
            for tag, value in tags.items():
                _count(prompt.tags.setdefault(tag, {}), value)
            _count(prompt.answers, answer)
            prompt.successes += is_right is True  # None, where no scorer checked it, counts as neither
            prompt.failures += is_right is False

    def _tags_of(self, index: pa.Table) -> list[dict[str, str]]:
        """The counted tags of each row, those that it has."""
        if not self._tags:
            return [{} for _ in range(index.num_rows)]
        rows = (dict(pairs or ()) for pairs in index.column("tags").to_pylist())
        return [{tag: row[tag] for tag in self._tags if tag in row} for row in rows]

    def state(self) -> dict[str, Json]:
        """Prompt id -> [successes, failures, {answer key: count}], then {tag: {value key: count}} if any."""
        return {
            name: [
                *(each.successes, each.failures, dict(each.answers)),
                *([{tag: dict(counts) for tag, counts in each.tags.items()}] if each.tags else []),
            ]
            for name, each in self._prompts.items()
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`; an empty one resets all counts."""
        self._prompts = {
            name: _Prompt(
                successes=successes,
                failures=failures,
                answers=dict(answers),
                tags={tag: dict(counts) for own in tags for tag, counts in own.items()},
            )
            for name, (successes, failures, answers, *tags) in state.items()
        }


def _count(counts: dict[str, int], value: str | None) -> None:
    key = _key(counts, value)
    counts[key] = counts.get(key, 0) + 1


def _key(answers: Mapping[str, int], answer: str | None) -> str:
    """The key an answer is counted under: 16 characters of its hash, because answers may be long."""
    if answer is None:
        return UNREAD
    digest = hashlib.blake2b(answer.encode(), digest_size=8).hexdigest()
    # The two shared keys do not count towards the limit.
    is_full = len(answers) - (UNREAD in answers) - (OTHERS in answers) >= MAX_ANSWERS
    return OTHERS if is_full and digest not in answers else digest
