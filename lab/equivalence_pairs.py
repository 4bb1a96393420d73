"""Pairs of solutions for an equivalence classifier, labelled by the corpus's own structure.

Two solutions of a problem are equivalent if they have the same format and the same steps, however they are
worded: connectives, the frame, the order of what is added or multiplied. The solutions of any other pair
differ as little as possible: the same steps in another format, or the same format with one number or operator
changed.

Inputs: problems and a seed. Outputs: `Pair`s, half of them equivalent. Used by `lab.train_equivalence`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from lab.corpus import FORMATS
from lab.problems import ADD, MAX_NUMBER, MULTIPLY, NO_STEP, SUBTRACT, SYMBOLS, Problems

T = TypeVar("T")
WORDS = ("plus", "minus", "times")
WRONG_SHARE = 0.4
"""Share of steps with a wrong result, about that of the base: policies write those, too."""
KINDS = ("equivalent", "format", "result", "operator", "operand")
"""equivalent, or what differs between the two solutions."""


@dataclass(frozen=True, slots=True)
class Step:
    """``left op right = result``."""

    left: int
    op: int
    right: int
    result: int


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts of one problem. `kind` is one of `KINDS`.

    The first `common` words of `second` could also begin a text that is equivalent to `first`. They are all
    of its words if the pair is equivalent.
    """

    first: str
    second: str
    kind: str
    common: int

    @property
    def is_equivalent(self) -> bool:
        return self.kind == "equivalent"


def make_pairs(problems: Problems, count: int, seed: int) -> list[Pair]:
    """`count` pairs on problems drawn from `problems`, alternately equivalent and different.

    The two texts of a pair are never equal. The differences are half in the format, half in the steps.
    """
    rng = np.random.default_rng([seed, 11])
    pairs = []
    for number in range(count):
        steps = _solution(problems, int(rng.integers(len(problems))), rng)
        name = _one(rng, FORMATS)
        # In turn and not by chance: both labels are then equally frequent in every batch.
        kind = "equivalent" if number % 2 == 0 else _one(rng, ("format", _one(rng, KINDS[2:])))
        pairs.append(_pair(kind, name, steps, rng))
    return pairs


def make_easy_pairs(problems: Problems, count: int, seed: int) -> list[Pair]:
    """Pairs to begin with: both texts in the same wording, equal or with one number or operator changed."""
    rng = np.random.default_rng([seed, 12])
    pairs = []
    for number in range(count):
        steps = _solution(problems, int(rng.integers(len(problems))), rng)
        name, wording = _one(rng, FORMATS), int(rng.integers(2**63))
        kind = "equivalent" if number % 2 == 0 else _one(rng, KINDS[2:])
        other = steps if kind == "equivalent" else _changed(steps, kind, rng)
        first, second = (reworded(name, each, np.random.default_rng(wording)) for each in (steps, other))
        pairs.append(Pair(first=first, second=second, kind=kind, common=_common(first, second)))
    return pairs


def _common(same: str, text: str) -> int:
    """The number of words before the first that differs; both texts have equally many."""
    words = zip(same.split(), text.split(), strict=True)
    return next((at for at, (one, two) in enumerate(words) if one != two), len(text.split()))


def _one(rng: np.random.Generator, values: Sequence[T]) -> T:
    """One of `values`, each as likely as the others."""
    return values[int(rng.random() * len(values))]


def _pair(kind: str, name: str, steps: list[Step], rng: np.random.Generator) -> Pair:
    other_name, other_steps = name, steps
    if kind == "format":
        other_name = _one(rng, [each for each in FORMATS if each != name])
    elif kind != "equivalent":
        other_steps = _changed(steps, kind, rng)
    first, second = reworded(name, steps, rng), ""
    while not second or second == first:  # every format has many wordings
        wording = int(rng.integers(2**63))
        second = reworded(other_name, other_steps, np.random.default_rng(wording))
    if kind == "format":
        return Pair(first=first, second=second, kind=kind, common=0)
    # In the same wording the two differ exactly where the steps do.
    same = reworded(name, steps, np.random.default_rng(wording))
    return Pair(first=first, second=second, kind=kind, common=_common(same, second))


def _solution(problems: Problems, row: int, rng: np.random.Generator) -> list[Step]:
    """The steps of a solution of the problem, some results off by one."""
    start, op, operand, last_op, last = (
        int(column[row])
        for column in (
            problems.start,
            problems.first_op,
            problems.first,
            problems.second_op,
            problems.second,
        )
    )
    steps = [_step(start, op, operand, rng)]
    if last_op != NO_STEP:
        steps.append(_step(steps[0].result, last_op, last, rng))
    return steps


def _step(left: int, op: int, right: int, rng: np.random.Generator) -> Step:
    result = _apply(left, op, right) + (_one(rng, (-1, 1)) if rng.random() < WRONG_SHARE else 0)
    return Step(left, op, right, _within(result))


def _apply(left: int, op: int, right: int) -> int:
    return {ADD: left + right, SUBTRACT: left - right, MULTIPLY: left * right}[op]


def _within(number: int) -> int:
    return min(max(number, 0), MAX_NUMBER)


def _changed(steps: list[Step], kind: str, rng: np.random.Generator) -> list[Step]:
    """The same with one result, operator or operand changed; a changed first result is carried on."""
    at = int(rng.integers(len(steps)))
    step, changed = steps[at], list(steps)
    if kind == "operator":
        op = _one(rng, [each for each in (ADD, SUBTRACT, MULTIPLY) if each != step.op])
        changed[at] = Step(step.left, op, step.right, step.result)
    elif kind == "operand":
        right = step.right + _one(rng, (-1, 1)) if step.right > 1 else step.right + 1
        changed[at] = Step(step.left, step.op, right, step.result)
    else:
        result = step.result + _one(rng, (-1, 1)) if 0 < step.result < MAX_NUMBER else abs(step.result - 1)
        changed[at] = Step(step.left, step.op, step.right, result)
        # A later step that still used the old result would give the change away.
        if at + 1 < len(steps):
            after = steps[at + 1]
            changed[at + 1] = Step(result, after.op, after.right, after.result)
    return changed


def reworded(name: str, steps: Sequence[Step], rng: np.random.Generator) -> str:
    """The solution in format `name`, in one of its wordings."""
    head, *rest = steps
    # Only sums and products may change places.
    is_turned = rng.random() < 0.5 and head.op != SUBTRACT
    turned = [Step(head.right, head.op, head.left, head.result) if is_turned else head, *rest]

    def choose(*texts: str) -> str:
        return _one(rng, texts)

    return " ".join(_WORDINGS[name](turned, choose).split())


def _code(steps: Sequence[Step], choose: Callable[..., str]) -> str:
    lines = []
    for at, each in enumerate(steps):
        left = choose("x", str(each.left)) if at else each.left
        lines.append(f"x = {left} {SYMBOLS[each.op]} {each.right} -> {each.result}")
    opening, result = choose("def :", "def", ""), choose("x", str(steps[-1].result))
    return f"{opening} {' ; '.join(lines)} {choose(';', '')} return {result}"


def _prose(steps: Sequence[Step], choose: Callable[..., str]) -> str:
    parts = [
        f"{each.left} {WORDS[each.op]} {each.right} {choose('which is', 'is')} {each.result}"
        for each in steps
    ]
    opening, link = choose("we take", "take", ""), choose(" and then ", " then ")
    ending = choose("so the answer is", "the answer is", "and so the answer is")
    return f"{opening} {link.join(parts)} {ending} {steps[-1].result}"


def _symbolic(steps: Sequence[Step], choose: Callable[..., str]) -> str:
    parts = [f"{each.left} {SYMBOLS[each.op]} {each.right} = {each.result}" for each in steps]
    ending = choose("=> {} $", "=> {}", "=> x = {} $").format(steps[-1].result)
    return f"{choose('$', '$ x :')} {choose(' , ', ' ; ').join(parts)} {ending}"


def _tagged(steps: Sequence[Step], choose: Callable[..., str]) -> str:
    opening, closing = choose("<step>", "<step> :"), choose("</step>", "; </step>")
    parts = [
        f"{opening} {each.left} {SYMBOLS[each.op]} {each.right} = {each.result} {closing}" for each in steps
    ]
    return f"{' '.join(parts)} <answer> {choose('', '=')} {steps[-1].result} </answer>"


_WORDINGS: dict[str, Callable[[Sequence[Step], Callable[..., str]], str]] = {
    "code": _code,
    "prose": _prose,
    "symbolic": _symbolic,
    "tagged": _tagged,
}
