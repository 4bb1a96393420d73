"""One replica of a scorer. In: a kind and its options, then groups. Out: one Judgement per completion.

A plain class, started by `cluster` (one per scorer and replica) or used directly; the rollout producer calls
`score`. A bad sample never raises: it gets a null score and a status. docs/scorers.md describes the forms of
scorers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import TimeoutError as WaitTimeoutError
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from actors import batch_queue, scorer_targets
from actors.requests import CallStuckError
from actors.sandbox import KillablePool
from actors.sandbox_protocol import MAX_TRACEBACK_CHARS, check_judgements
from actors.scorer_log import ScorerLog
from actors.scorer_targets import InlineTarget, SandboxedTarget, Target, open_target, option
from actors.secrets import NO_SECRETS, Secrets
from configs.errors import raised_at, traceback_of
from configs.kinds.base import Options, load_target
from configs.kinds.scorers import SCORERS, CustomOptions
from rewards import custom
from rewards.model_calls import Model
from rewards.scorer_reports import REPORT_FAILED, ScorerEvent, ScorerReport, masked
from rewards.target_forms import runs_in_actor
from rollouts.records import Completion, Judgement, Prompt, Status

CANCEL_S = 3.0
"""Seconds that a cancelled call may take to end; after that the replica is stuck."""
CLOSE_S = 3.0
_CALLERS = frozenset({__file__, batch_queue.__file__, scorer_targets.__file__, custom.__file__})
"""Our own files, whose frames are left out of a scorer's traceback."""

T = TypeVar("T")


class ScorerActor:
    """Scores with the kind called `kind`; up to `concurrency` groups may be in flight.

    `options` is the kind's options dataclass, or a mapping of its fields. Kinds that may hang, and a user's
    own plain function ("module:attr"), run in processes that are killed at their limit; a user's options may
    have ``limit_s`` (seconds per completion) and ``num_processes``. Everything else runs in this process:
    plain functions on threads, coroutine functions on an event loop, classes and batched targets on either.
    `models` are the models that the options name; a class gets them (`open_target`).
    With `inline`, a user's own plain function runs in this process too, one call at a time and without any
    limit, so that `breakpoint()` works in it.

    Raises:
        ValueError: an unknown kind or option, or code that cannot be imported or started.
    """

    def __init__(
        self,
        kind: str,
        options: object,
        concurrency: int = 1,
        secrets: Secrets = NO_SECRETS,
        inline: bool = False,
        models: Mapping[str, Model] | None = None,
    ) -> None:
        if ":" not in kind and kind not in SCORERS:
            raise ValueError(f'scorer kind must be one of {sorted(SCORERS)} or "module:attr", got {kind!r}')
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {concurrency}")
        self._kind, self._concurrency, self._inline = kind, concurrency, inline
        self._secrets, self._models = secrets, models or {}
        self._log = ScorerLog(kind, self._secrets.mask)
        parsed = _make_options(kind, options)
        self._secrets.enter_environment()
        self._loop = _LoopThread()
        try:
            self._target = self._open(parsed)
        except Exception as error:
            self._loop.stop()
            # Not chained: the original may quote a secret, and Ray writes what is raised here to its logs.
            raise ValueError(self._secrets.mask(str(error))) from None

    def ready(self) -> bool:
        """Return True once the scorer's code is imported and its processes are warmed up."""
        return True

    async def score(
        self, prompt: Prompt, completions: Sequence[Completion], limit_s: float | None = None
    ) -> list[Judgement]:
        """One judgement per completion, in order; exceptions and wrong results become statuses.

        After `limit_s` seconds the call is cancelled and every status is ``timeout``.

        Raises:
            CallStuckError: the call was cancelled but did not end, so that its place is lost.
        """
        return await self._loop.run(self._score(prompt, completions, limit_s))

    async def take_report(self) -> ScorerReport:
        """What the scorer reports of itself since the last call; empty if it has no `take_report`.

        If that raises, or what it returns cannot be stored, the report is an event that says so.
        """
        report = await self._loop.run(self._take_report())
        return masked(report, self._secrets.mask)

    async def _take_report(self) -> ScorerReport:
        try:
            return self._target.take_report()
        except Exception as error:  # of the user's code: it must neither end the run nor be lost
            failed = ScorerEvent(kind=REPORT_FAILED, fields={"reason": _describe(error)})
            return ScorerReport(events=(failed,))

    def close(self) -> None:
        """Release the scorer's resources and end its processes. Running calls fail. Idempotent."""
        self._loop.close(self._target.close())

    def _open(self, options: object) -> Target:
        kind = self._kind
        if self._inline and (found := self._open_inline(options)):
            return found
        if kind in SCORERS and SCORERS[kind].isolated:
            pool = self._sandbox(SCORERS[kind].target, options, SCORERS[kind].warm_up)
            return SandboxedTarget(pool, whole=False)
        if kind not in SCORERS:
            # A child imports the user's code first, and reports its form. Only code of the forms that need
            # this process is imported here.
            pool = self._sandbox(kind, options)
            if not pool.wants_actor:
                return SandboxedTarget(pool, whole=True)
            pool.close()
        target = load_target(SCORERS[kind].target if kind in SCORERS else kind)
        try:
            return self._loop.wait(open_target(target, options, self._concurrency, self._models))
        except Exception as error:
            # A built-in kind says what to do; where in our own code it was raised helps nobody.
            if kind in SCORERS and isinstance(error, ValueError):
                raise
            raise ValueError(f"scorer {kind} must start, got {_describe(error)}") from error

    def _open_inline(self, options: object) -> Target | None:
        """The user's own plain function, imported here; None if that is not what the kind is."""
        kind = SCORERS.get(self._kind)
        function = load_target(kind.target if kind else self._kind)
        if kind is None:
            return None if runs_in_actor(function) else InlineTarget(function, options, True, _failed)
        if not (isinstance(options, Options) and options.own_code()):
            return None
        load_target(kind.warm_up)(options)
        return InlineTarget(function, options, False, _failed)

    def _sandbox(self, target: str, options: object, warm_up: str = "") -> KillablePool:
        limit_s, num_processes = _limits(options)
        return KillablePool(target, options, num_processes, limit_s, warm_up, self._secrets)

    async def _score(
        self, prompt: Prompt, completions: Sequence[Completion], limit_s: float | None
    ) -> list[Judgement]:
        call = asyncio.ensure_future(self._target.score(prompt, completions))
        try:
            # Not `wait_for`, which would wait without end for a call that ignores its cancellation.
            await asyncio.wait({call}, timeout=None if isinstance(self._target, InlineTarget) else limit_s)
            if not call.done():
                call.cancel()
                await asyncio.wait({call}, timeout=CANCEL_S)
                if not call.done() or self._target.num_stuck():
                    raise CallStuckError(f"a group took more than {limit_s:g} s and cannot be stopped")
                return _nulls("timeout", completions, "the limit was exceeded")
            return self._checked(call, completions)
        finally:
            call.cancel()

    def _checked(self, call: asyncio.Future[object], completions: Sequence[Completion]) -> list[Judgement]:
        """The result of a call as judgements, without secrets. Logs the reason where there is no score."""
        results: object
        full = ""
        if call.cancelled():  # by the scorer's own code
            results = _nulls("error", completions, "the scorer cancelled itself")
        elif error := call.exception():  # any type: it is the user's code. The failure is stored and counted
            status: Status = "timeout" if isinstance(error, TimeoutError) else "error"
            results = _nulls(status, completions, _describe(error))
            full = traceback_of(error, _CALLERS)[-MAX_TRACEBACK_CHARS:]
        else:
            results = call.result()
        judgements = [self._masked(each) for each in check_judgements(results, len(completions))]
        if not isinstance(self._target, SandboxedTarget):  # a sandbox logs failures itself
            for judgement, completion in zip(judgements, completions, strict=True):
                self._log.judgement(judgement, completion.sample_id, full)
        return judgements

    def _masked(self, judgement: Judgement) -> Judgement:
        """The judgement with secrets masked in its texts, which are stored with the rollouts."""
        mask = self._secrets.mask
        if not self._secrets.values:
            return judgement
        texts = {mask(name): mask(value) for name, value in judgement.texts.items()}
        judgement = replace(judgement, texts=texts)
        if judgement.score is None:
            return replace(judgement, detail=mask(judgement.detail))
        answer = None if judgement.answer is None else mask(judgement.answer)
        tags = {mask(name): mask(value) for name, value in judgement.tags.items()}
        return replace(judgement, answer=answer, tags=tags)


class _LoopThread:
    """An event loop on its own thread: code that blocks it does not keep the process from answering pings."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="scorer loop", daemon=True)
        self._thread.start()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, awaited on another loop."""
        if self._closed:
            work.close()
            raise RuntimeError("the scorer is closed")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def wait(self, work: Coroutine[Any, Any, T], limit_s: float | None = None) -> T:
        """The result of `work`, from a thread without a loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(limit_s)

    def close(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` for at most `CLOSE_S` seconds, cancel everything else, and stop."""
        if self._closed:
            work.close()
            return
        self._closed = True
        with suppress(Exception):  # a scorer that cannot close is ended with its process
            self.wait(work, CLOSE_S)
        with suppress(WaitTimeoutError):
            self.wait(_cancel_others(), CLOSE_S)
        self.stop()

    def stop(self) -> None:
        """Stop the event loop."""
        self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)


async def _cancel_others() -> None:
    """Cancel every other task of this loop, so that their callers get an exception instead of waiting."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _describe(error: BaseException) -> str:
    """ "my_rewards.py:12 in score: KeyError: 'answer'"."""
    place = raised_at(error, _CALLERS)
    return f"{place}{': ' if place else ''}{type(error).__name__}: {error}"


def _failed(error: Exception) -> Judgement:
    return Judgement(score=None, status="error", detail=_describe(error))


def _nulls(status: Status, completions: Sequence[Completion], detail: str) -> list[Judgement]:
    return [Judgement(score=None, status=status, detail=detail) for _ in completions]


def _make_options(kind: str, options: object) -> object:
    """The options dataclass of a known kind, made from a mapping; anything else is returned unchanged."""
    if kind not in SCORERS or not isinstance(options, Mapping):
        return options
    try:
        return SCORERS[kind].options(**options)
    except TypeError as error:
        raise ValueError(
            f"scorer {kind}: options must be those of the kind, got {dict(options)}: {error}"
        ) from error


def _limits(options: object) -> tuple[float, int]:
    """(limit_s, num_processes) of code in a sandbox; the defaults are those of ``custom``."""
    default = CustomOptions()
    return (
        float(option(options, "limit_s", default.limit_s)),
        int(option(options, "num_processes", default.num_processes)),
    )
