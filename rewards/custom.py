"""The user's own reward function in verl's signature. In: a prompt's completions. Out: Judgements.

``compute_score(data_source, solution_str, ground_truth, extra_info) -> float | {"score": float, ...}``,
called by keyword as verl calls it. Run by `actors.sandbox` in a killable process, one sample at a time.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence

from configs.kinds.base import load_target
from configs.kinds.scorers import CustomOptions
from rollouts.records import Completion, Judgement, Prompt


def custom(prompt: Prompt, completions: Sequence[Completion], options: CustomOptions) -> list[Judgement]:
    """What `options.function` says of each text; `options.options` are passed on as further keywords.

    A result that is no finite number (or a dict without one under "score") is ``invalid``. A dict may also
    hold ``pred`` (the answer it read) and ``acc`` (whether that is right), as verl's own functions do.

    Raises:
        ValueError: `options.function` names nothing callable. Whatever the function raises is passed on.
    """
    compute_score = _load(options.function)
    return [
        to_judgement(
            compute_score(
                data_source=prompt.domain,
                solution_str=completion.text,
                ground_truth=prompt.answer,
                extra_info=dict(prompt.extra),
                **options.options,
            )
        )
        for completion in completions
    ]


def warm_up(options: CustomOptions) -> None:
    """Import the user's module, so that its import time is not counted as the first sample's.

    Raises:
        ValueError: `options.function` names nothing callable.
    """
    _load(options.function)


def to_judgement(result: object) -> Judgement:
    """A number, or verl's dict with "score", as a Judgement; ``invalid`` for anything else."""
    detail = result if isinstance(result, dict) else {"score": result}
    score = finite_or_none(detail.get("score"))
    if score is None:
        return Judgement(score=None, status="invalid")
    prediction, accuracy = detail.get("pred"), detail.get("acc")
    return Judgement(
        score=score,
        answer=None if prediction is None else str(prediction),
        answer_ok=bool(accuracy) if isinstance(accuracy, (bool, numbers.Real)) else None,
    )


def finite_or_none(value: object) -> float | None:
    """`value` as a float when it is a finite real number (a bool counts as 0 or 1), else None."""
    if not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _load(function: str) -> Callable[..., object]:
    compute_score = load_target(function)
    if not callable(compute_score):
        raise ValueError(f"custom: function must name a callable, got {function!r}")
    return compute_score
