"""Rows of a user's .jsonl or .parquet file, and error messages for invalid rows.

Input: a path. Output: `Row`s of plain values, or one ValueError with file, row, key and the expected value.
Only data is read: no scripts, no pickles, no extension types. Used by `trainer.data.file_dataset` and
`trainer.data.demonstrations`.
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

from configs.errors import nearest

_MESSAGE_KEYS = {"role", "content"}
_EXTENSION_KEY = b"ARROW:extension:name"
_ROWS_AT_A_TIME = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One row and its place in the file, for error messages."""

    path: Path
    place: str
    """``line 3`` (counted from 1) of a .jsonl file, ``row 2`` (counted from 0) of a .parquet file."""
    number: int
    """Counted from 0 in both formats."""
    values: Mapping[str, object]

    def error(self, key: str, rule: str, value: object) -> ValueError:
        """An error that says where `key` is, what it must be (`rule`), and what it is."""
        # reprlib shortens values that are very long or deeply nested.
        return ValueError(f"{self.path}, {self.place}: {key} must be {rule}, got {reprlib.repr(value)}")


def read_rows(path: str, limit: int, what: str) -> Iterator[Row]:
    """The rows of the file, in order; if `limit` is positive, only the first ones.

    `what` names the config section in errors about the file itself, such as "data".

    Raises:
        ValueError: the file cannot be read, or a row is not an object.
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


def check_file(key: str, path: str) -> None:
    """Check that there is a file at `path`; `key` is the config key that names it.

    Raises:
        ValueError: there is none; with the nearest name in the same folder.
    """
    file = Path(path)
    if file.exists():
        return
    names = [each.name for each in file.parent.iterdir()] if file.parent.is_dir() else []
    close = nearest(file.name, names)
    where = "" if file.is_absolute() else f" in {Path.cwd()}"
    hint = f" (did you mean {file.parent / close}?)" if close else ""
    raise ValueError(f"{key} = {path!r}: no such file{where}{hint}")


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            place = f"{path}, line {number + 1}"
            try:
                # Some editors put a byte order mark at the start of a file.
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
            # In parts: a file with long chats may not fit into memory as Python objects.
            for batch in file.iter_batches(_ROWS_AT_A_TIME):
                rows = _to_rows(batch, path)
                for values in rows:
                    yield Row(path, f"row {number}", number, values)
                    number += 1
    except (pa.ArrowException, UnicodeError) as error:
        raise ValueError(f"{path}: must be a whole Parquet file: {error}") from error


def _to_rows(batch: pa.RecordBatch, path: Path) -> list[dict[str, object]]:
    """The batch as dicts. Converted column by column, so that an error can name the column."""
    columns: dict[str, list[object]] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name in columns:
            raise ValueError(f"{path}: column {name} must be unique, got it twice")
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
    # A type that is not registered in this process is visible only in the field's metadata.
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
    """The first of `keys` that has a value, and the value; ("", None) if none has."""
    for key in keys:
        if is_given(row, key):
            return key, row.values[key]
    return "", None


def to_name(row: Row, key: str, value: object) -> str:
    """`value` as text: text, or an integer."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return to_text(row, key, value, "text that is not empty, or a whole number")


def to_text(row: Row, key: str, value: object, rule: str = "text that is not empty") -> str:
    """`value`, which must be text and not only white space; `rule` describes it in the error."""
    if not isinstance(value, str) or not value.strip():
        raise row.error(key, rule, value)
    return to_unicode(row, key, value)


def to_unicode(row: Row, key: str, value: str) -> str:
    """`value`, which must be encodable as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair, which UTF-8 cannot encode
        raise row.error(key, "Unicode text without lone surrogates", value) from error
    return value


def to_messages(row: Row, key: str, value: object) -> tuple[tuple[str, str], ...]:
    """Chat messages as (role, content); plain text becomes one message of the user."""
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
