"""Whether a result is the expected one. In: what came out of the sandbox, and what was expected. Out: a bool.

Values come from `rewards.code.inside.wire`, so they are of plain types: comparing them runs no code of the
program.
"""

from __future__ import annotations

import math
from typing import Any

_MAX_NUMBER_CHARS = 400


def same_output(got: str, expected: str, tolerance: float) -> bool:
    """Whether two texts are equal line by line, without blanks around lines and blank lines at the end.

    With a `tolerance`, words that are finite numbers may differ by it, absolute or relative.
    """
    ours, theirs = _lines(got), _lines(expected)
    # Most outputs are equal as text, and need no numbers read.
    if ours == theirs:
        return True
    if tolerance <= 0 or len(ours) != len(theirs):
        return False
    return all(_same_words(a.split(), b.split(), tolerance) for a, b in zip(ours, theirs, strict=True))


def same_value(got: Any, expected: Any, *, loose: bool, tolerance: float) -> bool:
    """Whether a result equals `expected` as ``==`` has it.

    `loose`: a tuple equals a list, and a list of one `expected` may stand for its element (APPS has both).
    Floats may differ by `tolerance`.
    """
    if _same(got, expected, loose, tolerance):
        return True
    wrapped = loose and isinstance(expected, list) and len(expected) == 1
    return wrapped and _same(got, expected[0], loose, tolerance)


def _same(got: Any, expected: Any, loose: bool, tolerance: float) -> bool:
    if isinstance(expected, (list, tuple)) and isinstance(got, (list, tuple)):
        alike = loose or type(got) is type(expected)
        return (
            alike
            and len(got) == len(expected)
            and all(_same(a, b, loose, tolerance) for a, b in zip(got, expected, strict=True))
        )
    if isinstance(expected, dict) and isinstance(got, dict):
        if loose:  # JSON has only text as keys
            got, expected = ({_key(key): each[key] for key in each} for each in (got, expected))
        return got.keys() == expected.keys() and all(
            _same(got[key], value, loose, tolerance) for key, value in expected.items()
        )
    if tolerance > 0 and _is_number(got) and _is_number(expected):
        return _close(float(got), float(expected), tolerance)
    return bool(got == expected)


def _key(key: Any) -> Any:
    is_small = type(key) is int and abs(key) < 1 << 64  # Python refuses to write very long integers
    return str(key) if is_small else key


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 1 << 1000)


def _close(a: float, b: float, tolerance: float) -> bool:
    return a == b or math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_words(ours: list[str], theirs: list[str], tolerance: float) -> bool:
    return len(ours) == len(theirs) and all(
        a == b or _same_numbers(a, b, tolerance) for a, b in zip(ours, theirs, strict=True)
    )


def _same_numbers(a: str, b: str, tolerance: float) -> bool:
    if max(len(a), len(b)) > _MAX_NUMBER_CHARS:
        return False
    try:
        x, y = float(a), float(b)
    except ValueError:
        return False
    return math.isfinite(x) and math.isfinite(y) and _close(x, y, tolerance)
