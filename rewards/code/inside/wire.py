"""Plain values as JSON can hold them, and back. Runs inside the sandbox and in the scorer.

In: None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset. Out: the same, in which
each value that JSON lacks is a mapping with one key, its type. What is read may come from a hostile program:
it can become nothing but exactly these types, of bounded depth and size, so comparing it runs no code of the
program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MAX_DEPTH = 60
_MAX_SAME_HASH = 64
"""Elements of a set, or keys of a mapping, that may have one hash."""
MAX_INT_DIGITS = 200_000
"""Hexadecimal digits."""
_SMALL = 1 << 53


class NotPlainError(Exception):
    """A value that is not plain data, or too deep or too large."""


class WrongTypeError(NotPlainError):
    """A value of a type that cannot be sent."""


def pack(value: Any, depth: int = 0) -> object:
    """`value` as JSON can hold it, at `depth` of the whole.

    Raises:
        NotPlainError: it, or a value inside it, is not plain, or too deep.
    """
    if depth > MAX_DEPTH:
        raise NotPlainError(f"nested deeper than {MAX_DEPTH}")
    if value is None or value is True or value is False:
        return value
    # Subclasses become their plain type, by the methods of that type and not their own.
    if isinstance(value, str):
        return str.__str__(value) if type(value) is str else "".join(list(str.__iter__(value)))
    if isinstance(value, int):
        number = int.__index__(value)
        return number if -_SMALL < number < _SMALL else {"int": hex(number)}
    if isinstance(value, float):
        return {"float": float.hex(float.__float__(value))}
    if isinstance(value, complex):
        return {"complex": [float.hex(value.real), float.hex(value.imag)]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    return _pack_many(value, depth + 1)


def _pack_many(value: Any, depth: int) -> object:
    if isinstance(value, list):
        return {"list": [pack(each, depth) for each in list.__iter__(value)]}
    if isinstance(value, tuple):
        return {"tuple": [pack(each, depth) for each in tuple.__iter__(value)]}
    if isinstance(value, dict):
        return {"dict": [[pack(key, depth), pack(each, depth)] for key, each in dict.items(value)]}
    if isinstance(value, (set, frozenset)):
        name = "set" if isinstance(value, set) else "frozenset"
        return {name: [pack(each, depth) for each in value]}
    if callable(getattr(value, "tolist", None)):  # an array or a number of numpy
        return pack(value.tolist(), depth)
    raise WrongTypeError(type(value).__name__)


def unpack(value: Any) -> Any:
    """The value that `pack` has made this of.

    Raises:
        NotPlainError: it is nothing that `pack` makes, whatever else it is.
    """
    try:
        return _unpack(value, 0)
    except NotPlainError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise NotPlainError(f"not a value: {type(error).__name__}") from None
    except (RecursionError, MemoryError) as error:
        raise NotPlainError(f"too large: {type(error).__name__}") from None


def _unpack(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise NotPlainError(f"nested deeper than {MAX_DEPTH}")
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value
    if not isinstance(value, dict) or len(value) != 1:
        raise NotPlainError("not a value")
    ((name, inner),) = value.items()
    return _READERS[name](inner, depth + 1)


def _read_int(inner: str, depth: int) -> int:
    if len(inner) > MAX_INT_DIGITS:
        raise NotPlainError("an integer of too many digits")
    return int(inner, 16)


def _read_list(inner: list[Any], depth: int) -> list[Any]:
    return [_unpack(each, depth) for each in inner]


def _read_hashed(inner: list[Any], depth: int) -> list[Any]:
    found = _read_list(inner, depth)
    _check_hashes(found)
    return found


def _read_dict(inner: list[Any], depth: int) -> dict[Any, Any]:
    pairs = [(_unpack(key, depth), _unpack(each, depth)) for key, each in inner]
    _check_hashes([key for key, _ in pairs])
    return dict(pairs)


def _check_hashes(elements: list[Any]) -> None:
    """Refuse elements whose hashes were made equal: the time for a set of them is their number squared."""
    counts: dict[int, int] = {}
    for each in elements:
        counts[hash(each)] = counts.get(hash(each), 0) + 1
    # Of any hash: as many others with hashes of their own take no time.
    if max(counts.values(), default=0) > _MAX_SAME_HASH:
        raise NotPlainError("too many elements with the same hash")


_READERS: dict[str, Callable[[Any, int], Any]] = {
    "int": _read_int,
    "float": lambda inner, depth: float.fromhex(inner),
    "complex": lambda inner, depth: complex(float.fromhex(inner[0]), float.fromhex(inner[1])),
    "bytes": lambda inner, depth: bytes.fromhex(inner),
    "list": _read_list,
    "tuple": lambda inner, depth: tuple(_read_list(inner, depth)),
    "dict": _read_dict,
    "set": lambda inner, depth: set(_read_hashed(inner, depth)),
    "frozenset": lambda inner, depth: frozenset(_read_hashed(inner, depth)),
}
