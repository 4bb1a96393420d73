r"""Numbers as answers write them. In: text in the spelling of `rewards.math_spelling`. Out: an exact value.

Thousands separators, decimals, e-notation, powers of ten, fractions, mixed numbers and repeating decimals,
with a sign, a currency, a percent sign, a scale (``million``) and a unit around them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rewards.math_units import CURRENCIES, CURRENCY, read_unit

_MAX_CHARS = 1000
_MAX_EXPONENT = 5000
"""A power of ten beyond it is not expanded; it is compared as text."""
_UNSIGNED = r"(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|[1-9]\d{0,2}(?: \d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_UNSIGNED}(?:\.\d+)?|\.\d+)"
_POWER = r"(?:\{\s*([+-]?\s*\d{1,6})\s*\}|\(\s*([+-]?\d{1,6})\s*\)|([+-]?\d{1,6}))"
_SIMPLE_FRACTION = r"(?:(\d+)\s*/\s*(\d+)|\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|\\frac\s*(\d)\s*(\d))"
_MIXED = re.compile(rf"(\d+|\d{{1,3}}(?:,\d{{3}})+)(\s+and\s+|\s*(?=\\frac)|\s+){_SIMPLE_FRACTION}(?![\d/.])")
_FRACTION = re.compile(
    rf"(?:({_DECIMAL})\s*/\s*({_DECIMAL})|\\frac\s*\{{\s*([+-]?\s*{_DECIMAL})\s*\}}\s*\{{\s*([+-]?\s*{_DECIMAL})\s*\}}"
    r"|\\frac\s*(\d)\s*(\d))(?![\d/]|\.\d)"
)
_REPEATING = re.compile(
    r"(\d*)\.(\d*)(?:\\overline\s*\{\s*(\d+)\s*\}|\\(?:bar|dot)\s*\{\s*(\d+)\s*\}|\((\d+)\))"
)
_SCIENTIFIC = re.compile(
    rf"({_DECIMAL})(?:[eE]([+-]?\d{{1,6}})(?![\d.])|\s*(?:\\times|\\cdot|\*|[xX])\s*10\s*\^\s*{_POWER})"
)
_PLAIN = re.compile(_DECIMAL)
_PERCENT = re.compile(r"\s*(?:%|(?:\\text\{\s*)?(?:percent|per cent|pct)(?![a-z])\s*\}?)", re.IGNORECASE)
_SCALES = {
    "dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
_SCALE = re.compile(rf"\s*(?:\\text\{{\s*)?({'|'.join(_SCALES)})(?![a-z])\s*\}}?", re.I | re.A)
"""ASCII: without it a dotless i is an i in any case, and then no key of `_SCALES`."""
_CURRENCY = re.compile(rf"{CURRENCY}\s*")


@dataclass(frozen=True, slots=True)
class Quantity:
    """An exact value; `decimals` after the point (negative before it), None for integers and fractions.

    A percentage holds the number before its sign. `unit` is "" or a name of `rewards.math_units`.
    """

    value: Fraction
    decimals: int | None = None
    percent: bool = False
    unit: str = ""


def read_quantity(text: str) -> Quantity | None:
    """The value of a `text` that is one number with sign, currency and unit; None for anything else."""
    if len(text) > _MAX_CHARS:
        return None
    text = _without_parentheses(text)
    negative, rest = _sign(text)
    currency = _CURRENCY.match(rest)
    if currency:
        rest = rest[currency.end() :]
        # "-$5" and "$-5", but not "-$-5".
        if not negative:
            negative, rest = _sign(rest)
    head = _read_head(rest)
    if head is None:
        return None
    value, decimals, rest = head
    percent = _PERCENT.match(rest)
    scale = None if percent else _SCALE.match(rest)
    rest = rest[(percent or scale).end() :] if percent or scale else rest  # type: ignore[union-attr]
    unit = read_unit(rest)
    if unit is None:
        return None
    if scale:
        factor = _SCALES[scale[1].lower()]
        value, decimals = value * factor, None
    unit = CURRENCIES[currency[0].strip()] if currency else unit
    return Quantity(-value if negative else value, decimals, percent is not None, unit)


def agree(gold: Quantity, answer: Quantity) -> bool:
    """Whether two numbers are equal: see `close` for decimals, `_percentages` for percent signs."""
    if gold.percent != answer.percent:
        return _percentages(gold, answer)
    return close(gold.value, answer.value, gold.decimals, answer.decimals)


def close(
    first: Fraction, second: Fraction, first_decimals: int | None = None, second_decimals: int | None = None
) -> bool:
    """Equal, or one is a decimal to which the other rounds or can be cut off.

    Such a decimal has at least six digits after the point, of which five or more count from the first that is
    not 0: 0.333333 is 1/3, but 0.33 is not, and 0.000001 is not 0.0000012. Apart from that, floats may differ
    in their last digits: by 1e-13 of their size.
    """
    if first == second:
        return True
    if first_decimals is None and second_decimals is None:
        return False
    difference = abs(first - second)
    if difference <= max(abs(first), abs(second)) * Fraction(1, 10**13):
        return True
    return _rounds_to(second, first, first_decimals) or _rounds_to(first, second, second_decimals)


def _rounds_to(value: Fraction, decimal: Fraction, decimals: int | None) -> bool:
    """Whether `value`, rounded or cut off after `decimals` digits, is `decimal`."""
    difference = abs(value - decimal)
    if decimals is None or decimals < 6 or abs(decimal) * 10**decimals < 10**4:
        return False
    unit = Fraction(1, 10**decimals)
    return difference * 2 <= unit or (difference < unit and abs(decimal) < abs(value))


def _percentages(gold: Quantity, answer: Quantity) -> bool:
    """One of the two has a percent sign: 50 % is 0.5, and is 50 where the bare number is above 1 or whole.

    "What percentage" is answered with and without the sign; 0.5 for 0.5 % could as well mean a half.
    """
    marked, bare = (gold, answer) if gold.percent else (answer, gold)
    shift = None if marked.decimals is None else marked.decimals + 2
    if close(marked.value / 100, bare.value, shift, bare.decimals):
        return True
    whole = bare.value.denominator == 1 or abs(bare.value) > 1
    return whole and close(marked.value, bare.value, marked.decimals, bare.decimals)


def _sign(text: str) -> tuple[bool, str]:
    stripped = text.lstrip()
    if stripped[:1] in ("-", "+"):
        return stripped[0] == "-", stripped[1:].lstrip()
    return False, stripped


def _without_parentheses(text: str) -> str:
    inner = re.fullmatch(r"[({]([^(){},]*)[)}]", text.strip())
    return inner[1] if inner else text


def _read_head(text: str) -> tuple[Fraction, int | None, str] | None:
    """The longest number `text` begins with, its decimals, and the rest."""
    mixed = _MIXED.match(text)
    if mixed:
        return _read_mixed(mixed, text)
    repeating = _REPEATING.match(text)
    if repeating:
        return _read_repeating(repeating), None, text[repeating.end() :]
    fraction = _FRACTION.match(text)
    if fraction:
        numerator, denominator = (_exact(group) for group in fraction.groups() if group)
        return None if denominator == 0 else (numerator / denominator, None, text[fraction.end() :])
    found = _SCIENTIFIC.match(text)
    if found:
        exponent = int(next(group for group in found.groups()[1:] if group).replace(" ", ""))
        if abs(exponent) > _MAX_EXPONENT:
            return None
        value = _exact(found[1]) * Fraction(10) ** exponent
        decimals = len(found[1].partition(".")[2]) - exponent
        # 3e4 is exact, 3.14e4 is a rounded number.
        exact_power = value.denominator == 1 and "." not in found[1]
        return value, None if exact_power else decimals, text[found.end() :]
    found = _PLAIN.match(text)
    if not found:
        return None
    places = len(found[0].partition(".")[2])
    return _exact(found[0]), places or None, text[found.end() :]


def _read_mixed(mixed: re.Match[str], text: str) -> tuple[Fraction, int | None, str] | None:
    r"""``2 1/3`` and ``2\frac{1}{3}``; ``4 10/3`` is no number."""
    numerator, denominator = (int(group) for group in mixed.groups()[2:] if group)
    if not 0 < numerator < denominator:
        return None
    return _exact(mixed[1]) + Fraction(numerator, denominator), None, text[mixed.end() :]


def _read_repeating(found: re.Match[str]) -> Fraction:
    whole, fixed = found[1] or "0", found[2]
    cycle = found[3] or found[4] or found[5]
    places, period = 10 ** len(fixed), 10 ** len(cycle) - 1
    return int(whole) + Fraction(int(fixed or 0), places) + Fraction(int(cycle), places * period)


def _exact(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").replace(" ", ""))
