r"""Units of quantities, the words after a number. In: the text after it. Out: the unit's name.

A known unit has one name (``km``, ``dollar``); any other words after a number (``12 people``) count as a unit
that agrees with every other. Two known units that differ make two answers differ.
"""

from __future__ import annotations

import re

from rewards.math_spelling import DOLLAR

UNKNOWN_UNIT = "?"
CURRENCIES = {
    DOLLAR: "dollar", "€": "euro", "£": "pound", "¥": "yuan", "₹": "rupee", "₽": "ruble", "₩": "won",
    "¢": "cent", "USD": "dollar", "EUR": "euro", "GBP": "pound", "CNY": "yuan", "RMB": "yuan", "INR": "rupee",
    "CHF": "franc",
    "Rs.": "rupee", "Rs": "rupee", "RM": "ringgit", "JPY": "yuan", "JP¥": "yuan", "CN¥": "yuan",
    **{country + DOLLAR: "dollar" for country in ("US", "A", "C", "HK", "S")},
}  # fmt: skip
"""Signs and codes before or after an amount. The yen and the yuan share their sign, and here their name."""
CURRENCY = "(?:" + "|".join(re.escape(sign) for sign in sorted(CURRENCIES, key=len, reverse=True)) + ")"
_NAMES = """
mm millimeter millimetre | cm centimeter centimetre | dm decimeter decimetre | m meter metre
km kilometer kilometre
in inch inche | ft foot feet | yd yard | mi mile | um micrometer micron | nm nanometer
g gram gm | kg kilogram kilo | mg milligram | lb pound | oz ounce | t ton tonne
s second sec | min minute | h hour hr | d day | wk week | month mo | yr year | ms millisecond
l liter litre | ml milliliter millilitre | gal gallon | qt quart | pt pint | cup
dollar usd buck 美元 | cent ¢ | euro eur | yuan rmb cny yen jpy 元 人民币 | rupee inr | pence penny
° deg degree 度 | rad radian | °c celsius ℃ | °f fahrenheit | k kelvin
c coulomb | mol mole | n newton | j joule | kj kilojoule
w watt | kw kilowatt | v volt | a amp ampere | ohm | hz hertz | pa pascal
acre | hectare ha | mph | kph kmph kmh | bit | byte | kb | mb | gb
"""
_ALIASES = {
    spelling: group.split()[0]
    for line in _NAMES.strip().splitlines()
    for group in line.split("|")
    for spelling in group.split()
}
_NEEDS_SPACE = frozenset(
    ["m", "g", "s", "h", "l", "d", "t", "n", "j", "w", "v", "a", "k", "c", "f", "in", "a"]
)
"""Names that are also variables or words: a unit only after a space or in ``\\text{...}``."""
_VARIABLES = frozenset(["d", "t", "n", "a", "k"])
"""Names that are more often variables: a unit only in ``\\text{...}``."""
_COMPATIBLE = frozenset({frozenset({"°", "°c"}), frozenset({"°", "°f"}), frozenset({"pound", "lb"})})
_NO_UNITS = frozenset(
    [
        "and",
        "or",
        "to",
        "if",
        "when",
        "for",
        "where",
        "mod",
        "modulo",
        "base",
        "times",
        "plus",
        "minus",
        "over",
        "divided",
        "between",
        "than",
        "not",
        "then",
        "so",
        "because",
        "since",
        "but",
        "while",
        "however",
        "squared",
        "cubed",
        "factorial",
        "equals",
        "is",
        "are",
        "was",
        "at",
        "most",
        "least",
        "until",
        "through",
        "thru",
        "am",
        "pm",
        "oclock",
        "noon",
        "midnight",
        "january",
        "february",
        "march",
        "april",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
        "monday",
        "tuesday",
        "wednesday",
        "thursday",
        "friday",
        "saturday",
        "sunday",
        "hundred",
        "thousand",
        "million",
        "billion",
        "trillion",
        "dozen",
        "half",
        "percent",
        "remainder",
        "wait",
        "either",
        "neither",
        "maybe",
        "possibly",
        "actually",
    ]
)
_PHRASE = re.compile(r"[^\W\d_]+(?:[-'.][^\W\d_]+)*\.?(?:[ /]+[^\W\d_]+(?:[-'.][^\W\d_]+)*\.?)*")
_EXPONENT = re.compile(r"\^(?:\{\s*(-?[123])\s*\}|(-?[123]))")
_ORDINAL = re.compile(r"(?:\^\s*\{?\s*)?(?:\\text\{\s*)?(?:st|nd|rd|th)(?:\s*\})*(?![A-Za-z])")
_MAX_CHARS = 48


def units_agree(first: str, second: str) -> bool:
    """False only for two known units that differ: kilometres and metres, dollars and cents."""
    return first == second or {first, second} & {"", UNKNOWN_UNIT} != set() or {first, second} in _COMPATIBLE


def read_unit(tail: str) -> str | None:
    r"""The name of the unit in `tail`, the text after a number: "" for none, `UNKNOWN_UNIT` for any words.

    None if it is no unit, so that the number before it is not the whole answer (``2 or 3``, ``5x``,
    ``3 PM``).
    """
    ordinal = _ORDINAL.match(tail)
    if ordinal:
        tail = tail[ordinal.end() :]
    wrapped = r"\text" in tail
    body = " ".join(re.sub(r"\\text\{([^{}]*)\}", r" \1 ", tail).split()).strip(" .()")
    if not body:
        return ""
    if len(body) > _MAX_CHARS:
        return None
    if body in CURRENCIES:
        return CURRENCIES[body]
    spaced = wrapped or not tail[0].isascii() or tail[0].isspace()
    name = _known(body.lower())
    if name is not None:
        single = body.lower()
        # "5 m" is a length, "5m" is five times m.
        usable = wrapped or (single not in _VARIABLES and (spaced or single not in _NEEDS_SPACE))
        return name if usable else None
    if not spaced or not _PHRASE.fullmatch(_EXPONENT.sub("", body).strip()):
        return None
    words = re.findall(r"[^\W\d_]+", body.lower())
    # "5 or 6" and "3 when x = 2": the number is not the whole answer.
    if any(word in _NO_UNITS for word in words) or re.search(r"\b[ap]\.?m\b", body.lower()):
        return None
    return UNKNOWN_UNIT if wrapped or _looks_like_a_word(words[0]) else None


def name_of(word: str) -> str:
    """The one name of a unit's word (``hours``: ``h``), or the word itself."""
    return _single(word.lower()) or word


def _looks_like_a_word(word: str) -> bool:
    """Not a product of variables: three letters with a vowel, or letters of another script."""
    return not word.isascii() or (len(word) >= 3 and re.search("[aeiouy]", word) is not None)


def _known(body: str) -> str | None:
    """Name of ``square cm``, ``cm^{2}``, ``km/h``, ``miles per hour``; None for what is not in the table."""
    parts = re.split(r"\s*/\s*|\s+per\s+", body)
    names = [_powered(part) for part in parts]
    if any(name is None for name in names):
        return None
    joined = "/".join(name for name in names if name)
    return {"mph": "mi/h", "kph": "km/h"}.get(joined, joined)


def _powered(part: str) -> str | None:
    exponent = _EXPONENT.search(part)
    power = (exponent[1] or exponent[2]) if exponent else ""
    part = _EXPONENT.sub("", part).strip()
    for pattern, raised in (
        (r"^(?:square|sq\.?)\s+|\s+squared$", "2"),
        (r"^(?:cubic|cu\.?)\s+|\s+cubed$", "3"),
    ):
        shorter = re.sub(pattern, "", part)
        if shorter != part:
            part, power = shorter, raised
    name = _single(part.replace("degrees ", "°").replace("degree ", "°").replace("° ", "°"))
    return None if name is None else name + (f"^{power}" if power not in ("", "1") else "")


def _single(word: str) -> str | None:
    word = word.rstrip(".")
    return _ALIASES.get(word) or (_ALIASES.get(word[:-1]) if len(word) > 2 and word.endswith("s") else None)
