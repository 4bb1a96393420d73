"""What earlier steps sampled for each prompt: how often each answer, how often right. Kept by the run.

Read by `trainer.credit.credit` before a step is learned from; the loop adds the step once it is committed,
and keeps the whole in checkpoints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.origins import POLICY
from rollouts.files import Json

MAX_ANSWERS: Final = 64
"""Answers of a prompt that are counted apart; all later new ones share a place.

arXiv 2509.06941 finds fewer than 50 distinct answers per question.
"""
UNREAD: Final = ""
"""The place of samples in which no answer could be read."""
OTHERS: Final = "others"
"""The place of answers beyond MAX_ANSWERS."""


@dataclass(slots=True)
class _Prompt:
    """The counts of one prompt; `answers` by the place of each answer."""

    successes: int = 0
    failures: int = 0
    answers: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """What was counted before a step, per row of it, each int64 [N]."""

    visits_N: np.ndarray
    successes_N: np.ndarray
    failures_N: np.ndarray


class AnswerHistory:
    """Counts by prompt over the rows of origin policy that had a reward when they were judged.

    Such a row of a committed step counts once; replayed, refined and supervised rows never do. `state` has
    for each prompt two numbers and at most MAX_ANSWERS + 1 pairs of 16 characters and a number: under 2 kB
    as JSON, however long the run, and nothing for prompts that were never sampled.
    """

    def __init__(self) -> None:
        self._prompts: dict[str, _Prompt] = {}

    def before(self, index: pa.Table) -> Before:
        """The counts for every row of a step's index, as they stand."""
        found = [self._prompts.get(name, _Prompt()) for name in index.column("prompt_id").to_pylist()]
        answers = index.column("answer").to_pylist()
        visits = [
            each.answers.get(_place(each.answers, answer), 0)
            for each, answer in zip(found, answers, strict=True)
        ]
        return Before(
            visits_N=np.array(visits, np.int64),
            successes_N=np.array([each.successes for each in found], np.int64),
            failures_N=np.array([each.failures for each in found], np.int64),
        )

    def add(self, index: pa.Table) -> None:
        """Count the rows of a committed step."""
        counted = pc.and_(pc.equal(index.column("origin"), POLICY), pc.is_valid(index.column("reward")))
        rows = index.filter(counted)
        columns = (rows.column(name).to_pylist() for name in ("prompt_id", "answer", "answer_ok"))
        for prompt_id, answer, is_right in zip(*columns, strict=True):
            mine = self._prompts.setdefault(prompt_id, _Prompt())
            place = _place(mine.answers, answer)
            mine.answers[place] = mine.answers.get(place, 0) + 1
            mine.successes += is_right is True
            mine.failures += is_right is False

    def state(self) -> dict[str, Json]:
        """Prompt id -> [successes, failures, {place: count}]."""
        return {
            name: [each.successes, each.failures, dict(each.answers)] for name, each in self._prompts.items()
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Count on from a `state`; an empty one is the beginning."""
        self._prompts = {
            name: _Prompt(successes=successes, failures=failures, answers=dict(answers))
            for name, (successes, failures, answers) in state.items()
        }


def _place(answers: Mapping[str, int], answer: str | None) -> str:
    """Where an answer is counted: 16 characters of its hash, as answers may be long."""
    if answer is None:
        return UNREAD
    digest = hashlib.blake2b(answer.encode(), digest_size=8).hexdigest()
    is_full = len(answers) - (UNREAD in answers) - (OTHERS in answers) >= MAX_ANSWERS
    return OTHERS if is_full and digest not in answers else digest
