"""The lab's rule critic: finds the first wrong step of a lab solution and quotes it.

In: a lab problem and the text of a solution in one of the lab's formats. Out: the verdict and the critique in
the lab's words, such as ``wrong : 3 + 4 = 8``. The corpus of a base that can use critiques is written with it
(`lab.critiques`), and a refiner calls it as ``rule: "lab.critic:first_wrong_step"``.
"""

from __future__ import annotations

import re
from typing import Final

from rewards.formats import tag
from rollouts.records import Prompt

FORMATS: Final = ("code", "prose", "symbolic", "tagged")
RIGHT: Final = "right"
WRONG: Final = "wrong"
_TWO_STEPS = re.compile(r"\( (\d+) ([-+*]) (\d+) \) ([-+*]) (\d+) = \?")
_ONE_STEP = re.compile(r"(\d+) ([-+*]) (\d+) = \?")
_STEPS: Final = {
    "code": re.compile(r"x = (x|\d+) ([-+*]) (\d+) -> (\d+) ;"),
    "prose": re.compile(r"(\d+) (plus|minus|times) (\d+) which is (\d+)"),
    "symbolic": re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)"),
    "tagged": re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)"),
}
_SIGNS: Final = {"plus": "+", "minus": "-", "times": "*"}

Step = tuple[int, str, int, int]
"""(value before, operator, operand, written result)."""


def first_wrong_step(prompt: Prompt, text: str) -> tuple[str, str]:
    """(verdict, critique) of a solution; a critique quotes the first wrong step, such as ``3 + 4 = 8``.

    A step is wrong if it is not the problem's next one, taken from the result written before it, or if its
    own result is. Where no step is, but the answer: ``wrong : the answer is <it>``. A text in none of the
    formats, or with too few steps, is only ``wrong``. The right result is never said.

    Raises:
        ValueError: the prompt is not a problem of the lab.
    """
    question = next((content for role, content in prompt.messages if role == "user"), "")
    start, plan = _read_problem(question)
    solution = read_solution(text)
    if solution is None:
        return WRONG, WRONG
    steps, answer = solution
    if prompt.answer is not None and answer == int(prompt.answer):
        return RIGHT, RIGHT
    value = start
    for number, (left, op, right, result) in enumerate(steps):
        planned = number < len(plan) and (left, op, right) == (value, *plan[number])
        if not planned or result != calculate(left, op, right):
            return WRONG, f"{WRONG} : {left} {op} {right} = {result}"
        value = result
    if len(steps) == len(plan) and answer != value:
        return WRONG, f"{WRONG} : the answer is {answer}"
    return WRONG, WRONG


def calculate(left: int, op: str, right: int) -> int:
    """``left op right`` for one of the lab's three operators."""
    return {"+": left + right, "-": left - right, "*": left * right}[op]


def _read_problem(question: str) -> tuple[int, list[tuple[str, int]]]:
    """The first operand, and (operator, operand) of each step."""
    if found := _TWO_STEPS.fullmatch(question):
        start, op, operand, last_op, last = found.groups()
        return int(start), [(op, int(operand)), (last_op, int(last))]
    if found := _ONE_STEP.fullmatch(question):
        start, op, operand = found.groups()
        return int(start), [(op, int(operand))]
    raise ValueError(f"the lab's critic must get a problem of the lab, got {question[:60]!r}")


def read_solution(text: str) -> tuple[list[Step], int] | None:
    """The steps and the answer of a solution; None if the text is in none of the lab's formats."""
    text = " ".join(text.split())
    name = tag(text, FORMATS)
    if name not in _STEPS:
        return None
    steps: list[Step] = []
    for left, op, right, result in _STEPS[name].findall(text):
        before = steps[-1][3] if left == "x" and steps else left
        if before == "x":
            return None
        steps.append((int(before), _SIGNS.get(op, op), int(right), int(result)))
    return steps, int(re.findall(r"\d+", text)[-1])
