"""A frozen model that judges, without an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from judge_endpoint import says

from rewards.model_calls import (
    ClassifyReply,
    EmbedReply,
    GenerateReply,
    GenerateRequest,
    OverLong,
    TextOrPair,
)

YES = says({"correct": "yes"})


class FakeModel:
    """A model of the run: it says yes, or raises."""

    def __init__(self, error: Exception | None = None, wait_s: float = 0.0) -> None:
        self.error, self.wait_s = error, wait_s
        self.requests: list[GenerateRequest] = []

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[GenerateReply]:
        self.requests += requests
        await asyncio.sleep(self.wait_s)
        if self.error:
            raise self.error
        replies = []
        for request in requests:
            messages = [{"role": role, "content": content} for role, content in request.prompt]  # type: ignore[misc]
            text = YES({"messages": messages})["choices"][0]["message"]["content"]
            replies.append(
                GenerateReply(text=text, finish_reason="stop", num_prompt_tokens=7, num_completion_tokens=3)
            )
        return replies

    async def classify(
        self, inputs: Sequence[TextOrPair], over_long: OverLong = "cut_left"
    ) -> list[ClassifyReply]:
        raise AssertionError("a judge generates")

    async def embed(self, inputs: Sequence[str], over_long: OverLong = "cut_right") -> list[EmbedReply]:
        raise AssertionError("a judge generates")
