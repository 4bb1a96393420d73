"""Scorers without ground truth: length, a coin flip, a constant. In: a prompt's completions. Out: Judgements.

Named in `configs/kinds/scorers.py`; called in process by `actors.scorer`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from configs.kinds.scorers import ConstantOptions, LengthOptions, RandomOptions
from rollouts.records import Completion, Judgement, Prompt


def length(prompt: Prompt, completions: Sequence[Completion], options: LengthOptions) -> list[Judgement]:
    """1 up to `target_tokens` sampled tokens, 0 from `max_tokens` on, linear between.

    Raises:
        ValueError: `target_tokens` is not below `max_tokens`.
    """
    if not 0 <= options.target_tokens < options.max_tokens:
        raise ValueError(
            "length: target_tokens must be at least 0 and below max_tokens, "
            f"got target_tokens={options.target_tokens}, max_tokens={options.max_tokens}"
        )
    width = options.max_tokens - options.target_tokens
    excess = (completion.num_sampled - options.target_tokens for completion in completions)
    return [Judgement(score=1.0 - min(max(tokens, 0), width) / width) for tokens in excess]


def random(prompt: Prompt, completions: Sequence[Completion], options: RandomOptions) -> list[Judgement]:
    """1 with `probability`, else 0.

    Decided by a hash of the option `seed` and the sample's seed, so it does not depend on order or machine.
    """
    return [
        Judgement(score=float(_uniform(options.seed, completion.seed) < options.probability))
        for completion in completions
    ]


def constant(prompt: Prompt, completions: Sequence[Completion], options: ConstantOptions) -> list[Judgement]:
    """`value` for every completion."""
    return [Judgement(score=float(options.value)) for _ in completions]


def _uniform(seed: int, sample_seed: int) -> float:
    """In [0, 1): the first 53 bits of SHA-256 of "seed:sample_seed" (as many as a float64 holds)."""
    digest = hashlib.sha256(f"{seed}:{sample_seed}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2.0**53
