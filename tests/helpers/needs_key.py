"""A user's scorer that reads its key when it is imported, as clients of web services do."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rollouts.records import Completion, Judgement, Prompt

KEY = os.environ["JUDGE_API_KEY"]


async def score(prompt: Prompt, completions: Sequence[Completion], options: object) -> list[Judgement]:
    """Its length, for everyone."""
    return [Judgement(score=float(len(KEY))) for _ in completions]
