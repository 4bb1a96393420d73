"""A vLLM engine in its own process: token submissions in, completions with logprobs and versions out.

One thread owns the engine and alternates a command queue with `engine.step()`, so a weight update always
falls between two steps. A plain class with async methods; the cluster spawns `num_engines` of them.
"""

from __future__ import annotations

import asyncio
import gc
import json
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from actors.weight_transfer import TRANSFER_CONFIG
from configs.schema import RunConfig
from rollouts.records import Completion, Sampling, Submission
from trainer.diagnose import Probe
from trainer.weights import PackedWeights

_IDLE_POLL_S = 0.5
_GATHER_S = 0.003


@dataclass(slots=True)
class _Pending:
    """Requests of one call, in `order`; `answer` is settled when `outputs` has them all."""

    answer: Future[None]
    outputs: dict[str, RequestOutput]
    order: list[str]
    versions: dict[str, list[tuple[int, int]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Request:
    token_ids: Sequence[int]
    params: SamplingParams


def engine_args(config: RunConfig, device: str) -> EngineArgs:
    """The engine's arguments: eager and deterministic on CPU, prefix-cached (and reset at each sync) on GPU.

    Chunked prefill is off with a token budget of at least one whole sequence: a seeded request that is
    prefilled in parts kills a CPU engine.
    """
    # One more than the longest row: a probe of full length is a prompt that still wants one token.
    length = config.rollout.max_prompt_tokens + config.rollout.max_tokens + 1
    args: dict[str, Any] = {
        "model": config.model.path,
        "trust_remote_code": config.model.trust_remote_code,
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}[config.model.dtype],
        "max_model_len": length,
        "max_num_batched_tokens": max(length, 4096),
        "max_num_seqs": config.generator.max_num_seqs,
        "enable_chunked_prefill": False,
        "enable_prefix_caching": device != "cpu",
        "enforce_eager": device == "cpu",
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        "seed": config.seed,
        "weight_transfer_config": TRANSFER_CONFIG,
        "tensor_parallel_size": config.generator.tensor_parallel,
        # Workers of a wide engine are processes: in each, this class brings the transfer's registration.
        "worker_extension_cls": "actors.weight_transfer.HostTransferWorker",
        "distributed_executor_backend": "mp" if config.generator.tensor_parallel > 1 else "uni",
    }
    if device == "cpu":
        args["kv_cache_memory_bytes"] = config.generator.kv_cache_bytes
    else:
        args["gpu_memory_utilization"] = config.generator.gpu_memory_utilization
    return EngineArgs(**args)


def sampling_params(sampling: Sampling, seed: int) -> SamplingParams:
    """One completion's parameters: its own seed, its own logprobs, no text (the actor decodes)."""
    return SamplingParams(
        n=1,
        seed=seed,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def checkpoint_names(folder: str) -> list[str]:
    """Names of the tensors an update must bring: all in the safetensors files, without a tied head."""
    names: list[str] = []
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as tensors:  # type: ignore[no-untyped-call]
            names.extend(tensors.keys())
    # Some checkpoints of tied models store the head as well; the learner has one parameter for both.
    tied = json.loads((Path(folder) / "config.json").read_text()).get("tie_word_embeddings", False)
    return [name for name in names if not (tied and name == "lm_head.weight")]


def _settle(answer: Future[None], error: Exception | None) -> None:
    """Settle an answer whose caller may have given up waiting."""
    with suppress(InvalidStateError):
        answer.set_result(None) if error is None else answer.set_exception(error)


class GeneratorActor:
    """See the module's docstring. Every method may be called while others are waiting."""

    def __init__(self, config: RunConfig, device: str) -> None:
        self._engine = LLMEngine.from_engine_args(engine_args(config, device))
        self._tokenizer = self._engine.get_tokenizer()
        self._has_prefix_cache = device != "cpu"
        names = {"expected_names": checkpoint_names(config.model.path)}
        self._engine.collective_rpc("init_weight_transfer_engine", args=(names,))
        self._version = 0
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._pending: dict[str, _Pending] = {}
        self._next_id = 0
        self._open: set[Future[None]] = set()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        # Two big libraries' objects need not be walked again at every collection between engine steps.
        gc.collect()
        gc.freeze()
        self._thread.start()

    # -- called from outside --

    async def ready(self) -> int:
        """The version of the weights now loaded; returning means that the engine is up."""
        return self._version

    async def generate(self, submission: Submission) -> list[Completion]:
        """Sample one completion per seed of the submission."""
        requests = [
            _Request(submission.prompt_ids, sampling_params(submission.sampling, seed))
            for seed in submission.seeds
        ]
        pending, outputs = await self._call(requests)
        texts = self._tokenizer.batch_decode(
            [output.outputs[0].token_ids for output in outputs], skip_special_tokens=True
        )
        return [
            _completion(submission, index, output, text, pending.versions[output.request_id])
            for index, (output, text) in enumerate(zip(outputs, texts, strict=True))
        ]

    async def load(self, weights: PackedWeights) -> None:
        """Replace the weights; running requests go on under the new version.

        Raises:
            ValueError: a tensor is missing, unknown or damaged (the engine must then not be used).
        """
        answer: Future[None] = Future()

        def run() -> None:
            try:
                self._load(weights)
            except Exception as error:
                _settle(answer, error)
            else:
                _settle(answer, None)

        await self._command(answer, run)

    async def probe(self, probes: Sequence[Probe]) -> np.ndarray:
        """Logprobs at temperature 1 of all probe tokens but each first, end to end, by a fresh prefill."""
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        _, outputs = await self._call([_Request(probe.token_ids, params) for probe in probes])
        values: list[float] = []
        for probe, output in zip(probes, outputs, strict=True):
            assert output.prompt_logprobs is not None
            for token, entry in zip(probe.token_ids[1:], output.prompt_logprobs[1:], strict=True):
                assert entry is not None
                values.append(entry[token].logprob)
        return np.array(values, np.float32)

    async def close(self) -> None:
        """Stop the thread after the commands already queued."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join, 10.0)

    # -- inside --

    async def _call(self, requests: Sequence[_Request]) -> tuple[_Pending, list[RequestOutput]]:
        pending = _Pending(answer=Future(), outputs={}, order=[])
        await self._command(pending.answer, lambda: self._add(pending, requests))
        return pending, [pending.outputs[name] for name in pending.order]

    async def _command(self, answer: Future[None], action: Callable[[], None]) -> None:
        """Queue `action` for the engine's thread and wait until it, or what it started, settles `answer`."""
        self._open.add(answer)
        answer.add_done_callback(self._open.discard)
        self._commands.put(action)
        if self._failure is not None:
            _settle(answer, self._failure)
        await asyncio.wrap_future(answer)

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            self._failure = RuntimeError(f"the engine has failed: {error}")
            for answer in list(self._open):
                _settle(answer, self._failure)
            raise

    def _turn(self) -> bool:
        """Run what is queued, then one engine step.

        An idle engine waits for something to do and then lets its companions in: submissions come a fraction
        of a millisecond apart, and an engine step costs the same for one of them as for all.
        """
        busy = bool(self._pending)
        try:
            command = self._commands.get(block=not busy, timeout=None if busy else _IDLE_POLL_S)
            while True:
                if command is None:
                    return False
                command()
                command = self._commands.get(block=not busy, timeout=None if busy else _GATHER_S)
        except queue.Empty:
            pass
        if self._pending:
            for output in self._engine.step():
                self._finish(output)
        return True

    def _add(self, pending: _Pending, requests: Sequence[_Request]) -> None:
        try:
            for request in requests:
                self._next_id += 1
                name = str(self._next_id)
                prompt = {"prompt_token_ids": list(request.token_ids)}
                self._engine.add_request(name, prompt, request.params)  # type: ignore[arg-type]
                pending.order.append(name)
                pending.versions[name] = [(0, self._version)]
                self._pending[name] = pending
        except Exception as error:
            for name in pending.order:
                self._pending.pop(name, None)
            self._engine.abort_request(pending.order)
            _settle(pending.answer, error)

    def _finish(self, output: RequestOutput) -> None:
        if not output.finished:
            return
        pending = self._pending.pop(output.request_id)
        pending.outputs[output.request_id] = output
        if len(pending.outputs) == len(pending.order):
            _settle(pending.answer, None)

    def _load(self, weights: PackedWeights) -> None:
        self._engine.collective_rpc("start_weight_update")
        self._engine.collective_rpc("update_weights", args=({"weights": weights},))
        self._engine.collective_rpc("finish_weight_update")
        if self._has_prefix_cache and not self._engine.reset_prefix_cache():
            raise RuntimeError("the engine refused to reset its prefix cache after a weight update")
        self._version = weights.version
        for name, pending in self._pending.items():
            start, spans = self._num_tokens(name), pending.versions[name]
            # A request without tokens yet has no span of the version before.
            pending.versions[name] = [span for span in spans if span[0] < start] + [(start, weights.version)]

    def _num_tokens(self, name: str) -> int:
        """Tokens sampled so far by a running request (the engine suffixes the names it is given)."""
        for internal, state in self._engine.output_processor.request_states.items():
            if internal == name or internal.startswith(f"{name}-"):
                return state.detokenizer.num_output_tokens() if state.detokenizer is not None else 0
        return 0


def _completion(
    submission: Submission,
    index: int,
    output: RequestOutput,
    text: str,
    versions: list[tuple[int, int]],
) -> Completion:
    answer = output.outputs[0]
    token_ids = tuple(answer.token_ids)
    assert answer.logprobs is not None and len(answer.logprobs) == len(token_ids)
    return Completion(
        sample_id=f"{submission.group_id}.{index}",
        seed=submission.seeds[index],
        token_ids=token_ids,
        text=text,
        finish_reason=str(answer.finish_reason),
        behavior_logprobs=tuple(
            entry[token].logprob for entry, token in zip(answer.logprobs, token_ids, strict=True)
        ),
        versions=tuple(span for span in versions if span[0] < len(token_ids)),
    )
