"""Prompts from a user's own .jsonl or .parquet file: the dataset kind ``file``, called by `trainer.prompts`.

In: a path. Out: `Prompt`s, or one ValueError naming the file, the line or row, the key and what was expected.
Rows may be laid out as verl's (`prompt`, `data_source`, `reward_model.ground_truth`, `extra_info`), TRL's
(`prompt` and `answer` or `solution`) or plainly (`prompt` or `question`, `answer`). Only text is read: no
scripts, no pickles, no extension types.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from configs.kinds.datasets import FileOptions
from rollouts.records import Prompt

_ANSWER_KEYS = ("answer", "solution")
_ID_KEYS = ("prompt_id", "id")
_DOMAIN_KEYS = ("data_source", "domain")
_MESSAGE_KEYS = {"role", "content"}
_EXTENSION_KEY = b"ARROW:extension:name"
_MAX_EXACT_INTEGER = 2**53
_ROWS_AT_A_TIME = 1024


@dataclass(frozen=True, slots=True)
class _Row:
    """One row and where it stands, for the messages."""

    path: Path
    place: str
    """``line 3`` (counted from 1) of a .jsonl file, ``row 2`` (counted from 0) of a .parquet file."""
    number: int
    """Counted from 0 in both."""
    values: Mapping[str, object]

    def error(self, key: str, rule: str, value: object) -> ValueError:
        # reprlib, because a value may be as long or as deeply nested as its writer liked
        return ValueError(f"{self.path}, {self.place}: {key} must be {rule}, got {reprlib.repr(value)}")


def load_file(options: FileOptions) -> list[Prompt]:
    """The prompts of `options.path`, in order; if `options.limit` is positive, only the first ones.

    `prompt_id` is the row's `prompt_id` or `id`, else "<stem>-<row number from 0>". `domain` is
    `options.domain`, else the row's `data_source` or `domain`, else the file's stem. A null or absent answer
    makes an open-ended prompt. Everything not used otherwise, and what `extra_info` holds, goes to `extra`:
    text as it is, other values as JSON, nulls left out.

    Raises:
        ValueError: the file cannot be read, or a row breaks a rule.
    """
    path = Path(options.path)
    if options.limit < 0:
        raise ValueError(f"data limit must be 0 or more, got {options.limit}")
    readers = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    if path.suffix not in readers:
        raise ValueError(f"data path must name a .jsonl or .parquet file, got {options.path!r}")
    prompts: list[Prompt] = []
    places: dict[str, str] = {}
    try:
        for row in readers[path.suffix](path):
            prompt = _to_prompt(row, options.domain)
            if prompt.prompt_id in places:
                raise row.error("prompt_id", f"unlike that of {places[prompt.prompt_id]}", prompt.prompt_id)
            places[prompt.prompt_id] = row.place
            prompts.append(prompt)
            if len(prompts) == options.limit:
                break
    except OSError as error:
        raise ValueError(f"data path must be a readable file, got {options.path!r}: {error}") from error
    return prompts


def _jsonl_rows(path: Path) -> Iterator[_Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            place = f"{path}, line {number + 1}"
            try:
                text = line.decode("utf-8-sig" if number == 0 else "utf-8").strip()
                values = json.loads(text) if text else None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{place}: must be a JSON object in UTF-8: {error}") from error
            if not text:
                continue
            if not isinstance(values, dict):
                raise ValueError(f"{place}: must be a JSON object, got {type(values).__name__}")
            yield _Row(path, f"line {number + 1}", number, values)


def _parquet_rows(path: Path) -> Iterator[_Row]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for field in file.schema_arrow:
                _refuse_extension(field, f"{path}: column {field.name}")
            for batch in file.iter_batches(_ROWS_AT_A_TIME):
                rows = _to_rows(batch, path)
                for values in rows:
                    yield _Row(path, f"row {number}", number, values)
                    number += 1
    except (pa.ArrowException, UnicodeError) as error:
        raise ValueError(f"{path}: must be a whole Parquet file: {error}") from error


def _to_rows(batch: pa.RecordBatch, path: Path) -> list[dict[str, object]]:
    """The batch as dicts, column by column so that the message can name the one that does not convert."""
    columns: dict[str, list[object]] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name in columns:
            raise ValueError(f"{path}: column {name} must stand there once, got it twice")
        try:
            columns[name] = column.to_pylist()
        except (ValueError, TypeError, OverflowError) as error:  # text that is not UTF-8, years past 9999
            raise ValueError(f"{path}: column {name} must hold plain values: {error}") from error
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _refuse_extension(field: pa.Field, place: str) -> None:
    named = (field.metadata or {}).get(_EXTENSION_KEY)
    if isinstance(field.type, pa.BaseExtensionType) or named is not None:
        kind = named.decode(errors="replace") if named is not None else str(field.type)
        raise ValueError(f"{place} must have a plain type, got extension type {kind}")
    for number in range(field.type.num_fields):
        _refuse_extension(field.type.field(number), place)


def _to_prompt(row: _Row, domain: str) -> Prompt:
    used = {"reward_model", "extra_info"}
    source = "prompt" if _given(row, "prompt") else "question"
    if not _given(row, source):
        rule = "text or a list of chat messages (or give `question`)"
        raise row.error("prompt", rule, row.values.get("prompt"))
    used.add(source)
    id_key, id_value = _first(row, _ID_KEYS)
    domain_key, domain_value = _first(row, _DOMAIN_KEYS)
    answer, answer_key = _answer(row)
    used |= {id_key, domain_key, answer_key}
    own = "" if domain_value is None else _text(row, domain_key, domain_value)
    return Prompt(
        prompt_id=f"{row.path.stem}-{row.number}" if id_value is None else _name(row, id_key, id_value),
        messages=_messages(row, source, row.values[source]),
        answer=answer,
        domain=domain or own or row.path.stem,
        extra=_extra(row, used),
    )


def _given(row: _Row, key: str) -> bool:
    return row.values.get(key) is not None


def _first(row: _Row, keys: tuple[str, ...]) -> tuple[str, object]:
    """The first of `keys` with a value, and that value; ("", None) for none."""
    for key in keys:
        if _given(row, key):
            return key, row.values[key]
    return "", None


def _messages(row: _Row, key: str, value: object) -> tuple[tuple[str, str], ...]:
    if isinstance(value, str):
        return (("user", _text(row, key, value)),)
    if not isinstance(value, list) or not value:
        raise row.error(key, "text or a list of chat messages", value)
    messages = []
    for number, message in enumerate(value):
        place = f"{key}[{number}]"
        if not isinstance(message, dict):
            raise row.error(place, "a message with role and content", message)
        surplus = sorted(str(name) for name in message.keys() - _MESSAGE_KEYS if message[name] is not None)
        if surplus:
            raise row.error(place, "a message with only role and content", surplus)
        role = _text(row, f"{place}.role", message.get("role"))
        messages.append((role, _text(row, f"{place}.content", message.get("content"))))
    return tuple(messages)


def _answer(row: _Row) -> tuple[str | None, str]:
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
    key, value = _first(row, _ANSWER_KEYS)
    return (None if value is None else _number_or_text(row, key, value)), key


def _number_or_text(row: _Row, key: str, value: object) -> str:
    """Text, or a finite number as text; 3.0 becomes "3": with nulls in it a column holds floats."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < _MAX_EXACT_INTEGER else repr(value)
    if isinstance(value, decimal.Decimal) and value.is_finite():
        return str(value)
    return _text(row, key, value, "text that is not empty, or a finite number")


def _name(row: _Row, key: str, value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(row, key, value, "text that is not empty, or a whole number")


def _text(row: _Row, key: str, value: object, rule: str = "text that is not empty") -> str:
    if not isinstance(value, str) or not value.strip():
        raise row.error(key, rule, value)
    return _unicode(row, key, value)


def _unicode(row: _Row, key: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which no file can hold
        raise row.error(key, "Unicode text without lone surrogates", value) from error
    return value


def _extra(row: _Row, used: set[str]) -> dict[str, str]:
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
            extra[_unicode(row, name, key)] = _unicode(row, name, text)
    return extra


def _json(row: _Row, key: str, value: object) -> str:
    try:
        return _unicode(row, key, json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain))
    except (ValueError, TypeError, RecursionError) as error:
        raise row.error(key, "text or a value that JSON can hold", value) from error


def _plain(value: object) -> str:
    """Dates, durations and decimals as text; anything else (bytes, say) is refused."""
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
