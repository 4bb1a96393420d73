"""A vLLM engine in its own process: token submissions in, completions with logprobs and versions out.

One thread owns the engine and alternates between a command queue and `engine.step()`. A weight update is
therefore always between two steps: running completions continue with the new version, and record from which
token on. A plain class with async methods; `cluster` starts `num_engines` of them.
"""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from actors.requests import EngineFailedError
from actors.weight_transfer import TRANSFER_CONFIG
from configs.schema import RunConfig
from rollouts.records import Completion, Sampling, Submission
from trainer.model.checkpoint_format import published_names
from trainer.step_records import Probe
from trainer.weights.packed import PackedWeights

_IDLE_POLL_S = 0.5
_GATHER_S = 0.003
"""Time that an idle engine waits for further submissions after the first (see `GeneratorActor._turn`)."""

_Key = tuple[int, str, tuple[int, ...], tuple[int, ...], Sampling]
"""Identifies a submission: index, group, prompt, seeds, sampling."""


@dataclass(frozen=True, slots=True)
class _Request:
    token_ids: Sequence[int]
    params: SamplingParams


@dataclass(slots=True, eq=False)
class _Call:
    """The requests of one call. `answer` is set when every request has an output.

    `names` are the ids of the requests that the engine has admitted, in order.
    """

    requests: Sequence[_Request]
    answer: Future[None] = field(default_factory=Future)
    names: list[str] = field(default_factory=list)
    outputs: dict[str, RequestOutput] = field(default_factory=dict)

    def in_order(self) -> list[RequestOutput]:
        return [self.outputs[name] for name in self.names]


def engine_args(config: RunConfig, device: str) -> EngineArgs:
    """The engine's arguments: eager and deterministic on CPU, with prefix caching on GPU.

    Chunked prefill is off and the token budget is at least one whole sequence, because a CPU engine crashes
    on a seeded request that is prefilled in parts.
    """
    # One more than the longest row: a probe of that length is a prompt, and must generate at least one token.
    length = config.rollout.max_prompt_tokens + config.rollout.max_tokens + 1
    args: dict[str, Any] = {
        "model": config.model.path,
        "trust_remote_code": config.model.trust_remote_code,
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}[config.model.dtype],
        "max_model_len": length,
        "max_num_batched_tokens": max(length, 4096),
        # With room for the probes, which must not wait until running completions end.
        "max_num_seqs": config.generator.max_num_seqs + config.sync.num_probes,
        # A step scheduled ahead could overlap a weight update, and its tokens would get the wrong version.
        "async_scheduling": False,
        "enable_chunked_prefill": False,
        "enable_prefix_caching": device != "cpu",
        "enforce_eager": device == "cpu",
        # Logprobs of the distribution that was sampled from: after temperature and top-p, not before.
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        "seed": config.seed,
        "weight_transfer_config": TRANSFER_CONFIG,
        "tensor_parallel_size": config.generator.tensor_parallel,
        # With tensor parallelism, workers are processes; this class registers the transfer engine in each.
        "worker_extension_cls": "actors.weight_transfer.HostTransferWorker",
        "distributed_executor_backend": "mp" if config.generator.tensor_parallel > 1 else "uni",
    }
    if device == "cpu":
        args["kv_cache_memory_bytes"] = config.generator.kv_cache_bytes
    else:
        args["gpu_memory_utilization"] = config.generator.gpu_memory_utilization
    return EngineArgs(**args)


def sampling_params(sampling: Sampling, seed: int) -> SamplingParams:
    """Parameters of one completion: its seed, logprobs of sampled tokens alone, no text (decoded later)."""
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


def _key(submission: Submission) -> _Key:
    index, group = submission.submission_index, submission.group_id
    return index, group, submission.prompt_ids, submission.seeds, submission.sampling


def _settle(answer: Future[None], error: Exception | None) -> None:
    """Set the result of an answer, or its exception, unless its caller has cancelled it."""
    with suppress(InvalidStateError):
        answer.set_result(None) if error is None else answer.set_exception(error)


async def _settled(answer: Future[None]) -> None:
    """Wait for an answer. Shielded: if this caller is cancelled, another one may still wait for it."""
    await asyncio.shield(asyncio.wrap_future(answer))


class GeneratorActor:
    """A vLLM engine and its thread; see the docstring of the module. Methods may be called concurrently.

    Raises:
        EngineFailedError: (from every method) the engine failed; the actor must be replaced.
    """

    def __init__(self, config: RunConfig, device: str) -> None:
        self._engine = LLMEngine.from_engine_args(engine_args(config, device))
        self._tokenizer = self._engine.get_tokenizer()
        self._max_num_seqs = config.generator.max_num_seqs
        names = {"expected_names": sorted(published_names(config.model))}
        self._engine.collective_rpc("init_weight_transfer_engine", args=(names,))
        self._version = self._num_loads = 0
        self._engine.set_weight_version("0")
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._generating: dict[_Key, _Call] = {}
        self._queued: deque[tuple[_Call, _Request]] = deque()
        self._sampling: dict[str, _Call] = {}
        self._probing: dict[str, _Call] = {}
        self._paused = False
        self._next_id = 0
        self._open: set[Future[None]] = set()
        self._failure = ""
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        # Exempt the many objects that vLLM and torch have created from garbage collection, which would pause
        # the engine.
        gc.collect()
        gc.freeze()
        self._thread.start()

    # -- called from outside --

    async def ready(self) -> int:
        """Return the version of the loaded weights, once the engine has started."""
        await self.stalled_for_s()
        return self._version

    async def stalled_for_s(self) -> float:
        """Seconds that the engine's thread has spent in one step or command; 0.0 while it is idle."""
        if self._failure:
            raise EngineFailedError(self._failure)
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    async def generate(self, submission: Submission) -> list[Completion]:
        """Sample one completion for each seed of the submission.

        A second call with a submission that is still being sampled waits for the same completions.

        Raises:
            ValueError: the engine rejected the prompt.
        """
        key = _key(submission)
        call = self._generating.get(key)
        if call is None:
            params = [sampling_params(submission.sampling, seed) for seed in submission.seeds]
            call = _Call([_Request(submission.prompt_ids, each) for each in params])
            self._generating[key] = call
            call.answer.add_done_callback(lambda _: self._generating.pop(key, None))
            waiting = [(call, request) for request in call.requests]
            self._post(call.answer, lambda: self._queued.extend(waiting))
        await _settled(call.answer)
        outputs = call.in_order()
        texts = self._tokenizer.batch_decode(
            [output.outputs[0].token_ids for output in outputs], skip_special_tokens=True
        )
        return [
            _completion(submission, index, output, text)
            for index, (output, text) in enumerate(zip(outputs, texts, strict=True))
        ]

    async def load(self, weights: PackedWeights) -> None:
        """Replace the weights. Running requests continue with the new version, paused or not.

        An earlier version than the loaded one means that the run has returned to a checkpoint: running
        requests are dropped, since they belong to the abandoned steps.

        Raises:
            ValueError: a tensor is missing, unknown or damaged. The engine must not be used any more.
        """
        await self._command(lambda: self._load(weights))

    async def pause(self) -> None:
        """Stop sampling until `resume`; running requests are kept, and probes are still answered.

        A probe needs an engine step, which also advances the running requests by one token.
        """
        await self._command(lambda: self._set_paused(True))

    async def resume(self) -> None:
        """Continue after `pause`."""
        await self._command(lambda: self._set_paused(False))

    async def probe(self, probes: Sequence[Probe]) -> np.ndarray:
        """Logprobs at temperature 1 of the probes' tokens, except each first one: float32, concatenated.

        Computed by a new prefill under the current weights.
        """
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        call = _Call([_Request(probe.token_ids, params) for probe in probes])
        self._post(call.answer, lambda: self._admit(call, call.requests, self._probing))
        await _settled(call.answer)
        values: list[float] = []
        for probe, output in zip(probes, call.in_order(), strict=True):
            assert output.prompt_logprobs is not None
            for token, entry in zip(probe.token_ids[1:], output.prompt_logprobs[1:], strict=True):
                assert entry is not None
                values.append(entry[token].logprob)
        return np.array(values, np.float32)

    async def close(self) -> None:
        """Stop the thread once it has run the queued commands."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join, 10.0)

    # -- inside --

    def _post(self, answer: Future[None], action: Callable[[], None]) -> None:
        """Queue `action` for the engine's thread. The action, or the requests it adds, set `answer`."""
        self._open.add(answer)
        answer.add_done_callback(self._open.discard)
        self._commands.put(action)
        # Checked last: if the thread failed in between, it may have missed this answer in `_open`.
        if self._failure:
            _settle(answer, EngineFailedError(self._failure))

    async def _command(self, action: Callable[[], None]) -> None:
        """Run `action` on the engine's thread and wait for it; raises its exception."""
        answer: Future[None] = Future()

        def run() -> None:
            try:
                action()
            except Exception as error:
                _settle(answer, error)
            else:
                _settle(answer, None)

        self._post(answer, run)
        await _settled(answer)

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            self._failure = f"the engine has failed: {type(error).__name__}: {error}"
            for answer in list(self._open):
                _settle(answer, EngineFailedError(self._failure))
            raise

    def _turn(self) -> bool:
        """Run the queued commands, then one engine step; returns False after `close`.

        An idle engine waits for a command, and then _GATHER_S for more: submissions arrive a fraction of a
        millisecond apart, and an engine step takes the same time for one of them as for all.
        """
        busy = self._has_work()
        self._busy_since = time.monotonic() if busy else None
        try:
            command = self._commands.get(block=not busy, timeout=None if busy else _IDLE_POLL_S)
            while True:
                if command is None:
                    return False
                self._busy_since = time.monotonic()
                command()
                command = self._commands.get(block=not busy, timeout=None if busy else _GATHER_S)
        except queue.Empty:
            pass
        if not self._paused:
            while self._queued and len(self._sampling) < self._max_num_seqs:
                call, request = self._queued.popleft()
                self._admit(call, [request], self._sampling)
        if self._has_work():
            self._busy_since = time.monotonic()
            for output in self._engine.step():
                self._finish(output)
        return True

    def _has_work(self) -> bool:
        return bool(self._probing or (not self._paused and (self._sampling or self._queued)))

    def _admit(self, call: _Call, requests: Sequence[_Request], running: dict[str, _Call]) -> None:
        try:
            for request in requests:
                self._next_id += 1
                name = str(self._next_id)
                # vLLM's prefix cache cannot be reset while it is in use. The salt keeps a prompt from reusing
                # prefixes computed with other weights. It counts loads, because after a rewind the same
                # version can come again with other weights.
                salt = str(self._num_loads)
                prompt = {"prompt_token_ids": list(request.token_ids), "cache_salt": salt}
                self._engine.add_request(name, prompt, request.params)  # type: ignore[arg-type]
                call.names.append(name)
                running[name] = call
        except Exception as error:
            # As text: unpickling vLLM's exceptions would need vLLM in the caller's process.
            self._drop(call, running, ValueError(f"the engine rejected a prompt: {error}"))

    def _drop(self, call: _Call, running: dict[str, _Call], error: Exception) -> None:
        """Abort a call: its requests in the engine and those that are queued."""
        self._queued = deque(entry for entry in self._queued if entry[0] is not call)
        self._engine.abort_request([name for name in call.names if running.pop(name, None)])
        _settle(call.answer, error)

    def _finish(self, output: RequestOutput) -> None:
        if not output.finished:
            return
        name = output.request_id
        call = (self._sampling if name in self._sampling else self._probing).pop(name)
        call.outputs[name] = output
        if len(call.outputs) == len(call.requests):
            _settle(call.answer, None)

    def _set_paused(self, paused: bool) -> None:
        self._paused = paused

    def _load(self, weights: PackedWeights) -> None:
        if weights.version < self._version:
            error = RuntimeError(
                f"request dropped: weights went back from {self._version} to {weights.version}"
            )
            for call in {*self._sampling.values(), *(call for call, _ in self._queued)}:
                self._drop(call, self._sampling, error)
        self._engine.collective_rpc("start_weight_update")
        self._engine.collective_rpc("update_weights", args=({"weights": weights},))
        self._engine.collective_rpc("finish_weight_update")
        self._num_loads += 1
        self._version = weights.version
        self._engine.set_weight_version(str(weights.version))


def _completion(
    submission: Submission,
    index: int,
    output: RequestOutput,
    text: str,
) -> Completion:
    answer = output.outputs[0]
    token_ids = tuple(answer.token_ids)
    assert answer.logprobs is not None and len(answer.logprobs) == len(token_ids)
    assert answer.weight_versions is not None, "the version is set before the first request"
    return Completion(
        sample_id=submission.sample_id(index),
        seed=submission.seeds[index],
        token_ids=token_ids,
        text=text,
        finish_reason=str(answer.finish_reason),
        behavior_logprobs=tuple(
            entry[token].logprob for entry, token in zip(answer.logprobs, token_ids, strict=True)
        ),
        versions=tuple((span.start, int(span.version)) for span in answer.weight_versions),
    )
