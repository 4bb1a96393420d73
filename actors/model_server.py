"""A frozen model in its own process: a vLLM engine that generates, classifies or embeds.

A plain class with async methods; `cluster` starts `replicas` of them for each entry of `models`, and
`rewards.model_calls.Model` is how others use them. Its engine's thread is `actors.engine_thread`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from vllm import PoolingParams, SamplingParams
from vllm.config import PoolerConfig, StructuredOutputsConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from actors.engine_thread import Call, EngineThread, Output, Request, settled, shared_args
from actors.model_inputs import Encoded, ModelInputs
from configs.kinds.models import CLASSIFY, EMBED, GENERATE, ModelOptions
from rewards.model_calls import (
    ClassifyReply,
    EmbedReply,
    GenerateReply,
    GenerateRequest,
    OverLong,
    TextOrPair,
)

_LEAST_BATCHED_TOKENS = 4096
_MOST_MEMORY = 0.9
"""Share of a GPU's memory that one model takes if nothing is set."""


def server_args(options: ModelOptions, device: str) -> EngineArgs:
    """The engine's arguments. Without `max_model_len` the limit is the one that the model's folder has."""
    shared = shared_args(
        path=options.path,
        trust_remote_code=options.trust_remote_code,
        dtype=options.dtype,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        tensor_parallel=max(1, int(options.num_gpus)),
        kv_cache_bytes=options.kv_cache_bytes,
        gpu_memory_utilization=options.gpu_memory_utilization or min(options.num_gpus, _MOST_MEMORY),
        device=device,
    )
    generates = options.task == GENERATE
    args = EngineArgs(
        **{**shared, "max_model_len": options.max_model_len or None},
        runner="generate" if generates else "pooling",
        # Judges share the beginning of their prompts. On CPU a cached prefix changes the last bits.
        enable_prefix_caching=generates and device != "cpu",
        seed=0,
    )
    if generates:
        # Without white space between tokens of JSON, which a weak model would write without end.
        args.structured_outputs_config = StructuredOutputsConfig(
            backend="xgrammar", disable_any_whitespace=True
        )
    if options.pooling != "auto":
        args.pooler_config = PoolerConfig(pooling_type=options.pooling.upper())
    if not options.max_model_len:
        args.max_num_batched_tokens = max(args.create_model_config().max_model_len, _LEAST_BATCHED_TOKENS)
    return args


class ModelServer(EngineThread):
    """One replica of a frozen model. Methods may be called concurrently; replies are in the inputs' order.

    `call_id` names a call for `cancel`. At temperature 0, or with the same seed, equal requests give equal
    replies on the same hardware; on CPUs whatever else runs beside them.

    Raises:
        ValueError: the model cannot do its task or what is asked.
        EngineFailedError: (from every method) the engine failed; the actor must be replaced.
    """

    def __init__(self, options: ModelOptions, device: str) -> None:
        super().__init__(server_args(options, device))
        self._options = options
        tasks = self._engine.get_supported_tasks()
        if options.task not in tasks:
            raise ValueError(
                f"{options.path}: must be a model for task {options.task}, got one for {', '.join(tasks)}"
            )
        self._inputs = ModelInputs(options, self._engine.model_config.max_model_len)
        self._running: dict[str, Call] = {}
        self._calls: dict[str, Call] = {}
        self._start()

    async def ready(self) -> None:
        """Return once the engine has started."""
        await self.stalled_for_s()

    async def generate(self, call_id: str, requests: Sequence[GenerateRequest]) -> list[GenerateReply]:
        """One text for each request.

        Raises:
            ValueError: a prompt is refused by the template or leaves no room for `max_tokens`; or the model
                cannot write a text in the form that a request asks for.
        """
        self._check_task(GENERATE)
        ids = [self._inputs.to_generate(request) for request in requests]
        asked = [Request(own, _sampling_params(each)) for own, each in zip(ids, requests, strict=True)]
        outputs = [output.outputs[0] for output in await self._ask(call_id, asked)]
        if any(output.finish_reason == "error" for output in outputs):
            raise ValueError(
                f"{self._options.path}: the model cannot write a reply in the form that is asked for: its "
                "tokenizer has no tokens for it"
            )
        texts = self._inputs.decode([output.token_ids for output in outputs])
        return [
            GenerateReply(
                text=text,
                finish_reason=str(output.finish_reason),
                num_prompt_tokens=len(own),
                num_completion_tokens=len(output.token_ids),
                token_ids=tuple(output.token_ids),
            )
            for text, output, own in zip(texts, outputs, ids, strict=True)
        ]

    async def classify(
        self, call_id: str, inputs: Sequence[TextOrPair], over_long: OverLong
    ) -> list[ClassifyReply]:
        """The raw logits of each input.

        Raises:
            ValueError: an input is too long and must not be cut, is empty, or is refused by the template.
        """
        self._check_task(CLASSIFY)
        encoded = [self._inputs.encode(each, over_long) for each in inputs]
        found = await self._ask(call_id, [_pooling_request(each, CLASSIFY) for each in encoded])
        return [
            ClassifyReply(logits=_numbers(output), num_tokens=len(each.token_ids), was_cut=each.was_cut)
            for output, each in zip(found, encoded, strict=True)
        ]

    async def embed(self, call_id: str, inputs: Sequence[str], over_long: OverLong) -> list[EmbedReply]:
        """The embedding of each text, not normalised; raises as `classify`."""
        self._check_task(EMBED)
        encoded = [self._inputs.encode(each, over_long) for each in inputs]
        found = await self._ask(call_id, [_pooling_request(each, EMBED) for each in encoded])
        return [
            EmbedReply(vector=_numbers(output), num_tokens=len(each.token_ids), was_cut=each.was_cut)
            for output, each in zip(found, encoded, strict=True)
        ]

    async def cancel(self, call_id: str) -> None:
        """Drop the requests of a call that has lost its caller; its own await then raises RuntimeError."""
        if (call := self._calls.get(call_id)) is not None:
            self._abandon(call)

    # -- inside --

    def _check_task(self, task: str) -> None:
        if task != self._options.task:
            raise ValueError(f"{self._options.path}: has task {self._options.task}, and cannot {task}")

    async def _ask(self, call_id: str, requests: Sequence[Request]) -> list[Any]:
        """The engine's outputs, one for each request."""
        if not requests:
            return []
        call = Call(requests)
        self._calls[call_id] = call
        self._post(call.answer, lambda: self._admit(call, requests, self._running))
        try:
            await settled(call.answer)
        except asyncio.CancelledError:
            self._abandon(call)
            raise
        finally:
            self._calls.pop(call_id, None)
        return call.in_order()

    def _abandon(self, call: Call) -> None:
        error = RuntimeError("the call was cancelled")
        self._commands.put(lambda: self._drop(call, self._running, error))

    def _has_work(self) -> bool:
        return bool(self._running)

    def _finish(self, output: Output) -> None:
        if output.finished:
            self._take_output(output, self._running)


def _sampling_params(request: GenerateRequest) -> SamplingParams:
    return SamplingParams(
        n=1,
        seed=request.seed if request.temperature > 0 else None,
        temperature=request.temperature,
        top_p=request.top_p,
        max_tokens=request.max_tokens,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        structured_outputs=_structure(request),
    )


def _structure(request: GenerateRequest) -> StructuredOutputsParams | None:
    """What the reply must look like; None for any text."""
    if request.json_schema:
        return StructuredOutputsParams(json=request.json_schema)
    return StructuredOutputsParams(choice=list(request.choices)) if request.choices else None


def _pooling_request(encoded: Encoded, task: str) -> Request:
    params = PoolingParams(task=task, use_activation=False)  # no softmax of logits, no norm of 1
    if 1 in encoded.type_ids:
        # How vLLM takes them: the position of the second text's first token.
        params.extra_kwargs = {"compressed_token_type_ids": encoded.type_ids.index(1)}
    return Request(encoded.token_ids, params)


def _numbers(output: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in output.outputs.data.flatten().tolist())
