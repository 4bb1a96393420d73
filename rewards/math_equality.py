r"""Whether two answers are the same. In: two Values. Out: a bool.

Both must be of one kind, as a whole: no part of a time, a date, a range or a mixed number equals a number.
Lists are compared item by item, quantities exactly; math-verify compares everything else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import TypeVar

from rewards.math_engine import constant_value, expressions_equal
from rewards.math_numbers import Quantity, agree, close
from rewards.math_units import UNKNOWN_UNIT, units_agree
from rewards.math_values import Expression, Label, Listing, Named, Number, Parts, Table, Value, Words

_NUMBER_WORDS = {
    word: Fraction(number)
    for number, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
            "twenty",
        ]
    )
}
_Item = TypeVar("_Item")
_SYMBOL = re.compile(r"(?:\\(?!text)[A-Za-z]+|[A-Za-z])(?:_\{?\w+\}?)?'?")
"""A letter, Latin or a TeX command, with an index: x_1 and x_2 differ, while "total" and "sum" may not."""
_SET = re.compile(r"[<>=]|\\(?:le|ge|neq|cup|cap|mathbb|setminus)(?![a-zA-Z])")
_RELATION = re.compile(r"[<>=]|\\(?:le|ge|neq)(?![a-zA-Z])")


def equal(gold: Value, answer: Value) -> bool:
    """Whether `answer` is right where `gold` is. Not symmetric: a lone value may leave out gold's ``x =``."""
    if _same_text(gold, answer):
        return True
    if isinstance(gold, Label) or isinstance(answer, Label):
        return _labels_equal(gold, answer)
    if isinstance(gold, Named) or isinstance(answer, Named):
        return _named_equal(gold, answer)
    if isinstance(gold, Listing) or isinstance(answer, Listing):
        return _listings_equal(gold, answer)
    if isinstance(gold, Parts) or isinstance(answer, Parts):
        return _parts_equal(gold, answer)
    if isinstance(gold, Table) and isinstance(answer, Table):
        return gold.ordered == answer.ordered and _items_equal(
            gold.rows, answer.rows, _rows_equal, gold.ordered
        )
    if isinstance(gold, Words) or isinstance(answer, Words):
        return _words_equal(gold, answer)
    if isinstance(gold, Table) and gold.ordered and isinstance(answer, Expression):
        return expressions_equal(gold.source, answer.latex)  # a sum or product of matrices
    return _mathematics_equal(gold, answer)


def _same_text(gold: Value, answer: Value) -> bool:
    """Equal apart from spaces, unless a space separates numbers or the items of a list."""
    if gold.source == answer.source:
        return bool(gold.source)
    if type(gold) is not type(answer):
        first, second = (re.sub(r"(?<=\d)\s+(?=[A-Za-z\\])", "", value.source) for value in (gold, answer))
        return first == second
    # "1 2" and "12" are different numbers, "1, 2" and "12" different lists.
    first, second = ("".join(value.source.split()) for value in (gold, answer))
    return first == second and not re.search(r"\d\s+\d|,", gold.source + "|" + answer.source)


def _labels_equal(gold: Value, answer: Value) -> bool:
    """A choice by its letter, its value or both; both must then be right."""
    if isinstance(gold, Label) and isinstance(answer, Label):
        return gold.letter == answer.letter and equal(gold.content, answer.content)
    label, other, gold_is_label = (gold, answer, True) if isinstance(gold, Label) else (answer, gold, False)
    assert isinstance(label, Label)
    if isinstance(other, Words) and _is_letter(other):
        letter = other.words[0]
        # The value of the choice is a letter itself, so a letter alone could mean either.
        if isinstance(label.content, Label) or _is_letter(label.content):
            return False  # A) B) C)
        return label.letter == (letter.upper() if gold_is_label else letter)
    return equal(label.content, other) if gold_is_label else equal(other, label.content)


def _is_letter(value: Value) -> bool:
    return isinstance(value, Words) and len(value.words) == 1 and len(value.words[0]) == 1


def _named_equal(gold: Value, answer: Value) -> bool:
    if isinstance(gold, Named) and isinstance(answer, Named):
        if _bare(gold.name) == _bare(answer.name) and (
            gold.name not in ("", "=") or _left(gold) == _left(answer)
        ):
            return equal(gold.content, answer.content)
        symbols = [_SYMBOL.fullmatch(name) for name in (gold.name, answer.name)]
        if (len(gold.name) > 1 or len(answer.name) > 1) and not all(symbols):
            return equal(gold.content, answer.content)
        # Two different symbols name different things, whatever their values are.
        named = gold.name not in ("", "=") and answer.name not in ("", "=")
        return not named and expressions_equal(gold.source, answer.source)
    if isinstance(gold, Named):
        if isinstance(answer, Expression) and _RELATION.search(answer.latex):
            return expressions_equal(gold.source, answer.latex)
        return gold.name != "=" and equal(gold.content, answer)
    assert isinstance(answer, Named)
    if isinstance(gold, Expression) and _RELATION.search(gold.latex):
        return expressions_equal(gold.latex, answer.source)
    return equal(gold, answer.content)


def _bare(name: str) -> str:
    """A name without the braces of its index: ``x_1`` and ``x_{1}``."""
    return re.sub(r"[{}\s]", "", name)


def _left(named: Named) -> str:
    return "".join(named.source.partition("=")[0].split())


def _listings_equal(gold: Value, answer: Value) -> bool:
    """Bare lists and sets in any order, items in ( ) or [ ] in their order; ``1, 2`` may mean ``(1, 2)``.

    Three or more bare words keep their order too: they are more often a ranking than a set.
    """
    if isinstance(gold, Listing) and isinstance(answer, Listing):
        bare = {"", "{}"}
        if gold.brackets in bare and answer.brackets in bare:
            # Two words may be "yes, no" or a pair of names; three are mostly an order.
            words = all(isinstance(item, Words) for item in gold.items) and len(gold.items) > 2
            return _items_equal(
                gold.items, answer.items, equal, words and "{}" not in (gold.brackets, answer.brackets)
            )
        if gold.brackets == answer.brackets or {gold.brackets, answer.brackets} == {"", "()"}:
            return _items_equal(gold.items, answer.items, equal, True)
        return False
    listing, other = (gold, answer) if isinstance(gold, Listing) else (answer, gold)
    assert isinstance(listing, Listing)
    if listing.brackets in ("{}", "[]") and len(listing.items) == 1 and "emptyset" not in listing.source:
        item = listing.items[0]
        return equal(item, other) if listing is gold else equal(other, item)
    if isinstance(other, Words):
        return _letters_in_a_row(listing, other)
    if isinstance(other, Number):
        return _with_decimal_comma(listing, other)
    if isinstance(other, Expression) and _SET.search(other.latex):
        return expressions_equal(gold.source, answer.source)
    return False


def _with_decimal_comma(listing: Listing, other: Number) -> bool:
    """``3,5`` beside the decimal 3.5; on its own it is two numbers."""
    if other.quantity.decimals is None or not re.fullmatch(r"-?\d+,\d+", listing.source):
        return False
    digits = listing.source.replace(",", ".")
    return agree(Quantity(Fraction(digits), len(digits.partition(".")[2])), other.quantity)


def _letters_in_a_row(listing: Listing, other: Words) -> bool:
    """``B, C, A`` and ``BCA``; a single letter is no list."""
    letters = [item.words[0] for item in listing.items if isinstance(item, Words) and len(item.words) == 1]
    if listing.brackets or len(letters) != len(listing.items) or any(len(letter) != 1 for letter in letters):
        return False
    return "".join(letters).casefold() == "".join(other.words).casefold()


def _items_equal(
    gold: tuple[_Item, ...], answer: tuple[_Item, ...], same: Callable[[_Item, _Item], bool], ordered: bool
) -> bool:
    """As many items, each equal to a different item of the other side."""
    if ordered:
        return len(gold) == len(answer) and all(map(same, gold, answer))
    # A solution that is listed twice (a double root) is still right.
    if len(answer) > len(gold):
        answer = _without_repeats(answer, same)
    if len(gold) != len(answer):
        return False
    rest = list(answer)
    for item in gold:
        found = next((index for index, other in enumerate(rest) if same(item, other)), None)
        if found is None:
            return False
        del rest[found]
    return True


def _without_repeats(items: tuple[_Item, ...], same: Callable[[_Item, _Item], bool]) -> tuple[_Item, ...]:
    kept: list[_Item] = []
    for item in items:
        if not any(same(other, item) for other in kept):
            kept.append(item)
    return tuple(kept)


def _rows_equal(gold: tuple[Value, ...], answer: tuple[Value, ...]) -> bool:
    return _items_equal(gold, answer, equal, True)


def _parts_equal(gold: Value, answer: Value) -> bool:
    if not isinstance(gold, Parts) or not isinstance(answer, Parts):
        ratio, other = (gold, answer) if isinstance(gold, Parts) else (answer, gold)
        return isinstance(ratio, Parts) and ratio.kind == "ratio" and _is_quotient(ratio, other)
    if gold.kind != answer.kind:
        return {gold.kind, answer.kind} == {"clock", "ratio"} and _numbers(gold) == _numbers(answer)
    if gold.kind == "clock":
        return _clocks_equal(gold, answer)
    if gold.kind == "date":
        if gold.parts[0] is None:
            return gold.parts[1:] == answer.parts[1:] and answer.parts[0] != "numbered"
        return gold.parts == answer.parts
    if gold.kind == "ratio" and len(gold.parts) == len(answer.parts):
        first, second = _numbers(gold), _numbers(answer)
        if None not in first and None not in second:
            return _proportional(first, second)
    if len(gold.parts) != len(answer.parts):
        return False
    return all(
        equal(first, second) if isinstance(first, Value) and isinstance(second, Value) else first == second
        for first, second in zip(gold.parts, answer.parts, strict=True)
    )


def _clocks_equal(gold: Parts, answer: Parts) -> bool:
    """The same time; one side may leave out the half of the day, which then may be either."""
    if gold.parts[:3] == answer.parts[:3]:
        return True
    if bool(gold.parts[3]) == bool(answer.parts[3]):
        return False
    hours = [part for part in (gold.parts[0], answer.parts[0]) if isinstance(part, int)]
    unmarked = answer.parts[0] if gold.parts[3] else gold.parts[0]
    # 3:30 may mean 15:30, as on a clock face.
    same_dial = len({hour % 12 for hour in hours}) == 1
    return same_dial and unmarked in range(1, 13) and gold.parts[1:3] == answer.parts[1:3]


def _numbers(value: Parts) -> list[Fraction | None]:
    """The parts as numbers; a clock's without the seconds that it may leave out."""
    if value.kind == "clock":
        parts = value.parts[: 2 + bool(value.source.count(":") == 2)]
        return [Fraction(part) if isinstance(part, int) and not value.parts[3] else None for part in parts]
    return [part.quantity.value if isinstance(part, Number) else None for part in value.parts]


def _proportional(first: list[Fraction | None], second: list[Fraction | None]) -> bool:
    """3:4 and 6:8."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not all(a and b for a, b in pairs):
        return first == second
    return len({a / b for a, b in pairs}) == 1


def _is_quotient(ratio: Parts, other: Value) -> bool:
    """3:4 as the number 3/4."""
    numbers = _numbers(ratio)
    if len(numbers) != 2 or not isinstance(other, Number) or other.quantity.unit or other.quantity.percent:
        return False
    first, second = numbers
    return (
        first is not None and bool(second) and second is not None and first / second == other.quantity.value
    )


def _words_equal(gold: Value, answer: Value) -> bool:
    if isinstance(gold, Words) and isinstance(answer, Words):
        if len(gold.words) == len(answer.words) == 1 and len(gold.words[0]) == 1:
            return gold.words == answer.words or (
                gold.words[0] in "ABCDEFGHIJ" and (answer.words[0].upper() == gold.words[0])
            )
        return (
            "".join(gold.words) == "".join(answer.words)
            if _joins(gold, answer)
            else gold.words == answer.words
        )
    words, other = (gold, answer) if isinstance(gold, Words) else (answer, gold)
    assert isinstance(words, Words)
    if isinstance(other, Number):
        if words.source == "e":
            return close(other.quantity.value, constant_value("e") or Fraction(0), other.quantity.decimals)
        number = _NUMBER_WORDS.get(words.words[0]) if words.words else None
        return number == other.quantity.value and (
            len(words.words) == 1 or other.quantity.unit == UNKNOWN_UNIT
        )
    if isinstance(other, Expression) and re.fullmatch("[a-z]{1,3}|[A-Za-z]", words.source):
        return expressions_equal(gold.source, answer.source)
    return False


def _joins(gold: Words, answer: Words) -> bool:
    """Whether the words are letters that may be written with spaces: ``C A B``."""
    return all(len(word) == 1 for word in gold.words) or all(len(word) == 1 for word in answer.words)


def _mathematics_equal(gold: Value, answer: Value) -> bool:
    if isinstance(gold, Number) and isinstance(answer, Number):
        return units_agree(gold.quantity.unit, answer.quantity.unit) and agree(gold.quantity, answer.quantity)
    number, other = (gold, answer) if isinstance(gold, Number) else (answer, gold)
    if isinstance(number, Number) and isinstance(other, Expression):
        value = constant_value(other.latex)
        if value is None or number.quantity.percent or not units_agree(number.quantity.unit, other.unit):
            return False
        mine = number.quantity
        return close(mine.value, value, mine.decimals) or _same_size(mine.value, value)
    if isinstance(gold, Expression) and isinstance(answer, Expression):
        return units_agree(gold.unit, answer.unit) and expressions_equal(gold.latex, answer.latex)
    return False


def _same_size(exact: Fraction, computed: Fraction) -> bool:
    """Equal to 40 digits: `computed` may be a value to 60 digits of what is exactly rational."""
    return abs(exact - computed) <= max(abs(exact), abs(computed)) * Fraction(1, 10**40)
