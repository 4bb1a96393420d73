"""Repetition of n-grams. In: a prompt's completions. Out: Judgements.

Called in process by `actors.scorer`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from configs.kinds.text_scorers import RepetitionOptions
from rollouts.records import Completion, Judgement, Prompt


def repetition(
    prompt: Prompt, completions: Sequence[Completion], options: RepetitionOptions
) -> list[Judgement]:
    """max_penalty x (1 - distinct n-grams / n-grams), between `max_penalty` and 0.

    Appendix C.2 of arXiv 2502.03373 as one number per completion, as in TRL (`unit: tokens`) and Open-R1
    (`unit: words`). A completion of fewer than `ngram_size` units scores 0.
    """
    return [
        Judgement(
            score=options.max_penalty * repeated_share(_units(each, options.unit), options.ngram_size) + 0.0
        )
        for each in completions
    ]


def repeated_share(units: Sequence[Hashable], size: int) -> float:
    """The share of n-grams of `size` units that occurred before, in [0, 1); 0 if there are none.

    Raises:
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"ngram_size must be at least 1, got {size}")
    total = len(units) - size + 1
    if total < 1:
        return 0.0
    return 1.0 - len({tuple(units[start : start + size]) for start in range(total)}) / total


def _units(completion: Completion, unit: str) -> Sequence[Hashable]:
    if unit == "tokens":
        # Tokens that an environment has inserted are not repetitions of the policy.
        mask = completion.loss_mask
        ids = completion.token_ids
        return ids if mask is None else [each for each, sampled in zip(ids, mask, strict=True) if sampled]
    text = completion.text.lower()
    return text.split() if unit == "words" else text
