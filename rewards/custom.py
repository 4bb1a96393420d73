"""The user's own reward function in verl's signature. In: a prompt's completions. Out: Judgements.

``compute_score(data_source, solution_str, ground_truth, extra_info) -> float | {"score": float, ...}``,
called by keyword as verl calls it; it may be an ``async def``. Run by `actors.sandbox` in a killable process,
one sample at a time.
"""

from __future__ import annotations

import asyncio
import decimal
import functools
import inspect
import math
import numbers
import reprlib
from collections.abc import Awaitable, Callable, Mapping, Sequence

from configs.kinds.base import load_target
from configs.kinds.scorers import CustomOptions
from rollouts.records import Completion, Judgement, Prompt


def custom(prompt: Prompt, completions: Sequence[Completion], options: CustomOptions) -> list[Judgement]:
    """Score each text with `options.function`; `options.options` are passed as further keyword arguments.

    A result that is not a finite number (or a mapping with one under "score") is ``invalid``. A mapping may
    also have ``pred`` (the answer in the text) and ``acc`` (whether it is right), as in verl's own functions.
    Numbers and booleans may be numpy's, or arrays and tensors of one element. A coroutine is awaited.

    Raises:
        ValueError: `options.function` is not callable.
        Exception: what the function raised.
    """
    compute_score, name = _load(options.function), options.function.partition(":")[2]
    # As in verl: a structured ground truth, where the dataset has one, else the text of the answer.
    truth = prompt.answer if prompt.ground_truth is None else prompt.ground_truth
    judgements = []
    for completion in completions:
        result = compute_score(
            data_source=prompt.data_source or prompt.domain,
            solution_str=completion.text,
            ground_truth=truth,
            extra_info=dict(prompt.extra),
            **options.options,
        )
        if inspect.isawaitable(result):
            result = _event_loop().run_until_complete(_wait_for(result))
        judgements.append(to_judgement(result, name))
    return judgements


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One event loop for all calls: objects that a function keeps, such as an HTTP session, belong to it."""
    return asyncio.new_event_loop()


async def _wait_for(result: Awaitable[object]) -> object:
    return await result


def warm_up(options: CustomOptions) -> None:
    """Import the user's module, so that its import does not count against the first sample's limit.

    Raises:
        ValueError: `options.function` is not callable.
    """
    _load(options.function)


def to_judgement(result: object, name: str = "compute_score") -> Judgement:
    """A number, or a mapping with "score", as a Judgement; ``invalid`` for anything else.

    `name` is the function's name, for the message.
    """
    # One check for both forms: a mapping without a score fails as a number that is not finite does.
    fields = result if isinstance(result, Mapping) else {"score": result}
    score = finite_or_none(fields.get("score"))
    if score is None:
        return Judgement(score=None, status="invalid", detail=f"{name} returned {_complaint(result)}")
    prediction, accuracy = fields.get("pred"), finite_or_none(fields.get("acc"))
    return Judgement(
        score=score,
        answer=None if prediction is None else str(prediction),
        answer_ok=None if accuracy is None else bool(accuracy),
    )


def _complaint(result: object) -> str:
    """The type of an invalid result, its shortened value, and what was expected."""
    try:
        value = reprlib.repr(result)
    except Exception as error:  # raised by its __repr__, which may be the user's
        value = f"(no repr: {type(error).__name__})"
    expected = "a finite number, a bool or a mapping with `score`"
    return f"{type(result).__name__} {value}; expected {expected}"


def finite_or_none(value: object) -> float | None:
    """`value` as a float if it is a finite real number (a bool is 0 or 1), else None.

    An array or tensor of one element is taken as that element.
    """
    value = one_element(value)
    # Not `float(value)` alone, which would take the text "1.0" for a number.
    if not isinstance(value, numbers.Real | decimal.Decimal):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):  # ValueError: a signalling NaN
        return None
    return number if math.isfinite(number) else None


def one_element(value: object) -> object:
    """The element of a numpy scalar, or of an array or tensor of one element; other values unchanged."""
    item = getattr(value, "item", None)
    if not callable(item):
        return value
    try:
        return item()
    except Exception:  # more than one element, or another method of the name `item`
        return value


def _load(function: str) -> Callable[..., object]:
    compute_score = load_target(function)
    if not callable(compute_score):
        raise ValueError(f"custom: function must name a callable, got {function!r}")
    return compute_score
