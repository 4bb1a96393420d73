"""A frozen classifier that vLLM does not have, in its own process: transformers' forward pass.

It has the methods of `actors.model_server.ModelServer`, and is started in its place for entries of `models`
with `backend: transformers`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from actors.model_inputs import Encoded, ModelInputs
from configs.kinds.models import ModelOptions
from rewards.model_calls import (
    ClassifyReply,
    EmbedReply,
    GenerateReply,
    GenerateRequest,
    OverLong,
    TextOrPair,
)


def load_classifier(options: ModelOptions, device: str) -> PreTrainedModel:
    """The classifier, ready to be called.

    Raises:
        ValueError: the folder has no weights for its head, which transformers would fill with random numbers.
    """
    model, report = AutoModelForSequenceClassification.from_pretrained(
        options.path,
        dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype],
        trust_remote_code=options.trust_remote_code,
        output_loading_info=True,
    )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{options.path}: must be a sequence classifier, got a folder without {missing[0]} "
            f"({len(missing)} tensors missing)"
        )
    return model.eval().to(device)  # type: ignore[no-any-return]


class ClassifierServer:
    """One replica of a frozen classifier. Inputs of equal length are computed together, so none is padded.

    On CPUs each input is computed alone, so that its logits do not depend on what else is asked.

    Raises:
        ValueError: the model cannot be loaded, or an input is refused.
    """

    def __init__(self, options: ModelOptions, device: str) -> None:
        self._options, self._device = options, device
        self._model = load_classifier(options, device)
        own = getattr(self._model.config, "max_position_embeddings", None) or options.max_model_len
        if not own:
            raise ValueError(f"{options.path}: config.json has no length limit: set max_model_len")
        # Beyond its own length a model with learned positions fails, and others give nonsense.
        if options.max_model_len > own:
            raise ValueError(
                f"{options.path}: max_model_len must be at most {own}, the model's own, got "
                f"{options.max_model_len}"
            )
        self._inputs = ModelInputs(options, options.max_model_len or own)
        # Decoders look for the last token that is no padding; without a padding token they take one row.
        alone = device == "cpu" or self._model.config.pad_token_id is None
        self._batch = 1 if alone else options.max_num_seqs
        self._one_at_a_time = threading.Lock()
        self._cancelled: set[str] = set()
        self._busy_since: float | None = None

    async def ready(self) -> None:
        """Return at once: the model was loaded by the constructor."""

    async def stalled_for_s(self) -> float:
        """Seconds since the current batch began; 0.0 while idle."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    async def generate(self, call_id: str, requests: Sequence[GenerateRequest]) -> list[GenerateReply]:
        raise ValueError(f"{self._options.path}: has task classify, and cannot generate")

    async def embed(self, call_id: str, inputs: Sequence[str], over_long: OverLong) -> list[EmbedReply]:
        raise ValueError(f"{self._options.path}: has task classify, and cannot embed")

    async def classify(
        self, call_id: str, inputs: Sequence[TextOrPair], over_long: OverLong
    ) -> list[ClassifyReply]:
        """The raw logits of each input; see `ModelServer.classify`."""
        encoded = [self._inputs.encode(each, over_long) for each in inputs]
        try:
            logits = await asyncio.to_thread(self._compute, call_id, encoded)
        except asyncio.CancelledError:
            self._cancelled.add(call_id)
            raise
        return [
            ClassifyReply(logits=found, num_tokens=len(each.token_ids), was_cut=each.was_cut)
            for found, each in zip(logits, encoded, strict=True)
        ]

    async def cancel(self, call_id: str) -> None:
        """Stop a call after its current batch; its own await then raises RuntimeError."""
        self._cancelled.add(call_id)

    async def close(self) -> None:
        """Nothing to release."""

    def _compute(self, call_id: str, encoded: Sequence[Encoded]) -> list[tuple[float, ...]]:
        logits: dict[int, tuple[float, ...]] = {}
        try:
            for numbers in self._batches(encoded):
                with self._one_at_a_time, torch.inference_mode():
                    # Looked at between batches: a batch that has begun on the device cannot be taken back.
                    if call_id in self._cancelled:
                        raise RuntimeError("the call was cancelled")
                    self._busy_since = time.monotonic()
                    found = self._forward([encoded[number] for number in numbers])
                    self._busy_since = None
                logits.update(zip(numbers, found, strict=True))
        finally:
            self._busy_since = None
            self._cancelled.discard(call_id)
        return [logits[number] for number in range(len(encoded))]

    def _batches(self, encoded: Sequence[Encoded]) -> Iterator[list[int]]:
        """Numbers of inputs of one length, at most `_batch` at a time."""
        by_length: dict[int, list[int]] = {}
        for number, each in enumerate(encoded):
            by_length.setdefault(len(each.token_ids), []).append(number)
        for numbers in by_length.values():
            yield from (numbers[at : at + self._batch] for at in range(0, len(numbers), self._batch))

    def _forward(self, encoded: Sequence[Encoded]) -> list[tuple[float, ...]]:
        named = {"input_ids": torch.tensor([each.token_ids for each in encoded], device=self._device)}
        named["attention_mask"] = torch.ones_like(named["input_ids"])
        if encoded[0].type_ids:
            named["token_type_ids"] = torch.tensor([each.type_ids for each in encoded], device=self._device)
        logits = self._model(**named).logits.float().cpu()
        return [tuple(float(value) for value in row) for row in logits]
