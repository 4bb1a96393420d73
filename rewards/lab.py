"""Scorers of the synthetic lab: the answer to an arithmetic problem, and a fixed preference over syllables.

In: a prompt's completions. Out: Judgements. Named in `configs/kinds/scorers.py`; called in process by
`actors.scorer`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from configs.kinds.scorers import LabAnswerOptions, LabPreferenceOptions
from rewards.target_forms import Item, batched
from rollouts.records import Completion, Judgement, Prompt, Span

SYLLABLES: tuple[str, ...] = (
    "ba", "de", "fi", "go", "hu", "ja", "ke", "li", "mo", "nu", "pa", "re", "si", "to", "vu", "za",
)  # fmt: skip
"""The alphabet of the open-ended domain: a text is syllables joined by whitespace."""
MIN_FAVOURED, MAX_FAVOURED = 6, 14
"""Lengths in syllables, both included, that earn the bonus."""
LENGTH_BONUS = 0.1
BIGRAM_GAIN = 2.0
"""Slope of the logistic; table entries are standard normal, so random syllables score about 0.45 + bonus."""

_INTEGER = re.compile(r"-?[0-9]+")
_SYLLABLE_INDEX = {syllable: index for index, syllable in enumerate(SYLLABLES)}


def lab_answer(
    prompt: Prompt, completions: Sequence[Completion], options: LabAnswerOptions
) -> list[Judgement]:
    """1 if the last integer of the text equals the prompt's answer, else 0.

    `answer` is that integer without leading zeros, or None if the text has none. A span labelled ``answer``
    marks its token, if that can be determined from the text.

    Raises:
        ValueError: the prompt's answer is not an integer.
    """
    if prompt.answer is None or not _INTEGER.fullmatch(prompt.answer.strip()):
        raise ValueError(
            f"lab_answer: answer of prompt {prompt.prompt_id!r} must be an integer, got {prompt.answer!r}"
        )
    truth = _normalise(prompt.answer.strip())
    return [_score_answer(completion, truth) for completion in completions]


@batched
def lab_preference(items: Sequence[Item], options: LabPreferenceOptions) -> list[Judgement]:
    """The preference of each text, in [0, 1]: 0.9 logistic(2 mean bigram weight) + 0.1 for 6 to 14 syllables.

    The 16 x 16 bigram weights are standard normal, drawn once from ``default_rng(table_seed)``; a single
    syllable has mean 0. An empty text, or one with a word that is not a syllable, scores 0. It plays the part
    of a reward model and is batched like one: `items` may come from several groups.
    """
    table_SS = bigram_table(options.table_seed)
    return [Judgement(score=_preference(completion.text, table_SS)) for _, completion in items]


@functools.lru_cache(maxsize=8)
def bigram_table(table_seed: int) -> npt.NDArray[np.float64]:
    """Weights [S, S] of a syllable (row) followed by another (column); read-only."""
    table_SS = np.random.default_rng(table_seed).standard_normal((len(SYLLABLES), len(SYLLABLES)))
    # The cache hands the same array to every caller.
    table_SS.setflags(write=False)
    return table_SS


def _score_answer(completion: Completion, truth: str) -> Judgement:
    integers = _INTEGER.findall(completion.text)
    if not integers:
        return Judgement(score=0.0, answer_ok=False)
    answer = _normalise(integers[-1])
    correct = answer == truth
    return Judgement(
        score=float(correct), spans=_answer_span(completion, integers[-1]), answer=answer, answer_ok=correct
    )


def _normalise(integer: str) -> str:
    """The canonical text of an integer literal. Not by `int`, which raises for more than 4,300 digits."""
    digits = integer.lstrip("-").lstrip("0")
    if not digits:
        return "0"
    return f"-{digits}" if integer.startswith("-") else digits


def _answer_span(completion: Completion, literal: str) -> tuple[Span, ...]:
    """The token of `literal`, the last integer, if the text determines it; else no span.

    It does if words and tokens correspond one to one: there are as many words as tokens (except the
    end-of-text token, which has no text), equal words have equal tokens and different words different ones,
    and the literal is a whole word. A scorer has no tokenizer that would tell.
    """
    words, token_ids = completion.text.split(), completion.token_ids
    # Only the end-of-text token has no text: one token more than words is the most that can be.
    num_without_text = len(token_ids) - len(words)
    if literal not in words or num_without_text not in (0, 1):
        return ()
    if num_without_text and (completion.finish_reason != "stop" or token_ids[-1] in token_ids[:-1]):
        return ()
    pairs = set(zip(words, token_ids, strict=False))
    if not len(pairs) == len(set(words)) == len({token for _, token in pairs}):
        return ()
    start = len(words) - 1 - words[::-1].index(literal)
    if any(_INTEGER.search(word) for word in words[start + 1 :]):
        return ()  # the last integer is part of a later word, not this one
    return (Span(label="answer", start=start, end=start + 1),)


def _preference(text: str, table_SS: npt.NDArray[np.float64]) -> float:
    """One text's preference, in [0, 1]."""
    words = text.split()
    if not words or any(word not in _SYLLABLE_INDEX for word in words):
        return 0.0
    indices_N = np.array([_SYLLABLE_INDEX[word] for word in words])
    weight = float(table_SS[indices_N[:-1], indices_N[1:]].mean()) if len(words) > 1 else 0.0
    bonus = LENGTH_BONUS if MIN_FAVOURED <= len(words) <= MAX_FAVOURED else 0.0
    return (1.0 - LENGTH_BONUS) / (1.0 + math.exp(-BIGRAM_GAIN * weight)) + bonus
