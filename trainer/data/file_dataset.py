"""Prompts from a user's own .jsonl or .parquet file: the dataset kind ``file``, called by `prompts`.

In: a path. Out: `Prompt`s, or one ValueError naming the file, the line or row, the key and what was expected.
Rows may be laid out as verl's (`prompt`, `data_source`, `reward_model.ground_truth`, `extra_info`), TRL's
(`prompt` and `answer` or `solution`) or plainly (`prompt` or `question`, `answer`). What a file may hold is
said in `trainer.data.row_files`.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math

from configs.kinds.datasets import FileOptions
from rollouts.records import Prompt
from trainer.data.row_files import (
    Row,
    first_given,
    is_given,
    read_rows,
    to_messages,
    to_name,
    to_text,
    to_unicode,
)

_ANSWER_KEYS = ("answer", "solution")
_ID_KEYS = ("prompt_id", "id")
_DOMAIN_KEYS = ("data_source", "domain")
_MAX_EXACT_INTEGER = 2**53


def load_file(options: FileOptions) -> list[Prompt]:
    """The prompts of `options.path`, in order; if `options.limit` is positive, only the first ones.

    `prompt_id` is the row's `prompt_id` or `id`, else "<stem>-<row number from 0>". `domain` is
    `options.domain`, else the row's `data_source` or `domain`, else the file's stem. A null or absent answer
    makes an open-ended prompt. Everything not used otherwise, and what `extra_info` holds, goes to `extra`:
    text as it is, other values as JSON, nulls left out.

    A prompt that is text is the user's message under the model's chat template; a model without one reads it
    as it is. Chat messages need a template. If the last one is the assistant's, the completion continues it,
    and scorers judge both together, as in TRL.

    Raises:
        ValueError: the file cannot be read, or a row breaks a rule.
    """
    prompts: list[Prompt] = []
    places: dict[str, str] = {}
    for row in read_rows(options.path, options.limit, "data"):
        prompt = _to_prompt(row, options.domain)
        if prompt.prompt_id in places:
            raise row.error("prompt_id", f"unlike that of {places[prompt.prompt_id]}", prompt.prompt_id)
        places[prompt.prompt_id] = row.place
        prompts.append(prompt)
    return prompts


def _to_prompt(row: Row, domain: str) -> Prompt:
    source, messages = prompt_messages(row)
    id_key, prompt_id = row_id(row)
    domain_key, own_domain = row_domain(row)
    answer, answer_key = _answer(row)
    return Prompt(
        prompt_id=prompt_id,
        messages=messages,
        answer=answer,
        domain=domain or own_domain,
        extra=_extra(row, {"reward_model", "extra_info", source, id_key, domain_key, answer_key}),
        is_text=is_text(row),
        place=f"{row.path}, {row.place}",
    )


def prompt_messages(row: Row) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The key that the prompt stands under, `prompt` or `question`, and its messages."""
    source = _prompt_key(row)
    if not is_given(row, source):
        rule = "text or a list of chat messages (or give `question`)"
        raise row.error("prompt", rule, row.values.get("prompt"))
    return source, to_messages(row, source, row.values[source])


def is_text(row: Row) -> bool:
    """Whether the prompt is given as text, not as chat messages."""
    return isinstance(row.values.get(_prompt_key(row)), str)


def _prompt_key(row: Row) -> str:
    return "prompt" if is_given(row, "prompt") else "question"


def row_id(row: Row) -> tuple[str, str]:
    """The key that the row's name stands under ("" for none), and the name: else "<stem>-<row number>"."""
    key, value = first_given(row, _ID_KEYS)
    return key, f"{row.path.stem}-{row.number}" if value is None else to_name(row, key, value)


def row_domain(row: Row) -> tuple[str, str]:
    """The key that the row's domain stands under ("" for none), and the domain: else the file's stem."""
    key, value = first_given(row, _DOMAIN_KEYS)
    return key, row.path.stem if value is None else to_text(row, key, value)


def _answer(row: Row) -> tuple[str | None, str]:
    """The ground truth as text and the key it came from: verl's first, then `answer`, then `solution`."""
    model = row.values.get("reward_model")
    if model is not None:
        if not isinstance(model, dict):
            raise row.error("reward_model", "a mapping with ground_truth", model)
        truth = model.get("ground_truth")
        if isinstance(truth, list | dict):  # test cases, accepted spellings: the scorer's business
            return _json(row, "reward_model.ground_truth", truth), "reward_model"
        if truth is not None:
            return _number_or_text(row, "reward_model.ground_truth", truth), "reward_model"
    key, value = first_given(row, _ANSWER_KEYS)
    return (None if value is None else _number_or_text(row, key, value)), key


def _number_or_text(row: Row, key: str, value: object) -> str:
    """Text, or a finite number as text; 3.0 becomes "3": with nulls in it a column holds floats."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < _MAX_EXACT_INTEGER else repr(value)
    if isinstance(value, decimal.Decimal) and value.is_finite():
        return str(value)
    return to_text(row, key, value, "text that is not empty, or a finite number")


def _extra(row: Row, used: set[str]) -> dict[str, str]:
    info = row.values.get("extra_info")
    if info is not None and not isinstance(info, dict):
        raise row.error("extra_info", "a mapping", info)
    rest = {key: value for key, value in row.values.items() if key not in used}
    extra = {}
    for prefix, values in (("", rest), ("extra_info.", info or {})):
        for key, value in values.items():
            name = f"{prefix}{key}"
            if value is None or (isinstance(value, float) and math.isnan(value)):
                continue
            text = value if isinstance(value, str) else _json(row, name, value)
            extra[to_unicode(row, name, key)] = to_unicode(row, name, text)
    return extra


def _json(row: Row, key: str, value: object) -> str:
    try:
        return to_unicode(row, key, json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain))
    except (ValueError, TypeError, RecursionError) as error:
        raise row.error(key, "text or a value that JSON can hold", value) from error


def _plain(value: object) -> str:
    """Dates, durations and decimals as text; anything else (bytes, say) is refused."""
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
