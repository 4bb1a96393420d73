"""The forms that a scorer's target may have besides a plain function, and how they are recognized.

`batched` is for authors of scorers; the others are used by `actors.scorer_targets` and the sandbox's worker.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from rollouts.records import Completion, Prompt

Item = tuple[Prompt, Completion]
"""One item of a batched target: a completion with its prompt."""
DEFAULT_MAX_BATCH = 64
DEFAULT_MAX_WAIT_MS = 5.0
"""Defaults for a batched target whose options have no `max_batch` or `max_wait_ms`."""

TargetT = TypeVar("TargetT", bound=Callable[..., Any])
_BATCHED = "_polyphony_batched"


def batched(target: TargetT) -> TargetT:
    """Mark a function or class that scores completions of several groups in one call.

    A function is then called as ``fn(items, options)``, the method of a class as ``score(items)``, with
    (prompt, completion) pairs; it returns one `Judgement` per pair, in order. Both may be async.
    """
    setattr(target, _BATCHED, True)
    return target


def is_batched(target: object) -> bool:
    """Whether `target` was marked with `batched`."""
    return getattr(target, _BATCHED, False) is True


def runs_in_actor(target: object) -> bool:
    """Whether `target` must run in the scorer's own process, because a sandbox makes one call at a time.

    True for a class, a coroutine function and a batched target.
    """
    return inspect.isclass(target) or inspect.iscoroutinefunction(target) or is_batched(target)
