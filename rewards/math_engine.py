r"""Expressions as SymPy sees them, parsed and compared by math-verify. In: TeX. Out: whether two are equal.

Its parser gets one whole expression and may not look for another inside it. Two of its comparisons are
replaced, because they treat all small values as equal: constants are compared by their relative difference,
and expressions with variables that it finds equal must be equal at a few points too.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import re
from fractions import Fraction

import sympy
from math_verify import LatexExtractionConfig, parse, verify
from sympy import Basic, Expr, Float, Integer, MatrixBase, Pow, Rational, factorial

# It warns that its time limits are off, which they are on purpose: see `rewards.math`.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_WHOLE = LatexExtractionConfig(
    try_extract_without_anchor=False,
    boxed_match_priority=0,
    normalization_config=dataclasses.replace(
        LatexExtractionConfig().normalization_config, units=False, boxed="last"
    ),
)
_MAX_CHARS = 800
"""A longer answer is equal only as written: the time of the parser grows faster than the text."""
_LARGE_BINOMIAL = re.compile(r"\\[dt]?binom\s*\{\s*\d{5,}|\d{5,}\s*\\choose")  # the parser evaluates it
_NUMBER_WITH_INDEX = re.compile(r"\d[)}]?\s*_")
"""math-verify would drop the index, which is a base."""
_LETTERS = re.compile(r"[a-z]{4,}|(?:[A-Z](?:_\{?\d+\}?)?'?(?![_'])\s*){2,}")
_LOGARITHM = re.compile(r"\\log\s*_\s*(?:\{[^{}]*\}|\w)")
_NUMBER_BESIDE = re.compile(r"[\d}]\s+\d")
"""math-verify would multiply numbers side by side."""
_MAX_DIGITS = 20_000.0
"""Powers and factorials with more digits are not evaluated: they are equal only as written."""
_DIGITS = 60
_EXACT = sympy.Rational(1, 10**30)
_POINTS = (Rational(7, 5), Rational(23, 11), Rational(41, 13), Rational(17, 29))


@functools.lru_cache(maxsize=256)
def parse_expression(latex: str) -> Basic | MatrixBase | None:
    """The expression of all of `latex`; None if math-verify cannot read it as a whole."""
    if len(latex) > _MAX_CHARS or _LARGE_BINOMIAL.search(latex):
        return None
    if _NUMBER_WITH_INDEX.search(latex) or _NUMBER_BESIDE.search(_LOGARITHM.sub("", latex)):
        return None
    found = parse(
        rf"\boxed{{{latex}}}",
        [_WHOLE],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )
    expression = found[0] if found else None
    if not isinstance(expression, (Basic, MatrixBase)) or (
        isinstance(expression, Basic) and expression.has(sympy.nan)
    ):
        return None
    return expression


def expressions_equal(gold_latex: str, answer_latex: str) -> bool:
    """Whether math-verify finds the two equal, within the limits of this module."""
    gold, answer = parse_expression(gold_latex), parse_expression(answer_latex)
    if gold is None or answer is None:
        return False
    # math-verify reads ABC as a product, so that CAB would be equal to it.
    if _runs(gold_latex) != _runs(answer_latex):
        return False
    # The same expression is equal whatever its size: nothing has to be evaluated.
    if gold == answer:
        return True
    if _too_large(gold) or _too_large(answer):
        return False
    if _is_constant(gold) and _is_constant(answer):
        verdict = _constants_equal(gold, answer)
        if verdict is not None:
            return verdict
    if isinstance(gold, sympy.Eq) and isinstance(answer, sympy.Eq):
        verdict = _equations_equal(gold, answer)
        if verdict is not None:
            return verdict
    # No time limit: its own limits use signals, and the process of a scorer is killed instead.
    if not verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=None):
        return False
    return not _differ_somewhere(gold, answer)


def _runs(latex: str) -> list[str]:
    r"""Names of several letters, which are not products: ``\triangle ABC``, ``H_2O``, ``listen``."""
    bare = re.sub(r"\\(?:text|operatorname|begin|end)\{[^{}]*\}|\\[A-Za-z]+", " ", latex)
    return sorted("".join(run.split()) for run in _LETTERS.findall(bare))


def constant_value(latex: str) -> Fraction | None:
    """The value of `latex` as a real number, to 60 digits; None if it has variables or is not finite."""
    expression = parse_expression(latex)
    if expression is None or not _is_constant(expression) or _too_large(expression):
        return None
    try:
        number = _exact(expression).doit()
        if isinstance(number, Rational):
            return Fraction(int(number.p), int(number.q))
        number = number.evalf(_DIGITS)
        if not isinstance(number, Float) or not number.is_finite:
            return None
        value = Rational(number)
    except Exception:  # SymPy raises whatever its functions meet: no value can be had
        return None
    return Fraction(int(value.p), int(value.q))


def expression_text(latex: str) -> str | None:
    """SymPy's spelling of the expression, the same for answers that it reads alike; None if it has none."""
    expression = parse_expression(latex)
    if expression is None or _too_large(expression):
        return None
    try:
        return str(expression)
    except Exception:  # to put terms in order SymPy works them out, and raises whatever its functions meet
        return None


def _is_constant(expression: Basic | MatrixBase) -> bool:
    return (
        isinstance(expression, Expr)
        and not expression.free_symbols
        and not isinstance(expression, MatrixBase)
    )


def _exact(expression: Expr) -> Expr:
    """Decimals as exact fractions of what is written."""
    return expression.xreplace({number: Rational(str(number)) for number in expression.atoms(Float)})


def _constants_equal(gold: Expr, answer: Expr) -> bool | None:
    """Whether they differ by less than 1e-30 of their size; None if they have no value."""
    try:
        first, second = (_exact(side).doit() for side in (gold, answer))
        if first.is_Rational and second.is_Rational:
            return bool(first == second)
        sizes = [abs(side.evalf(_DIGITS)) for side in (first, second)]
        difference = abs((first.evalf(_DIGITS) - second.evalf(_DIGITS)).evalf(_DIGITS))
        if not all(size.is_number and size.is_finite for size in (*sizes, difference)):
            return None
        return bool(difference <= max(sizes) * _EXACT)
    except Exception:  # SymPy raises whatever its functions meet: math-verify may still compare them
        return None


def _equations_equal(gold: sympy.Eq, answer: sympy.Eq) -> bool | None:
    """Whether one equation between polynomials is a multiple of the other; None of other equations.

    Solving both, as math-verify does, takes seconds.
    """
    try:
        symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
        first, second = (
            sympy.Poly(sympy.numer(sympy.together(_exact(side.lhs - side.rhs))), *symbols).monic()
            for side in (gold, answer)
        )
        return bool(first == second)
    except Exception:  # no polynomials, or sides that have no difference
        return None


def _differ_somewhere(gold: Basic | MatrixBase, answer: Basic | MatrixBase) -> bool:
    """Whether two expressions of the same variables have clearly different values at one of a few points."""
    if not isinstance(gold, Expr) or not isinstance(answer, Expr):
        return False
    names = sorted({symbol.name for side in (gold, answer) for symbol in side.free_symbols})
    # Three points: at one of them the two may be equal by chance, or have no value.
    for shift in range(3):
        values = [_value_at_point(side, names, shift) for side in (gold, answer)]
        if any(value is None for value in values):
            continue
        first, second = (value for value in values if value is not None)
        if abs(first - second) > 1e-9 * max(abs(first), abs(second)):
            return True
    return False


def _value_at_point(side: Expr, names: list[str], shift: int) -> complex | None:
    """The value where each variable has one of `_POINTS`; None if it is no number of a float's size."""
    point = {
        symbol: _POINTS[(names.index(symbol.name) + shift) % len(_POINTS)] + names.index(symbol.name)
        for symbol in side.free_symbols
    }
    try:
        value = complex(side.subs(point).doit().evalf(30))
    except Exception:  # SymPy raises whatever its functions meet
        return None
    return value if max(abs(value.real), abs(value.imag)) < 1e300 else None


def _too_large(expression: Basic | MatrixBase) -> bool:
    """Whether a power or factorial in it has too many digits to be evaluated."""
    parts = expression.flat() if isinstance(expression, MatrixBase) else [expression]
    return any(_digits(part, 0) > _MAX_DIGITS for part in parts)


def _digits(expression: Basic, depth: int) -> float:
    """Approximate number of digits of the largest number in the evaluation of `expression`."""
    if isinstance(expression, Integer):
        return max(1.0, int(expression).bit_length() * 0.302)
    if not expression.args:
        return 1.0
    if depth > 100:
        return math.inf
    sizes = [_digits(argument, depth + 1) for argument in expression.args]
    if isinstance(expression, (Pow, sympy.exp)):
        return sizes[0] * _power_of_ten(sizes[-1]) if isinstance(expression, Pow) else _power_of_ten(sizes[0])
    if isinstance(expression, factorial):
        return sizes[0] * _power_of_ten(sizes[0])
    return sum(sizes) if isinstance(expression, sympy.Mul) else max(sizes) + 1.0


def _power_of_ten(digits: float) -> float:
    return 10.0 ** min(digits, 300.0)
