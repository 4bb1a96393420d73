"""Prompts from a user's .jsonl or .parquet file: the dataset kind ``file``, used by `trainer.data.prompts`.

Input: a path. Output: `Prompt`s, or one ValueError with file, row, key and the expected value. Layouts: verl
(`prompt`, `data_source`, `reward_model.ground_truth`, `extra_info`), TRL (`prompt` and `answer` or
`solution`) or plain (`prompt` or `question`, `answer`). `trainer.data.row_files` says what a file may hold.
"""

from __future__ import annotations

import decimal

from configs.kinds.datasets import FileOptions
from rollouts.files import Json
from rollouts.records import Prompt
from trainer.data.plain_values import plain_value
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
_ANSWER_RULE = "text that is not empty, a number, or another value that JSON can hold"
_MAX_EXACT_INTEGER = 2**53


def load_file(options: FileOptions) -> list[Prompt]:
    """The prompts of `options.path`, in order; if `options.limit` is positive, only the first ones.

    `prompt_id` is the row's `prompt_id` or `id`, else "<stem>-<row number from 0>". `domain` is
    `options.domain`, else the row's `data_source` or `domain`, else the file's stem. A null or absent answer
    makes an open-ended prompt. `extra` has the entries of `extra_info` and all other columns that are not
    null. Values keep the types of the file; see `plain_value` for types that JSON lacks.

    A text prompt becomes the user's message of the chat template; without a template it is used unchanged.
    Chat messages need a template. If the last one is the assistant's, the completion continues it, and
    scorers score both together, as in TRL.

    Raises:
        ValueError: the file cannot be read, or a row is invalid; the message names file, row and key.
    """
    prompts: list[Prompt] = []
    places: dict[str, str] = {}
    for row in read_rows(options.path, options.limit, "data"):
        prompt = to_prompt(row, options.domain)
        if prompt.prompt_id in places:
            rule = f"unique, but {places[prompt.prompt_id]} has the same"
            raise row.error("prompt_id", rule, prompt.prompt_id)
        places[prompt.prompt_id] = row.place
        prompts.append(prompt)
    return prompts


def to_prompt(row: Row, domain: str = "") -> Prompt:
    """The prompt of a row; `domain` replaces the row's own if it is not empty.

    Raises:
        ValueError: the row is invalid; the message names file, row and key.
    """
    source, messages = prompt_messages(row)
    id_key, prompt_id = row_id(row)
    domain_key, own_domain = row_domain(row)
    answer, truth, answer_key = _answer(row)
    return Prompt(
        prompt_id=prompt_id,
        messages=messages,
        answer=answer,
        domain=domain or own_domain,
        extra=_extra(row, {"reward_model", "extra_info", source, id_key, domain_key, answer_key}),
        is_text=is_text(row),
        place=f"{row.path}, {row.place}",
        # Only what text cannot hold: so a dataset of plain answers keeps the digest that its runs have
        # stored.
        ground_truth=None if truth == answer else truth,
        data_source=own_domain if domain and domain_key and own_domain != domain else "",
    )


def prompt_messages(row: Row) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The key of the prompt, `prompt` or `question`, and its messages as (role, content)."""
    source = _prompt_key(row)
    if not is_given(row, source):
        # Mostly another name of the column; names only, as the values may be long.
        has = f"; the row has the keys {', '.join(map(str, row.values)) or 'none'}"
        rule = (
            f"text or a list of chat messages (or give `question`{has if 'prompt' not in row.values else ''})"
        )
        raise row.error("prompt", rule, row.values.get("prompt"))
    return source, to_messages(row, source, row.values[source])


def is_text(row: Row) -> bool:
    """Whether the prompt is text, not chat messages."""
    return isinstance(row.values.get(_prompt_key(row)), str)


def _prompt_key(row: Row) -> str:
    return "prompt" if is_given(row, "prompt") else "question"


def row_id(row: Row) -> tuple[str, str]:
    """The key of the row's id ("" if it has none), and the id, by default "<stem>-<row number>"."""
    key, value = first_given(row, _ID_KEYS)
    return key, f"{row.path.stem}-{row.number}" if value is None else to_name(row, key, value)


def row_domain(row: Row) -> tuple[str, str]:
    """The key of the row's domain ("" if it has none), and the domain, by default the file's stem."""
    key, value = first_given(row, _DOMAIN_KEYS)
    return key, row.path.stem if value is None else to_text(row, key, value)


def _answer(row: Row) -> tuple[str | None, Json, str]:
    """The ground truth as text, its value in the file, and its key: verl's, then `answer`, then `solution`.

    Only text and numbers have a text form; for other values it is None.
    """
    model = row.values.get("reward_model")
    if model is not None:
        if not isinstance(model, dict):
            raise row.error("reward_model", "a mapping with ground_truth", model)
        truth = model.get("ground_truth")
        if truth == "":  # verl's files mark a missing ground truth like this
            return None, "", "reward_model"
        if truth is not None:
            return *_text_and_value(row, "reward_model.ground_truth", truth), "reward_model"
    key, value = first_given(row, _ANSWER_KEYS)
    return (None, None, key) if value is None else (*_text_and_value(row, key, value), key)


def _text_and_value(row: Row, key: str, truth: object) -> tuple[str | None, Json]:
    if isinstance(truth, bool | list | dict):  # bool first, because it is a subclass of int
        return None, to_json(row, key, truth)
    value = None if isinstance(truth, str) else to_json(row, key, truth)
    if isinstance(value, int | float):
        return _number_text(value), value
    text = to_text(row, key, truth if value is None else value, _ANSWER_RULE)
    return text, text


def _number_text(value: float) -> str:
    """A finite number in decimal notation, without an exponent: a scorer may read the e as Euler's number.

    3.0 becomes "3", because an integer column with nulls is read as floats.
    """
    if isinstance(value, int):
        return str(value)
    if value.is_integer() and abs(value) < _MAX_EXACT_INTEGER:  # beyond, int() would invent digits
        return str(int(value))
    return format(decimal.Decimal(repr(value)), "f")


def _extra(row: Row, used: set[str]) -> dict[str, Json]:
    info = row.values.get("extra_info")
    if info is not None and not isinstance(info, dict):
        raise row.error("extra_info", "a mapping", info)
    extra: dict[str, Json] = {}
    for key, value in row.values.items():
        if key not in used and (plain := to_json(row, key, value)) is not None:
            extra[to_unicode(row, key, key)] = plain
    for key, value in (info or {}).items():
        extra[to_unicode(row, f"extra_info.{key}", key)] = to_json(row, f"extra_info.{key}", value)
    return extra


def to_json(row: Row, key: str, value: object) -> Json:
    """`value` converted by `plain_value`.

    Raises:
        ValueError: JSON cannot hold it; the message names the row and the key.
    """
    try:
        return plain_value(value)
    except ValueError as error:
        raise row.error(key, f"text or a value that JSON can hold ({error})", value) from error
