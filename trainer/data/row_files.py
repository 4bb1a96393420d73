"""Rows of a user's own .jsonl or .parquet file, and what is said of one that breaks a rule.

In: a path. Out: `Row`s as plain values, or one ValueError naming the file, the line or row, the key and what
was expected. Only text is read: no scripts, no pickles, no extension types. Used by
`trainer.data.file_dataset` and `trainer.data.demonstrations`.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_MESSAGE_KEYS = {"role", "content"}
_EXTENSION_KEY = b"ARROW:extension:name"
_ROWS_AT_A_TIME = 1024


@dataclass(frozen=True, slots=True)
class Row:
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


def read_rows(path: str, limit: int, what: str) -> Iterator[Row]:
    """The rows of the file, in order; if `limit` is positive, only the first ones.

    `what` says in errors of the file itself what it is for, such as "data".

    Raises:
        ValueError: the file cannot be read, or a row is no object.
    """
    if limit < 0:
        raise ValueError(f"{what} limit must be 0 or more, got {limit}")
    readers = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    suffix = Path(path).suffix
    if suffix not in readers:
        raise ValueError(f"{what} path must name a .jsonl or .parquet file, got {path!r}")
    try:
        yield from islice(readers[suffix](Path(path)), limit or None)
    except OSError as error:
        raise ValueError(f"{what} path must be a readable file, got {path!r}: {error}") from error


def _jsonl_rows(path: Path) -> Iterator[Row]:
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
            yield Row(path, f"line {number + 1}", number, values)


def _parquet_rows(path: Path) -> Iterator[Row]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for field in file.schema_arrow:
                _refuse_extension(field, f"{path}: column {field.name}")
            for batch in file.iter_batches(_ROWS_AT_A_TIME):
                rows = _to_rows(batch, path)
                for values in rows:
                    yield Row(path, f"row {number}", number, values)
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
            columns[name] = column.to_pylist(maps_as_pydicts="strict")
        except (
            ValueError,
            TypeError,
            OverflowError,
            KeyError,
        ) as error:  # text that is not UTF-8, years past 9999
            raise ValueError(f"{path}: column {name} must hold plain values: {error}") from error
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _refuse_extension(field: pa.Field, place: str) -> None:
    named = (field.metadata or {}).get(_EXTENSION_KEY)
    if isinstance(field.type, pa.BaseExtensionType) or named is not None:
        kind = named.decode(errors="replace") if named is not None else str(field.type)
        raise ValueError(f"{place} must have a plain type, got extension type {kind}")
    for number in range(field.type.num_fields):
        _refuse_extension(field.type.field(number), place)


def is_given(row: Row, key: str) -> bool:
    """Whether the row has a value for `key` that is not null."""
    return row.values.get(key) is not None


def first_given(row: Row, keys: tuple[str, ...]) -> tuple[str, object]:
    """The first of `keys` with a value, and that value; ("", None) for none."""
    for key in keys:
        if is_given(row, key):
            return key, row.values[key]
    return "", None


def to_name(row: Row, key: str, value: object) -> str:
    """Text, or a whole number as text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return to_text(row, key, value, "text that is not empty, or a whole number")


def to_text(row: Row, key: str, value: object, rule: str = "text that is not empty") -> str:
    """Text that is more than white space; `rule` says what else would do."""
    if not isinstance(value, str) or not value.strip():
        raise row.error(key, rule, value)
    return to_unicode(row, key, value)


def to_unicode(row: Row, key: str, value: str) -> str:
    """Text that a file can hold."""
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which no file can hold
        raise row.error(key, "Unicode text without lone surrogates", value) from error
    return value


def to_messages(row: Row, key: str, value: object) -> tuple[tuple[str, str], ...]:
    """(role, content) of chat messages; plain text is the user's."""
    if isinstance(value, str):
        return (("user", to_text(row, key, value)),)
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
        role = to_text(row, f"{place}.role", message.get("role"))
        messages.append((role, to_text(row, f"{place}.content", message.get("content"))))
    return tuple(messages)
