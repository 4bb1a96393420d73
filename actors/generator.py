"""A vLLM engine in its own process: token submissions in, completions with logprobs and versions out.

A weight update is always between two steps of the engine (`actors.engine_thread`): running completions
continue with the new version, and record from which token on. A plain class with async methods; `cluster`
starts `num_engines` of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from actors.engine_thread import Call, EngineThread, Output, Request, settled, shared_args
from actors.weight_transfer import TRANSFER_CONFIG
from configs.schema import RunConfig
from rollouts.records import Completion, Sampling, Submission
from trainer.model.checkpoint_format import published_names
from trainer.step_records import Probe
from trainer.weights.packed import PackedWeights

_Key = tuple[int, str, tuple[int, ...], tuple[int, ...], Sampling]
"""Identifies a submission: index, group, prompt, seeds, sampling."""


def engine_args(config: RunConfig, device: str) -> EngineArgs:
    """The engine's arguments: those that all engines share, and what a policy needs."""
    # One more than the longest row: a probe of that length is a prompt, and must generate at least one token.
    length = config.rollout.max_prompt_tokens + config.rollout.max_tokens + 1
    shared = shared_args(
        path=config.model.path,
        trust_remote_code=config.model.trust_remote_code,
        dtype=config.model.dtype,
        max_model_len=length,
        # With room for the probes, which must not wait until running completions end.
        max_num_seqs=config.generator.max_num_seqs + config.sync.num_probes,
        tensor_parallel=config.generator.tensor_parallel,
        kv_cache_bytes=config.generator.kv_cache_bytes,
        gpu_memory_utilization=config.generator.gpu_memory_utilization,
        device=device,
    )
    return EngineArgs(
        **shared,
        enable_prefix_caching=device != "cpu",
        # Logprobs of the distribution that was sampled from: after temperature and top-p, not before.
        logprobs_mode="processed_logprobs",
        seed=config.seed,
        weight_transfer_config=TRANSFER_CONFIG,
        # With tensor parallelism, workers are processes; this class registers the transfer engine in each.
        worker_extension_cls="actors.weight_transfer.HostTransferWorker",
    )


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


class GeneratorActor(EngineThread):
    """A vLLM engine and its thread; see the docstring of the module. Methods may be called concurrently.

    Raises:
        EngineFailedError: (from every method) the engine failed; the actor must be replaced.
    """

    def __init__(self, config: RunConfig, device: str) -> None:
        super().__init__(engine_args(config, device))
        self._tokenizer = self._engine.get_tokenizer()
        self._max_num_seqs = config.generator.max_num_seqs
        names = {"expected_names": sorted(published_names(config.model))}
        self._engine.collective_rpc("init_weight_transfer_engine", args=(names,))
        self._version = self._num_loads = 0
        self._engine.set_weight_version("0")
        self._generating: dict[_Key, Call] = {}
        self._queued: deque[tuple[Call, Request]] = deque()
        self._sampling: dict[str, Call] = {}
        self._probing: dict[str, Call] = {}
        self._paused = False
        self._start()

    # -- called from outside --

    async def ready(self) -> int:
        """Return the version of the loaded weights, once the engine has started."""
        await self.stalled_for_s()
        return self._version

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
            call = Call([Request(submission.prompt_ids, each) for each in params])
            self._generating[key] = call
            call.answer.add_done_callback(lambda _: self._generating.pop(key, None))
            waiting = [(call, request) for request in call.requests]
            self._post(call.answer, lambda: self._queued.extend(waiting))
        await settled(call.answer)
        outputs = call.in_order()
        # Decoded here and not by the engine, whose thread samples for other submissions meanwhile.
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
            # vLLM returns prompt logprobs only together with at least one generated token.
            prompt_logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        call = Call([Request(probe.token_ids, params) for probe in probes])
        self._post(call.answer, lambda: self._admit(call, call.requests, self._probing))
        await settled(call.answer)
        values: list[float] = []
        for probe, output in zip(probes, call.in_order(), strict=True):
            assert output.prompt_logprobs is not None
            for token, entry in zip(probe.token_ids[1:], output.prompt_logprobs[1:], strict=True):
                assert entry is not None
                values.append(entry[token].logprob)
        return np.array(values, np.float32)

    # -- inside --

    def _before_step(self) -> None:
        if not self._paused:
            while self._queued and len(self._sampling) < self._max_num_seqs:
                call, request = self._queued.popleft()
                self._admit(call, [request], self._sampling)

    def _has_work(self) -> bool:
        return bool(self._probing or (not self._paused and (self._sampling or self._queued)))

    def _salt(self) -> str:
        # vLLM's prefix cache cannot be reset while it is in use. The salt keeps a prompt from reusing
        # prefixes computed with other weights. It counts loads, because after a rewind the same version can
        # come again with other weights.
        return str(self._num_loads)

    def _drop(self, call: Call, running: dict[str, Call], error: Exception) -> None:
        """Abort a call: its requests in the engine and those that are queued."""
        self._queued = deque(entry for entry in self._queued if entry[0] is not call)
        super()._drop(call, running, error)

    def _finish(self, output: Output) -> None:
        if output.finished:
            sampling = output.request_id in self._sampling
            self._take_output(output, self._sampling if sampling else self._probing)

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
