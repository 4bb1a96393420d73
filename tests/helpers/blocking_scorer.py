"""A scorer actor whose `score` can be called without an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from actors.scorer import ScorerActor
from actors.secrets import NO_SECRETS, Secrets
from rollouts.records import Completion, Judgement, Prompt


class BlockingScorer:
    """A `ScorerActor` for tests of what is scored, not of when."""

    def __init__(
        self, kind: str, options: object, concurrency: int = 1, secrets: Secrets = NO_SECRETS
    ) -> None:
        self.actor = ScorerActor(kind, options, concurrency, secrets)

    def score(
        self, prompt: Prompt, completions: Sequence[Completion], limit_s: float | None = None
    ) -> list[Judgement]:
        return asyncio.run(self.actor.score(prompt, completions, limit_s))

    def close(self) -> None:
        self.actor.close()
