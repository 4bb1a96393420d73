r"""Read an answer as a `Value`: a quantity, a time, a list, words. In: the text of an answer.

Answers that SymPy would misread are recognised here, each as a whole: a time is not a division, a date not a
subtraction, a word not a product of letters, a base not an index. Everything else is an `Expression`, which
math-verify reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from rewards.math_numbers import Quantity, read_quantity
from rewards.math_spelling import DOLLAR, plain, split_outside, strip_frame
from rewards.math_units import UNKNOWN_UNIT, name_of, read_unit

_MAX_CHARS = 2000
_MAX_DEPTH = 6
_MAX_ITEMS = 64


@dataclass(frozen=True, slots=True)
class Value:
    """An answer as read; `source` is its text in the spelling of `rewards.math_spelling`."""

    source: str


@dataclass(frozen=True, slots=True)
class Number(Value):
    """A quantity."""

    quantity: Quantity


@dataclass(frozen=True, slots=True)
class Words(Value):
    """Text, compared word by word: a name, a choice's letter, ``2 hours 30 minutes``, ``A1``."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Label(Value):
    """A choice with its text: ``C) 12``."""

    letter: str
    content: Value


@dataclass(frozen=True, slots=True)
class Parts(Value):
    """A value whose parts mean nothing alone: `kind` is clock, date, based, range or ratio."""

    kind: str
    parts: tuple[Value | int | str | None, ...]


@dataclass(frozen=True, slots=True)
class Named(Value):
    """A value with its name: ``x = 5``.

    `name` is "" if it is not a plain symbol (``f(2) = 5``), "=" for an equation of several (``a + b = 5``).
    """

    name: str
    content: Value


@dataclass(frozen=True, slots=True)
class Listing(Value):
    """Several values; `brackets` is "" for a bare list, "{}" for a set, or the two brackets: "()", "[)"."""

    brackets: str
    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Table(Value):
    """Rows of cells: a matrix or vector, or (`ordered` false) the cases of a piecewise answer."""

    ordered: bool
    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True, slots=True)
class Expression(Value):
    """Anything else, as TeX without a unit at its end."""

    latex: str
    unit: str = ""


def read(text: str) -> Value:
    """The value of `text`, in any spelling."""
    # The readers backtrack, so their time on a long text has no useful bound.
    if len(text) > _MAX_CHARS:
        return Expression(text, text)  # equal only as written
    return read_plain(plain(text), 0)


def read_plain(text: str, depth: int) -> Value:
    """`read` of text that is in plain spelling, `depth` lists deep."""
    if depth < _MAX_DEPTH:
        for reader in _READERS:
            value = reader(text, depth)
            if value is not None:
                return value
    return _expression(text)


_CHOICE = re.compile(r"\(?([A-Za-z])\)?[).:]?")
_LABEL = re.compile(r"(?:\\text\{)?(?:\(([A-Ja-j])\)|([A-J])(?:\)|[.:](?=\s)))\}?[.:]?\s*(\S.*)")


def _choice(text: str, depth: int) -> Value | None:
    r"""``B``, ``(B)``, ``B)`` and ``option B``: a letter; ``C) 12``: a letter and its value."""
    text = re.sub(
        r"^(?:the\s+)?(?:correct\s+)?(?:option|choice|answer)\s+(?=\(?[A-Za-z]\b)", "", text, flags=re.I
    )
    letter = _CHOICE.fullmatch(text)
    if letter:
        return Words(text, (letter[1],))
    label = _LABEL.fullmatch(text)
    if (label and not re.match(r"[+*/^=_({\\]", label[3])) or (
        label and re.match(r"\\(?:text|frac|sqrt|pi)", label[3])
    ):
        return Label(text, (label[1] or label[2]).upper(), read_plain(strip_frame(label[3]), depth + 1))
    return None


_BASED = re.compile(
    r"\(?(-?[0-9][0-9A-F]*(?:\.[0-9A-F]+)?|[A-F][0-9A-F]*[0-9][0-9A-F]*)\)?_\s*\{?\s*\(?(\d{1,2}|\\text\{[a-z]+\}|[a-z]{3,})\)?\s*\}?"
)
_BASED_IN_WORDS = re.compile(
    r"(-?[0-9][0-9A-F]*)\s*(?:\\text\{)?\s*\(?(?:in )?base[- ](\d{1,2}|[a-z]+)\)?\s*\}?"
)
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}


def _based(text: str, depth: int) -> Value | None:
    """``101_2``: digits and base; in base ten a number."""
    found = _BASED.fullmatch(text) or _BASED_IN_WORDS.fullmatch(text)
    if not found:
        return None
    name = re.sub(r"\\text|[{}]", "", found[2])
    base = int(name) if name.isdigit() else _BASES.get(name, 0)
    digits = found[1].lstrip("-").lstrip("0") or "0"
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits.replace(".", "")):
        return None
    sign = "-" if found[1].startswith("-") else ""
    # 101_{10} is the number 101.
    if base == 10:
        return read_plain(sign + digits, depth + 1)
    return Parts(text, "based", (sign + digits, base))


_CLOCK = re.compile(r"(\d{1,2})(?::([0-5]\d))?(?::([0-5]\d))?\s*(?:([ap])\.?\s?m\b\.?|o'clock)?", re.I)


def _clock(text: str, depth: int) -> Value | None:
    """``3:30``, ``3:30 p.m.`` and ``3 PM``, on a clock of 12 hours or 24."""
    found = _CLOCK.fullmatch(_unwrapped(text))
    if not found or (found[2] is None and found[4] is None and "clock" not in text) or int(found[1]) > 24:
        return None
    hour, half = int(found[1]), (found[4] or "").lower()
    if half and not 1 <= hour <= 12:
        return None
    if half:
        # 12 am is hour 0, 12 pm hour 12.
        hour = hour % 12 + 12 * (half == "p")
    return Parts(text, "clock", (hour, int(found[2] or 0), int(found[3] or 0), half or None))


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    r"(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY = r"(\d{1,2})(?:\s*(?:st|nd|rd|th))?"
_WEEKDAY = r"(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day,?\s+(?:the\s+)?)?"
_DATES = tuple(
    (re.compile(_WEEKDAY + pattern, re.I), order)
    for pattern, order in (
        (rf"{_MONTH}\s+(?:the\s+)?{_DAY}(?:,?\s+(\d{{4}}))?", "mdy"),
        (rf"(?:the\s+)?{_DAY}\s+(?:of\s+)?{_MONTH}(?:,?\s+(\d{{4}}))?", "dmy"),
        (r"(\d{4})-(\d{1,2})-(\d{1,2})|(\d{4})/(\d{1,2})/(\d{1,2})", "ymd"),
        (r"(\d{4})\s*年\s*(\d{1,2})\s*月\s*(\d{1,2})\s*日", "ymd"),
        (r"(\d{1,2})\s*月\s*(\d{1,2})\s*日", "md"),
    )
)
_NUMBERED_DATE = re.compile(r"(\d{1,2})([/.-])(\d{1,2})\2(\d{4}|\d{2})")


def _date(text: str, depth: int) -> Value | None:
    """Year, month and day, of which the year may be absent; ``3/4/2020`` stays in its order."""
    body = _unwrapped(text)
    numbered = _NUMBERED_DATE.fullmatch(body)
    # 3/4/2020 is 4 March or 3 April: the order is kept and compared as written.
    if numbered:
        return Parts(text, "date", ("numbered", int(numbered[1]), int(numbered[3]), int(numbered[4])))
    for pattern, order in _DATES:
        found = pattern.fullmatch(body)
        if found:
            groups = [group for group in found.groups() if group is not None]
            fields = dict(zip(order, groups, strict=False))
            month = fields["m"]
            number = int(month) if month.isdigit() else _MONTHS.index(month[:3].lower()) + 1
            year = int(fields["y"]) if "y" in fields else None
            return Parts(text, "date", (year, number, int(fields["d"]), None))
    return None


_RANGE = re.compile(
    r"(?:from\s+|between\s+)?(\S.*?)(?:\s+(?:to|through|thru)\s+|\s*-\s*|\s+and\s+)(\S.*)", re.I
)


def _range(text: str, depth: int) -> Value | None:
    """``3-5``, ``3 to 5``, ``between 3 and 5``, with the smaller number first; ``7-2`` is a subtraction."""
    body = _unwrapped(text)
    found = _RANGE.fullmatch(body)
    if not found or len(body) > 80:
        return None
    if re.search(r"\sand\s", body) and not body.lower().startswith("between"):
        return None
    low, high = read_quantity(found[1]), read_quantity(found[2])
    hyphen = not re.search(r"\s(?:to|through|thru|and)\s", body, re.I)
    if (
        low is None
        or high is None
        or (hyphen and (low.value >= high.value or low.value < 0 or high.value < 0))
    ):
        return None
    if hyphen and re.search(r"[\\/^]", body):
        return None
    return Parts(text, "range", (Number(found[1], low), Number(found[2], high)))


def _ratio(text: str, depth: int) -> Value | None:
    """``3:4``, ``1:2:3``, and of expressions; what looks like a time has been read as one."""
    pieces = split_outside(text, re.compile(r"\s*:\s*"))
    if not 2 <= len(pieces) <= 8 or not all(re.search(r"[\da-z\\]", piece) for piece in pieces):
        return None
    if any(re.search(r"[,;=<>]|[A-Za-z]{2}", re.sub(r"\\[a-z]+", "", piece)) for piece in pieces):
        return None
    return Parts(text, "ratio", tuple(read_plain(piece, depth + 1) for piece in pieces))


def _number(text: str, depth: int) -> Value | None:
    quantity = read_quantity(text)
    return None if quantity is None else Number(text, quantity)


_EQUALS = re.compile(r"(?<![<>!:\\])=(?!=)")
_MEMBER = re.compile(r"(\\?[A-Za-z]+(?:_\{?\w+\}?)?)\s*\\in(?![a-zA-Z])\s*(.*)")
_SYMBOL = re.compile(
    r"(?:\\?[A-Za-z]|\\[A-Za-z]+|\\text\{[^{}]*\}|[A-Za-z]{2,}(?: [A-Za-z]+)*)(?:_\{?\w+\}?)?'?"
)
_FUNCTION = re.compile(
    r"\\?[A-Za-z]+'*\s*\(.*\)|\|.*\||\\(?:angle|overline|triangle|text|sin|cos|tan|log|ln)\b.*"
)


def _named(text: str, depth: int) -> Value | None:
    """``x = 5``, ``f(2) = 5``, ``2 + 3 = 5``, ``a + b = 5``; but ``2x = 5`` is an equation."""
    if len(split_outside(text, _COMMA)) > 1:
        return None
    member = _MEMBER.fullmatch(text)
    if member:
        return Named(text, member[1], read_plain(strip_frame(member[2]), depth + 1))
    sides = split_outside(text, _EQUALS)
    if len(sides) < 2 or not all(sides) or re.search(r"[<>]|\\(?:le|ge|neq)\b", text):
        return None
    left, right = sides[0], strip_frame(sides[-1])
    if len(split_outside("=".join(sides[1:]), _AND)) > 1:
        return None  # x = 1 or x = 2
    name = left[:12] if _SYMBOL.fullmatch(left) else _name_of_term(left, right)
    return None if name is None else Named(text, name, read_plain(right, depth + 1))


def _name_of_term(left: str, right: str) -> str | None:
    """The `Named.name` of an equation; None if it is a condition on its left side: ``2x = 5``."""
    has_letters = re.compile(r"[A-Za-z]")
    commands = re.compile(r"\\[A-Za-z]+")
    if not has_letters.search(commands.sub("", left)):
        return None if has_letters.search(commands.sub("", right)) else ""  # 2 + 3 = 5
    if re.fullmatch(r"\(\s*[a-z](?:\s*,\s*[a-z])+\s*\)", left):
        return ""  # (x, y) = ...
    if ":" in left and ":" in right:
        return ""  # a : b = 2 : 3
    if has_letters.search(commands.sub("", re.sub(r"\\text\{[^{}]*\}", "", right))):
        return None
    if _FUNCTION.fullmatch(left):
        return ""
    bare = commands.sub("", re.sub(r"[\^_](?:\{[^{}]*\}|\w)", "", left))
    several = len(set(re.findall("[A-Za-z]", bare))) > 1 and not re.search(r"\d", bare)
    if not several:
        return None  # 2x = 5
    return "=" if re.search(r"[+-]", bare) else ""


_COMMA = re.compile(r"\s*(?:,(?!\d{3}(?!\d))|(?<!\d),|;)\s*")
_EVERY_COMMA = re.compile(r"\s*[,;]\s*")
_AND = re.compile(
    r"\s*(?:,|;)?\s*(?:\\text\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|\\(?:lor|land|vee|wedge)(?![a-zA-Z])|[和或])\s*"
)
_BRACKETED = re.compile(r"(\(|\[|\\?\{|\\langle)(.*?)(\)|\]|\\?\}|\\rangle)", re.DOTALL)


def _listing(text: str, depth: int) -> Value | None:
    """Items between brackets or bare, separated by commas, semicolons, ``and`` or ``or``."""
    found = _BRACKETED.fullmatch(text)
    if found and len(split_outside(text, re.compile(r"(?<=[)\]}])\s*(?=.)"))) == 1:
        items = split_outside(found[2], _EVERY_COMMA)
        brackets = (found[1] + found[3]).replace("\\langle", "(").replace("\\rangle", ")").replace("\\", "")
        if _balanced(found[2]) and (len(items) > 1 or brackets in ("{}", "[]")) and len(items) <= _MAX_ITEMS:
            return Listing(text, brackets, tuple(read_plain(item, depth + 1) for item in items if item))
    sides = _plus_and_minus(text)
    pieces = sides or [part for piece in split_outside(text, _AND) for part in split_outside(piece, _COMMA)]
    pieces = [strip_frame(piece) for piece in pieces if piece]
    if not 2 <= len(pieces) <= _MAX_ITEMS:
        return None
    values = tuple(read_plain(piece, depth + 1) for piece in pieces)
    return None if _is_measured_in_two(values) else Listing(text, "", values)


def _is_measured_in_two(items: tuple[Value, ...]) -> bool:
    """``2 hours and 30 minutes``: one quantity."""
    units = [item.quantity.unit for item in items if isinstance(item, Number)]
    return len(units) == len(items) == len(set(units)) and not {"", UNKNOWN_UNIT} & set(units)


def _balanced(text: str) -> bool:
    """Whether no bracket closes before it opens: not so between the brackets of ``(1,2) \\cup (3,4)``."""
    depth = 0
    for sign in text:
        depth += (sign in "([") - (sign in ")]")
        if depth < 0:
            return False
    return depth == 0


def _plus_and_minus(text: str) -> list[str]:
    r"""``a \pm b`` as its two values."""
    if not re.search(r"\\pm(?![a-zA-Z])", text) or split_outside(text, _COMMA) != [text.strip()]:
        return []
    return [
        re.sub(r"\\pm(?![a-zA-Z])", upper, re.sub(r"\\mp(?![a-zA-Z])", lower, text)).strip().lstrip("+")
        for upper, lower in (("+", "-"), ("-", "+"))
    ]


_TABLE = re.compile(
    r"[(\[]?\s*\\begin\{((?:cases|[pb]?matrix|array))\}(?:\{[^{}]*\})?(.*)\\end\{\1\}\s*[)\]]?(?:\\text\{[^{}]*\})?",
    re.DOTALL,
)


def _table(text: str, depth: int) -> Value | None:
    """The rows of a matrix or of a piecewise answer."""
    text = re.sub(r"^\\?[A-Za-z](?:\([a-z]\))?\s*=\s*\\\{?(?=\\begin\{cases\})", "", text)
    found = _TABLE.fullmatch(text)
    if not found or r"\begin" in found[2]:
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", found[2]) if row.strip()]
    cells = tuple(
        tuple(read_plain(_cell(cell), depth + 1) for cell in row.split("&")) for row in rows[:_MAX_ITEMS]
    )
    return Table(text, found[1] != "cases", cells)


def _cell(text: str) -> str:
    r"""A cell without ``if`` and ``for``, commas and spaces."""
    text = re.sub(r"\\text\{\s*(?:,?\s*(?:if|for|when|where)\s*)\}|^\s*(?:if|for|when)(?![a-z])", " ", text)
    return strip_frame(text)


_TERM = re.compile(r"[+-]?\d+(?:\.\d+)?\s*[a-z]{1,4}|(?=.*[a-z])(?:\d+[a-z]?|[a-z])(?:-(?:\d+[a-z]?|[a-z]))+")
_WORD = re.compile(r"[^\W_]+(?:\.\d+)?")
_ARTICLES = frozenset({"a", "an", "the"})


def _words(text: str, depth: int) -> Value | None:
    r"""Letters and digits without an operator; numbers side by side are no product."""
    body = _unwrapped(text).strip(DOLLAR + " ")
    side_by_side = re.search(r"(?<![\w}])\d[\d.,]*\s+\d", body) or re.fullmatch(r"\d+(?:-\d+){2,}", body)
    if re.search(r"[=<>^_+*/|{}\[\]\\()]|(?:^|\s)-|-\s", body) and not (side_by_side and "\\" not in body):
        return None
    if _TERM.fullmatch(body) or (not side_by_side and not re.search(r"[^\W\d_]", body)):
        return None
    tokens = list(_WORD.findall(body))
    if len(tokens) > 1:
        # "a circle" is "circle", but the answer "a" is a letter.
        tokens = [token for token in tokens if token.lower() not in _ARTICLES] or tokens
    if len(tokens) == 1:
        return Words(text, (tokens[0] if len(tokens[0]) == 1 else tokens[0].casefold(),))
    if any(token[0].isdigit() for token in tokens):
        tokens = [name_of(token) for token in tokens if token.lower() != "and"]
    return Words(text, tuple(token.casefold() for token in tokens))


def _unwrapped(text: str) -> str:
    r"""``\text{...}`` as its content."""
    return " ".join(re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).split()) if "\\text" in text else text


_UNIT_AT_END = re.compile(
    r"(.*[\w}\])!°])(\s*\\text\{[^{}]*\}(?:\s*/\s*\\text\{[^{}]*\})?(?:\^\{?\d\}?)?|°)", re.DOTALL
)


def _expression(text: str) -> Expression:
    """TeX for math-verify, without a currency before it and a unit after it."""
    latex, unit = text.strip(DOLLAR + " "), ""
    ended = _UNIT_AT_END.fullmatch(latex)
    if ended and ended[1].strip():
        name = read_unit(" " + ended[2])
        if name is not None:
            latex, unit = ended[1].strip(), name
    return Expression(text, latex.replace("°", r"^\circ"), unit)


_READERS: tuple[Callable[[str, int], Value | None], ...] = (
    _choice, _table, _based, _clock, _date, _number, _range, _ratio, _named, _listing, _words,
)  # fmt: skip
