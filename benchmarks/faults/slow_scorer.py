"""A user's slow scorer, so that a fault can hit the scoring phase. Its scores have no meaning."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping, Sequence

from configs.kinds.base import OwnOptions
from rollouts.records import Completion, Judgement, Prompt


def linger(prompt: Prompt, completions: Sequence[Completion], options: OwnOptions) -> list[Judgement]:
    """The share of even tokens, after `delay_s` seconds, to which up to `jitter_s` are added at random."""
    given: Mapping[str, float] = options.options
    chance = random.Random(os.urandom(8))
    time.sleep(given.get("delay_s", 0.02) + chance.random() * given.get("jitter_s", 0.0))
    return [
        Judgement(
            score=sum(token % 2 == 0 for token in completion.token_ids) / max(1, len(completion.token_ids))
        )
        for completion in completions
    ]
