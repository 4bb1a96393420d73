"""A model whose calls end at a limit that its owner sets, such as the deadline of a group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from rewards.model_calls import (
    ClassifyReply,
    EmbedReply,
    GenerateReply,
    GenerateRequest,
    Model,
    OverLong,
    TextOrPair,
)


class LimitedModel:
    """`model`, with every call inside a new `limit()`, which raises TimeoutError past its end."""

    def __init__(self, model: Model, limit: Callable[[], AbstractAsyncContextManager[object]]) -> None:
        self._model, self._limit = model, limit

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[GenerateReply]:
        async with self._limit():
            return await self._model.generate(requests)

    async def classify(
        self, inputs: Sequence[TextOrPair], over_long: OverLong = "cut_left"
    ) -> list[ClassifyReply]:
        async with self._limit():
            return await self._model.classify(inputs, over_long)

    async def embed(self, inputs: Sequence[str], over_long: OverLong = "cut_right") -> list[EmbedReply]:
        async with self._limit():
            return await self._model.embed(inputs, over_long)
