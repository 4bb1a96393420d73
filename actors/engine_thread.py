"""The thread that owns a vLLM engine: commands and calls from outside, engine steps in between.

`actors.generator` (the policy) and `actors.model_server` (frozen models) are such actors. One thread
alternates between a command queue and `engine.step()`, so a command always runs between two steps. The
methods may be called from several event loops.
"""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from vllm import PoolingParams, SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.v1.engine.llm_engine import LLMEngine

from actors.requests import EngineFailedError

_IDLE_POLL_S = 0.5
_GATHER_S = 0.003
"""Time that an idle engine waits for further requests after the first (see `EngineThread._turn`)."""
_CLOSE_S = 10.0

Output: TypeAlias = RequestOutput | PoolingRequestOutput


@dataclass(frozen=True, slots=True)
class Request:
    """Token ids and what to do with them."""

    token_ids: Sequence[int]
    params: SamplingParams | PoolingParams


@dataclass(slots=True, eq=False)
class Call:
    """The requests of one call. `answer` is set when every request has an output.

    `names` are the ids of the requests that the engine has admitted, in order.
    """

    requests: Sequence[Request]
    answer: Future[None] = field(default_factory=Future)
    names: list[str] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)

    def in_order(self) -> list[Any]:
        """The engine's outputs, one for each request."""
        return [self.outputs[name] for name in self.names]


def settle(answer: Future[None], error: Exception | None) -> None:
    """Set the result of an answer, or its exception, unless its caller has cancelled it."""
    with suppress(InvalidStateError):
        answer.set_result(None) if error is None else answer.set_exception(error)


async def settled(answer: Future[None]) -> None:
    """Wait for an answer. Shielded: if this caller is cancelled, another one may still wait for it."""
    await asyncio.shield(asyncio.wrap_future(answer))


def shared_args(
    *,
    path: str,
    trust_remote_code: bool,
    dtype: str,
    max_model_len: int,
    max_num_seqs: int,
    tensor_parallel: int,
    kv_cache_bytes: int,
    gpu_memory_utilization: float,
    device: str,
) -> dict[str, Any]:
    """Arguments of every engine: eager and deterministic on CPU.

    Chunked prefill is off and the token budget is at least one whole sequence, because a CPU engine crashes
    on a seeded request that is prefilled in parts.
    """
    args: dict[str, Any] = {
        "model": path,
        "trust_remote_code": trust_remote_code,
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}[dtype],
        "max_model_len": max_model_len,
        "max_num_batched_tokens": max(max_model_len, 4096),
        "max_num_seqs": max_num_seqs,
        # A step scheduled ahead could overlap a weight update, and its tokens would get the wrong version.
        "async_scheduling": False,
        "enable_chunked_prefill": False,
        "enforce_eager": device == "cpu",
        "disable_log_stats": True,
        "tensor_parallel_size": tensor_parallel,
        "distributed_executor_backend": "mp" if tensor_parallel > 1 else "uni",
    }
    if device == "cpu":
        args["kv_cache_memory_bytes"] = kv_cache_bytes
    else:
        args["gpu_memory_utilization"] = gpu_memory_utilization
    return args


class EngineThread:
    """An engine and its thread. A subclass calls `_start` at the end of its constructor.

    It overrides `_before_step`, `_has_work`, `_finish` and `_salt` for what differs between actors; all four
    run on the thread.

    Raises:
        EngineFailedError: (from every method) the engine failed; the actor must be replaced.
    """

    def __init__(self, args: EngineArgs) -> None:
        self._engine = LLMEngine.from_engine_args(args)
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._next_id = 0
        self._open: set[Future[None]] = set()
        self._failure = ""
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    async def stalled_for_s(self) -> float:
        """Seconds that the engine's thread has spent in one step or command; 0.0 while it is idle."""
        if self._failure:
            raise EngineFailedError(self._failure)
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    async def close(self) -> None:
        """Stop the thread once it has run the queued commands."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join, _CLOSE_S)

    # -- what subclasses say --

    def _before_step(self) -> None:
        """Called before each step, to admit requests that the subclass holds back."""

    def _has_work(self) -> bool:
        """Whether the engine has a step to make."""
        raise NotImplementedError

    def _finish(self, output: Output) -> None:
        """Take an output of a step."""
        raise NotImplementedError

    def _salt(self) -> str:
        """Keeps a prompt from reusing prefixes that were cached under another salt; "" for none."""
        return ""

    # -- what they use --

    def _start(self) -> None:
        # Exempt the many objects that vLLM and torch have created from garbage collection, which would pause
        # the engine.
        gc.collect()
        gc.freeze()
        self._thread.start()

    def _post(self, answer: Future[None], action: Callable[[], None]) -> None:
        """Queue `action` for the engine's thread. The action, or the requests it adds, set `answer`."""
        self._open.add(answer)
        answer.add_done_callback(self._open.discard)
        self._commands.put(action)
        # Checked last: if the thread failed in between, it may have missed this answer in `_open`.
        if self._failure:
            settle(answer, EngineFailedError(self._failure))

    async def _command(self, action: Callable[[], None]) -> None:
        """Run `action` on the engine's thread and wait for it; raises its exception."""
        answer: Future[None] = Future()

        def run() -> None:
            try:
                action()
            except Exception as error:
                settle(answer, error)
            else:
                settle(answer, None)

        self._post(answer, run)
        await settled(answer)

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            # Whatever ended the thread, no caller may wait for ever: every open answer gets the reason.
            self._failure = f"the engine has failed: {type(error).__name__}: {error}"
            for answer in list(self._open):
                settle(answer, EngineFailedError(self._failure))
            raise

    def _turn(self) -> bool:
        """Run the queued commands, then one engine step; returns False after `close`.

        An idle engine waits for a command, and then _GATHER_S for more: requests arrive a fraction of a
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
        self._before_step()
        if self._has_work():
            self._busy_since = time.monotonic()
            for output in self._engine.step():
                self._finish(output)
        return True

    def _admit(self, call: Call, requests: Sequence[Request], running: dict[str, Call]) -> None:
        """Add requests of a call to the engine, and to `running` by their ids there."""
        try:
            for request in requests:
                self._next_id += 1
                name = str(self._next_id)
                prompt: dict[str, Any] = {"prompt_token_ids": list(request.token_ids)}
                if salt := self._salt():
                    prompt["cache_salt"] = salt
                self._engine.add_request(name, prompt, request.params)  # type: ignore[arg-type]
                call.names.append(name)
                running[name] = call
        except Exception as error:
            # As text: unpickling vLLM's exceptions would need vLLM in the caller's process.
            self._drop(call, running, ValueError(f"the engine rejected a prompt: {error}"))

    def _drop(self, call: Call, running: dict[str, Call], error: Exception) -> None:
        """Abort the requests of a call that the engine has."""
        self._engine.abort_request([name for name in call.names if running.pop(name, None)])
        settle(call.answer, error)

    def _take_output(self, output: Output, running: dict[str, Call]) -> None:
        """Give an output to its call, which is answered once it has all of them."""
        call = running.pop(output.request_id)
        call.outputs[output.request_id] = output
        if len(call.outputs) == len(call.requests):
            settle(call.answer, None)
