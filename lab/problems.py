"""The lab's problems: one- and two-step arithmetic, left to right, numbers in 0..99, finite disjoint splits.

The whole population is enumerated, then shuffled by the corpus seed; held-out problems are the first ones,
train problems follow, so the splits are disjoint whatever number is asked for.

Inputs: a corpus seed. Outputs: `Problems` (integer arrays, read by `lab.corpus`) and `list[Prompt]`
(the dataset kind ``lab``, called through `configs.kinds.datasets`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt

from configs.kinds.datasets import LabOptions
from rewards.lab import SYLLABLES
from rollouts.records import Prompt

Integers = npt.NDArray[np.int64]

SYMBOLS = ("+", "-", "*")
ADD, SUBTRACT, MULTIPLY = range(3)
NO_STEP = 3
"""Operator code of the second step that a one-step problem does not have."""
MAX_NUMBER = 99
MAX_START = 50
"""The first operand is 1..50."""
MAX_TERM = 9
"""What is added or subtracted is 1..9."""
MAX_FACTOR = 9
"""What is multiplied by is 2..9."""
NUM_TRAIN = 12288
NUM_HELDOUT = 1024
ONE_STEP_SHARE = 0.0625
SPLITS = ("train", "heldout", "creative")


@dataclass(frozen=True, slots=True)
class Problems:
    """P problems as columns: ``(start first_op first) second_op second = answer``, each [P].

    `second_op` is NO_STEP (and `second` 0) for one-step problems.
    """

    start: Integers
    first_op: Integers
    first: Integers
    second_op: Integers
    second: Integers
    answer: Integers

    def __len__(self) -> int:
        return len(self.start)

    def take(self, rows: Integers) -> Problems:
        """The problems at positions `rows` [R], in that order, repeats allowed."""
        return Problems(
            self.start[rows],
            self.first_op[rows],
            self.first[rows],
            self.second_op[rows],
            self.second[rows],
            self.answer[rows],
        )


def apply_step(value: Integers, op: Integers, operand: Integers) -> Integers:
    """``value op operand`` elementwise, [P] each; NO_STEP returns `value`. The result may leave 0..99."""
    return np.select(
        [op == ADD, op == SUBTRACT, op == MULTIPLY],
        [value + operand, value - operand, value * operand],
        value,
    )


def step_kinds() -> tuple[Integers, Integers]:
    """Every (operator, operand) a step may have, as two columns."""
    pairs = [(op, term) for op in (ADD, SUBTRACT) for term in range(1, MAX_TERM + 1)]
    pairs += [(MULTIPLY, factor) for factor in range(2, MAX_FACTOR + 1)]
    table = np.array(pairs, dtype=np.int64)
    return table[:, 0], table[:, 1]


def _in_range(values: Integers) -> npt.NDArray[np.bool_]:
    return (values >= 0) & (values <= MAX_NUMBER)


@cache
def _population() -> tuple[Problems, Problems]:
    """All one-step and all two-step problems whose intermediate and final results are in 0..99."""
    ops, operands = step_kinds()
    starts = np.arange(1, MAX_START + 1, dtype=np.int64)
    start, step = (grid.ravel() for grid in np.meshgrid(starts, np.arange(len(ops)), indexing="ij"))
    middle = apply_step(start, ops[step], operands[step])
    # A result outside of 0..99 has no token.
    start, step, middle = (column[_in_range(middle)] for column in (start, step, middle))
    zeros = np.zeros_like(start)
    one_step = Problems(start, ops[step], operands[step], zeros + NO_STEP, zeros, middle)
    row, second = (
        grid.ravel() for grid in np.meshgrid(np.arange(len(start)), np.arange(len(ops)), indexing="ij")
    )
    answer = apply_step(middle[row], ops[second], operands[second])
    row, second, answer = (column[_in_range(answer)] for column in (row, second, answer))
    two_step = Problems(
        start[row], ops[step[row]], operands[step[row]], ops[second], operands[second], answer
    )
    return one_step, two_step


def _draw(pool: Problems, count: int, rng: np.random.Generator) -> Problems:
    """`count` problems of `pool`, no repeats, each pair of operators equally likely where the pool allows."""
    # By pairs of operators: few products stay in 0..99, and they would be rare.
    kind = pool.first_op * 4 + pool.second_op
    order = rng.permutation(len(pool))
    rank = np.empty(len(pool), dtype=np.int64)
    for value in np.unique(kind):
        members = order[kind[order] == value]
        rank[members] = np.arange(len(members))
    # The first of every kind, then the second of every kind, and so on, until there are enough.
    return pool.take(order[np.argsort(rank[order], kind="stable")][:count])


def problem_split(split: str, seed: int) -> Problems:
    """The problems of `split` ("train" or "heldout") under corpus seed `seed`, in a repeatable order.

    Raises:
        ValueError: another split.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split must be train or heldout, got {split!r}")
    rng = np.random.default_rng([seed, 1])
    total = NUM_HELDOUT + NUM_TRAIN
    num_short = round(total * ONE_STEP_SHARE)
    one_step, two_step = _population()
    short, long = _draw(one_step, num_short, rng), _draw(two_step, total - num_short, rng)
    order = rng.permutation(total)
    chosen = order[:NUM_HELDOUT] if split == "heldout" else order[NUM_HELDOUT:]
    return _concatenate(short, long).take(chosen)


def _concatenate(left: Problems, right: Problems) -> Problems:
    return Problems(
        np.concatenate([left.start, right.start]),
        np.concatenate([left.first_op, right.first_op]),
        np.concatenate([left.first, right.first]),
        np.concatenate([left.second_op, right.second_op]),
        np.concatenate([left.second, right.second]),
        np.concatenate([left.answer, right.answer]),
    )


def problem_texts(problems: Problems) -> list[str]:
    """The user's message of each problem, such as ``( 3 + 4 ) * 2 = ?`` or ``3 + 4 = ?``."""
    columns = (problems.start, problems.first_op, problems.first, problems.second_op, problems.second)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [
        f"{start} {SYMBOLS[op]} {operand} = ?"
        if last_op == NO_STEP
        else f"( {start} {SYMBOLS[op]} {operand} ) {SYMBOLS[last_op]} {last} = ?"
        for start, op, operand, last_op, last in rows
    ]


def creative_texts() -> list[str]:
    """The open-ended prompts, ``write : ba ke``: every ordered pair of syllables."""
    return [f"write : {first} {second}" for first in SYLLABLES for second in SYLLABLES]


def _prompts(texts: Sequence[str], answers: Sequence[str | None], name: str, domain: str) -> list[Prompt]:
    return [
        Prompt(
            prompt_id=f"{name}-{index:05d}",
            messages=(("user", text),),
            answer=answer,
            domain=domain,
            is_text=True,
        )
        for index, (text, answer) in enumerate(zip(texts, answers, strict=True))
    ]


def load_prompts(options: LabOptions) -> list[Prompt]:
    """The prompts of one split, in a fixed order; the first `options.limit` of them when it is positive.

    Raises:
        ValueError: an unknown split, or a negative seed or limit.
    """
    if options.split not in SPLITS:
        raise ValueError(f"data split must be one of {', '.join(SPLITS)}, got {options.split!r}")
    if options.limit < 0 or options.corpus_seed < 0:
        raise ValueError(
            f"data limit and corpus_seed must be 0 or more, got {options.limit} and {options.corpus_seed}"
        )
    name = f"lab{options.corpus_seed}-{options.split}"
    if options.split == "creative":
        texts = creative_texts()
        order = np.random.default_rng([options.corpus_seed, 2]).permutation(len(texts)).tolist()
        prompts = _prompts([texts[index] for index in order], [None] * len(texts), name, "creative")
    else:
        problems = problem_split(options.split, options.corpus_seed)
        answers = [str(answer) for answer in problems.answer.tolist()]
        prompts = _prompts(problem_texts(problems), answers, name, "arithmetic")
    prompts = prompts[: options.limit] if options.limit else prompts
    return [_with_test(prompt) for prompt in prompts] if options.tests else prompts


def _with_test(prompt: Prompt) -> Prompt:
    """The prompt with a test of standard output as its ground truth; open-ended ones have none."""
    if prompt.answer is None:
        return prompt
    return replace(prompt, ground_truth={"inputs": [""], "outputs": [prompt.answer]})
