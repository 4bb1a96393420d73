"""The forms that a scorer's target may have, behind one interface.

In: the object that "module:attr" names, its options, and how many groups may be in flight. Out: an object
whose ``await score(prompt, completions)`` returns the target's result. Used by `actors.scorer`, which runs
all of it on one event loop; docs/scorers.md describes the forms.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from actors.batch_queue import BatchQueue
from actors.sandbox import KillablePool
from actors.sandbox_protocol import check_judgements
from rewards.model_calls import Model
from rewards.scorer_reports import NO_REPORT, ScorerReport, checked
from rewards.target_forms import DEFAULT_MAX_BATCH, DEFAULT_MAX_WAIT_MS, Item, is_batched
from rollouts.records import Completion, Judgement, Prompt


class Target(Protocol):
    """A scorer's target, ready to be called by several groups at once."""

    def num_stuck(self) -> int:
        """Number of cancelled calls that still run, each on a thread of its own."""
        ...

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> object:
        """Return what the target returns; raise what it raises."""
        ...

    def take_report(self) -> ScorerReport:
        """What the target reports of itself since the last call."""
        ...

    async def close(self) -> None:
        """Release the target's resources."""
        ...


class Threads:
    """Runs each plain function on its own thread, and counts cancelled functions that still run.

    The threads are daemons: one that never ends must not keep the process alive.
    """

    def __init__(self) -> None:
        self._cancelled: list[Future[object]] = []

    async def run(self, function: Callable[..., object], *arguments: object) -> object:
        """The result of the function. If cancelled, its thread still runs: threads cannot be killed."""
        work: Future[object] = Future()
        # From now on the future cannot be cancelled, so that the thread can always set its result.
        work.set_running_or_notify_cancel()
        threading.Thread(target=_fulfil, args=(work, function, arguments), name="scorer", daemon=True).start()
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            self._cancelled.append(work)
            raise

    def num_stuck(self) -> int:
        """Number of cancelled functions that have not returned."""
        self._cancelled = [work for work in self._cancelled if not work.done()]
        return len(self._cancelled)


def _fulfil(work: Future[object], function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    try:
        work.set_result(function(*arguments))
    except StopIteration as error:  # asyncio refuses to pass it on, and its caller would wait for ever
        stopped = RuntimeError("the scorer raised StopIteration")
        work.set_exception(stopped.with_traceback(error.__traceback__))
    except BaseException as error:
        work.set_exception(error)


class CalledTarget:
    """A function, a coroutine function, or an object with a method `score`, called once for each group.

    Plain functions and methods run on threads.
    """

    def __init__(self, score: Callable[..., object], owner: object) -> None:
        self._score, self._owner = score, owner
        self._threads = Threads()

    def num_stuck(self) -> int:
        return self._threads.num_stuck()

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> object:
        return await call(self._score, self._threads, prompt, completions)

    def take_report(self) -> ScorerReport:
        return report_of(self._owner)

    async def close(self) -> None:
        await close_owner(self._owner, self._threads)


class BatchedTarget:
    """A target that takes (prompt, completion) pairs of several groups in one call; one call at a time."""

    def __init__(
        self, score: Callable[..., object], owner: object, concurrency: int, options: object
    ) -> None:
        self._score, self._owner = score, owner
        self._threads = Threads()
        max_wait_s = float(option(options, "max_wait_ms", DEFAULT_MAX_WAIT_MS)) / 1000.0
        max_batch = int(option(options, "max_batch", DEFAULT_MAX_BATCH))
        self._queue = BatchQueue[Item, object](self._batch, max_batch, max_wait_s, concurrency)

    def num_stuck(self) -> int:
        return self._threads.num_stuck()

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> object:
        return await self._queue.ask([(prompt, completion) for completion in completions])

    def take_report(self) -> ScorerReport:
        return report_of(self._owner)

    async def close(self) -> None:
        await self._queue.close()
        await close_owner(self._owner, self._threads)

    async def _batch(self, items: list[Item]) -> Sequence[object]:
        results = await call(self._score, self._threads, items)
        if not isinstance(results, list | tuple):
            raise ValueError(
                f"a batched scorer must return a list of judgements, got {type(results).__name__}"
            )
        return results


class SandboxedTarget:
    """A target in killable processes, called for each completion, or for `whole` groups."""

    def __init__(self, pool: KillablePool, whole: bool) -> None:
        self._pool = pool
        self._score = pool.score_group if whole else pool.score
        self._threads = Threads()

    def num_stuck(self) -> int:
        return self._threads.num_stuck()

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> object:
        return await self._threads.run(self._score, prompt, completions)

    def take_report(self) -> ScorerReport:
        return NO_REPORT

    async def close(self) -> None:
        self._pool.close()


_ONE_INLINE = threading.Lock()
"""Held during a call of any `InlineTarget`: two debuggers cannot share a terminal."""


class InlineTarget:
    """A user's plain function, called in this process so that a debugger and the terminal reach it.

    One call at a time, without a limit: each completion on its own, or `whole` groups in one call. `failed`
    makes a judgement of what the function raises for a completion.
    """

    def __init__(
        self,
        function: Callable[..., object],
        options: object,
        whole: bool,
        failed: Callable[[Exception], Judgement],
    ) -> None:
        self._function, self._options, self._whole, self._failed = function, options, whole, failed
        self._threads = Threads()

    def num_stuck(self) -> int:
        return 0  # it may wait for a person

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> object:
        if self._whole:
            return await call(self._alone, self._threads, prompt, completions)
        return [await self._one(prompt, completion) for completion in completions]

    def take_report(self) -> ScorerReport:
        return NO_REPORT

    async def close(self) -> None:
        """Nothing to release."""

    async def _one(self, prompt: Prompt, completion: Completion) -> Judgement:
        try:
            found = await call(self._alone, self._threads, prompt, [completion])
        except Exception as error:  # of this completion alone, as in a process of its own
            return self._failed(error)
        return check_judgements(found, 1)[0]

    def _alone(self, prompt: Prompt, completions: Sequence[Completion]) -> object:
        with _ONE_INLINE:
            return self._function(prompt, completions, self._options)


async def open_target(
    target: Callable[..., Any], options: object, concurrency: int, models: Mapping[str, Model] | None = None
) -> Target:
    """Wrap `target` by its form. A class is constructed on the event loop, with its options.

    One whose constructor has a second argument `models` gets the models that its options name, by the name
    that they have in the config.

    Its coroutine `start`, if it has one, is awaited: it may try what the scorer needs, and raise.

    Raises:
        ValueError: it is neither a callable nor a class with a method `score`.
    """
    owner: Any = None
    score: Any
    if inspect.isclass(target):
        make: Callable[..., Any] = target
        owner = make(options, models or {}) if _takes_models(target) else make(options)
        score = getattr(owner, "score", None)
        if not callable(score):
            raise ValueError(f"a scorer class must have a method score, {target.__qualname__} has none")
        if inspect.iscoroutinefunction(start := getattr(owner, "start", None)):
            await start()
    elif callable(target):
        score = _with_options(target, options)
    else:
        raise ValueError(f"a scorer must be a function or a class, got {type(target).__name__}")
    if is_batched(target):
        return BatchedTarget(score, owner, concurrency, options)
    return CalledTarget(score, owner)


async def call(function: Callable[..., object], threads: Threads, *arguments: object) -> object:
    """The function's result: awaited here if it is a coroutine function, else computed on a thread.

    Raises:
        RuntimeError: the function tried to end the process.
        Exception: what the function raised.
    """
    try:
        if inspect.iscoroutinefunction(function):
            return await function(*arguments)
        result = await threads.run(function, *arguments)
        # A plain function may return a coroutine, as a partial or a decorated function does.
        return await result if inspect.isawaitable(result) else result
    except (SystemExit, KeyboardInterrupt) as error:  # these would end the event loop, which all calls share
        raise RuntimeError(f"the scorer raised {type(error).__name__}") from error


async def close_owner(owner: object, threads: Threads) -> None:
    """Call the `close` of a scorer object, if it has one."""
    close = getattr(owner, "close", None)
    if callable(close):
        await call(close, threads)


def report_of(owner: object) -> ScorerReport:
    """What a scorer object reports of itself; empty if it has no method `take_report`.

    Raises:
        ValueError: what it reports cannot be stored.
        Exception: what `take_report` raised.
    """
    take = getattr(owner, "take_report", None)
    return checked(take()) if callable(take) else NO_REPORT


def option(options: object, name: str, default: Any) -> Any:
    """An option by name: of a dataclass, of a mapping, or of a user's own kind; else `default`."""
    if hasattr(options, name):
        return getattr(options, name)
    given = getattr(options, "options", options)  # a user's own kind has them in its field `options`
    return given.get(name, default) if isinstance(given, Mapping) else default


def _takes_models(target: type) -> bool:
    try:
        return "models" in inspect.signature(target).parameters
    except (TypeError, ValueError):  # some classes written in C have no signature
        return False


def _with_options(function: Callable[..., object], options: object) -> Callable[..., object]:
    """The function with its last argument bound to `options`; a coroutine function stays one."""
    if not inspect.iscoroutinefunction(function):
        return lambda *arguments: function(*arguments, options)

    async def score(*arguments: object) -> object:
        return await function(*arguments, options)

    return score
