"""Whether the JSON in a text follows a JSON Schema. In: a prompt's completions. Out: Judgements.

Run by `actors.sandbox` in a killable process, one sample at a time: a schema may contain patterns, and nested
values may take long to check. References to other documents are not fetched.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry

from configs.kinds.text_scorers import JsonSchemaOptions
from rollouts.files import Json
from rollouts.records import Completion, Judgement, Prompt

_FENCE: Final = re.compile(r"^```", re.MULTILINE)
_OPENING: Final = re.compile(r"[\[{]")
_MAX_REREAD: Final = 4_000_000
"""Characters that may be read in vain, in all attempts together: about 0.2 s."""
_TYPES: Final = {"object": dict, "array": list}


class NotJsonError(ValueError):
    """A text is not JSON as RFC 8259 has it: NaN, a number of 5,000 digits or 1,000 levels included."""


def json_schema(
    prompt: Prompt, completions: Sequence[Completion], options: JsonSchemaOptions
) -> list[Judgement]:
    """1 if the JSON value follows the schema, `parsed` if it does not, 0 if there is none.

    The tag `json` says which: ``ok``, ``schema``, ``syntax`` (what should be JSON is not) or ``missing``.

    Raises:
        ValueError: `where` is not allowed, or the schema refers to what it does not contain.
    """
    if options.where not in ("last", "fenced", "whole"):
        raise ValueError(f"json_schema: where must be last, fenced or whole, got {options.where!r}")
    validator = _validator(json.dumps(options.schema))
    return [_judge(completion.text, validator, options) for completion in completions]


def warm_up(options: JsonSchemaOptions) -> None:
    """Import the package, check the schema and use it once."""
    _judge("{}", _validator(json.dumps(options.schema)), options)


def _judge(text: str, validator: Validator, options: JsonSchemaOptions) -> Judgement:
    try:
        value = find_json(text, options)
    except NotJsonError:
        return Judgement(score=0.0, tags={"json": "syntax"})
    except LookupError:
        return Judgement(score=0.0, tags={"json": "missing"})
    try:
        follows = validator.is_valid(value)
    except (RecursionError, ArithmeticError):  # a number that no float holds, divided by `multipleOf`
        follows = False
    if follows:
        return Judgement(score=1.0, tags={"json": "ok"})
    return Judgement(score=options.parsed, tags={"json": "schema"})


def find_json(text: str, options: JsonSchemaOptions) -> Json:
    """The value at the place that `options.where` names.

    ``last`` is the last outermost object or array; if the schema allows only one of the two, the last of that
    type, if there is one.

    Raises:
        LookupError: there is nothing at that place.
        NotJsonError: what is there is not JSON.
    """
    if options.where == "whole":
        if not text.strip():
            raise LookupError
        return _parse(text)
    if options.where == "fenced":
        return _parse(_last_block(text))
    values = list(_values(text))
    wanted = _TYPES.get(str(options.schema.get("type")))
    fitting = [value for value in values if wanted is None or isinstance(value, wanted)]
    if not values:
        raise NotJsonError if _OPENING.search(text) else LookupError
    return (fitting or values)[-1]


def _last_block(text: str) -> str:
    """The content of the last closed Markdown code block, without the line that opens it."""
    fences = [match.end() for match in _FENCE.finditer(text)]
    if len(fences) < 2:
        raise LookupError
    start = fences[len(fences) // 2 * 2 - 2]
    block = text[start : fences[len(fences) // 2 * 2 - 1] - 3]
    return block.partition("\n")[2]


def _values(text: str) -> Iterator[Json]:
    """The outermost objects and arrays of a text, in order.

    Raises:
        NotJsonError: brackets are nested too deeply, or many that do not close begin long texts.
    """
    refused: list[str] = []
    decoder = json.JSONDecoder(parse_constant=refused.append)
    place, budget = 0, _MAX_REREAD
    while match := _OPENING.search(text, place):
        start, value, failed = match.start(), None, True
        refused.clear()
        try:
            value, end = decoder.raw_decode(text, start)
            failed = bool(refused)
        except json.JSONDecodeError as error:
            end = error.pos
        except ValueError:  # a number of too many digits
            end = len(text)
        except RecursionError as error:  # and so would be the next thousand attempts, each as slow
            raise NotJsonError("nested too deeply") from error
        if not failed:
            yield value
            place = end
            continue
        # What is no JSON is read again from the next bracket in it: 900 that do not close, 900 times.
        place, budget = start + 1, budget - (end - start)
        if budget < 0:
            raise NotJsonError("too many brackets that do not close")


def _parse(text: str) -> Json:
    try:
        return json.loads(text, parse_constant=_refuse)  # type: ignore[no-any-return]
    except (ValueError, RecursionError) as error:
        raise NotJsonError from error


def _refuse(constant: str) -> Any:
    raise NotJsonError(f"{constant} is not JSON")


@functools.lru_cache(maxsize=8)
def _validator(schema: str) -> Validator:
    described = json.loads(schema)
    checker = validator_for(described)
    checker.check_schema(described)
    # An empty registry: a `$ref` to a URL is an error, and nothing is fetched.
    validator: Validator = checker(described, registry=Registry())
    return validator
