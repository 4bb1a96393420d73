"""The plan of a completion as a tag: which strategic n-grams it contains. Scorer `plan_tags`, on token ids.

In: a prompt's completions. Out: Judgements with the tag `strategy`. Called by `actors.scorer`. It is
here, not in `rewards`, because it reads the n-grams of `trainer.token_advantages.strategic_ngrams`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from configs.kinds.text_scorers import PlanTagsOptions
from rollouts.records import Completion, Judgement, Prompt
from trainer.token_advantages.planning import segment_ends
from trainer.token_advantages.strategic_ngrams import Gram, find_grams, load_grams

NO_PLAN: Final = "none"


def plan_tags(prompt: Prompt, completions: Sequence[Completion], options: PlanTagsOptions) -> list[Judgement]:
    """Tag each completion's ``strategy``, such as ``g0 g3``; score 1 with n-grams, else 0 and ``none``.

    g0 is the most frequent n-gram of the file. The tag has the set of n-grams found, or with `ordered` their
    sequence; `max_grams` of them.

    Raises:
        ValueError: the file cannot be read.
    """
    numbers = _numbers(options.path)
    tags = [_plan(completion, numbers, options) for completion in completions]
    return [Judgement(score=float(tag != NO_PLAN), tags={"strategy": tag}) for tag in tags]


def locate_grams(options: PlanTagsOptions) -> PlanTagsOptions:
    """Check the file of `options`, and make its path absolute.

    Raises:
        ValueError: the file is missing or damaged; see `load_grams`.
    """
    path = Path(options.path).resolve()
    load_grams(path)
    return replace(options, path=str(path))


@lru_cache(maxsize=4)
def _numbers(path: str) -> dict[Gram, int]:
    """Each n-gram's place in the file, which begins with the most frequent."""
    return {gram: number for number, gram in enumerate(load_grams(Path(path)).documents)}


def _plan(completion: Completion, numbers: dict[Gram, int], options: PlanTagsOptions) -> str:
    ids = np.array(completion.token_ids, np.int64)
    positions = np.arange(len(ids))
    if completion.loss_mask is not None:  # what an environment wrote is no plan of the policy
        sampled = np.array(completion.loss_mask, np.bool_)
        ids, positions = ids[sampled], positions[sampled]
    _, matches = find_grams(ids, segment_ends(np.zeros(len(ids), np.int64), positions), numbers)
    found = [numbers[gram] for gram in matches]
    chosen = (found if options.ordered else sorted(set(found)))[: options.max_grams]
    return " ".join(f"g{number}" for number in chosen) or NO_PLAN
