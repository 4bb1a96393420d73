"""The verdict in a judge's reply. In: a reply and its request's tag. Out: a Verdict, or why there is none.

Only a JSON object with the request's tag counts, wherever it is in the reply. The answer under judgement
cannot contain the tag, so a verdict that it dictates, and that the judge quotes, is not read as one. If
several objects have the tag, they must agree. Nothing is guessed: whatever is missing, unknown, doubled, out
of range or of another type means that there is no verdict. Used by `rewards.judge`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rewards.judge_rubric import Rubric
from rollouts.files import unicode_text

MAX_CHARS: Final = 200_000
MAX_OBJECTS: Final = 256
"""Braces from which an object is tried; each may cost a pass over the reply."""
MAX_EXPLANATION: Final = 2_000
_START: Final = re.compile(r'\{\s*"')
_REASONING_END: Final = "</think>"
_KEYS: Final = frozenset({"tag", "explanation", "verdicts"})


class NoVerdictError(ValueError):
    """A reply without a verdict that can be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`values` has a value in [0, 1] for each criterion; `score` is their mean by weight."""

    values: Mapping[str, float]
    score: float
    explanation: str


def read_reply(reply: str, tag: str, rubric: Rubric) -> Verdict:
    """The verdict of a complete reply. Text and code fences around it are allowed.

    Raises:
        NoVerdictError: there is none, or several that differ.
    """
    if not reply.strip():
        raise NoVerdictError("the reply is empty")
    if len(reply) > MAX_CHARS:
        raise NoVerdictError(f"the reply has {len(reply)} characters, more than {MAX_CHARS}")
    found = [each for each in _objects(reply, tag) if each.get("tag") == tag]
    if not found:
        raise NoVerdictError("the reply has no JSON object with the request's tag")
    verdicts = [_verdict(each, rubric) for each in found]
    # A model may repeat its verdict at the end. Two that differ leave no rule by which to choose.
    if any(each.values != verdicts[0].values for each in verdicts):
        raise NoVerdictError(f"the reply has {len(verdicts)} verdicts, which differ")
    return verdicts[-1]


def _objects(text: str, tag: str) -> list[_Object]:
    """The outermost JSON objects of a text that is not JSON as a whole, without those of its reasoning.

    Reasoning ends with the first ``</think>`` that is not inside an object.
    """
    # Not strict: models write line breaks into an explanation, where JSON wants them escaped.
    decoder = json.JSONDecoder(object_pairs_hook=_Object, parse_constant=_no_constant, strict=False)
    found: list[_Object] = []
    position, last, reasons = 0, text.rfind(tag), True
    for _ in range(MAX_OBJECTS):
        start = _START.search(text, position)
        if (
            reasons
            and (end := text.find(_REASONING_END, position, start.start() if start else len(text))) >= 0
        ):
            found, reasons, position = [], False, end + len(_REASONING_END)
            continue
        if start is None or start.start() > last:  # what follows cannot have the tag
            return found
        try:
            value, position = decoder.raw_decode(text, start.start())
            found.append(value)
        # From the next character: an object may begin inside of what is none.
        except (ValueError, RecursionError):
            position = start.start() + 1
    raise NoVerdictError(f"the reply has more than {MAX_OBJECTS} braces that may begin an object")


class _Object(dict[str, Any]):
    """A JSON object that knows whether a key came twice, of which `dict` would keep the last value."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.has_doubles = len(self) < len(pairs)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _verdict(found: _Object, rubric: Rubric) -> Verdict:
    given = found.get("verdicts")
    if found.has_doubles or _unknown(found, _KEYS):
        raise NoVerdictError(f"the verdict must have each of {sorted(_KEYS)} once, got {_short(list(found))}")
    if not isinstance(given, _Object):
        raise NoVerdictError(f"verdicts must be an object, got {_short(given)}")
    names = {each.name for each in rubric.criteria}
    if given.has_doubles or _unknown(given, names):
        raise NoVerdictError(f"verdicts must be of {sorted(names)} once each, got {_short(list(given))}")
    values = {}
    for criterion in rubric.criteria:
        if criterion.name not in given:
            raise NoVerdictError(f"criterion {criterion.name} has no verdict")
        value = criterion.value(given[criterion.name])
        if value is None:
            got = _short(given[criterion.name])
            raise NoVerdictError(f"criterion {criterion.name} must be {criterion.allowed()}, got {got}")
        values[criterion.name] = value
    return Verdict(values=values, score=rubric.score(values), explanation=_explanation(found))


def _unknown(found: Mapping[str, object], known: set[str] | frozenset[str]) -> list[str]:
    return [key for key in found if key not in known]


def _explanation(found: _Object) -> str:
    text = found.get("explanation", "")
    if not isinstance(text, str):
        raise NoVerdictError(f"explanation must be a text, got {_short(text)}")
    unicode = unicode_text(text)
    return unicode if len(unicode) <= MAX_EXPLANATION else unicode[: MAX_EXPLANATION - 3] + "..."


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
