"""Prompts, programs and the scorer `code` for tests, and the methods of isolation that must hold here."""

from __future__ import annotations

from functools import cache
from typing import Any

from configs.kinds.code import CodeOptions
from rewards.code import scorer
from rewards.code.isolation import METHODS, missing
from rewards.code.proof import escapes
from rollouts.records import Completion, Judgement, Prompt


@cache
def methods_here() -> tuple[str, ...]:
    """The methods that this machine has. Never empty on Linux: tests of isolation are not skipped."""
    found = tuple(
        name for name in METHODS if name != "none" and not missing(name, 1) and not escapes(name, 1)
    )
    assert found, "no isolation holds here; these tests must not be skipped (docs/scorers/code.md)"
    return found


def prompt(truth: Any = None, **extra: Any) -> Prompt:
    """A row with tests as its ground truth, or in other columns."""
    return Prompt(
        prompt_id="p", messages=(("user", "q"),), answer=None, domain="d", ground_truth=truth, extra=extra
    )


def completion(text: str) -> Completion:
    """An answer that is `text`."""
    return Completion(
        sample_id="s",
        seed=0,
        token_ids=(1,),
        text=text,
        finish_reason="stop",
        behavior_logprobs=(0.0,),
        versions=((0, 0),),
    )


def fenced(program: str) -> str:
    """An answer with a program in a block."""
    return f"Here it is:\n```python\n{program}\n```\nDone."


def options(**changed: Any) -> CodeOptions:
    """Small limits, so that programs that never end take a second."""
    return CodeOptions(**({"wall_s": 2.0, "cpu_s": 1.0, "total_s": 8.0, "memory_mb": 256} | changed))


def judge(row: Prompt, program: str, **changed: Any) -> Judgement:
    """The judgement of one program."""
    (judgement,) = scorer.code(row, [completion(fenced(program))], options(**changed))
    return judgement


STDIN = prompt({"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]})
CALLS = prompt({"inputs": [[1, 2], [3, 4]], "outputs": [3, 7], "fn_name": "add"})
ASSERTS = prompt({"assert": ["assert add(1, 2) == 3", "assert add(3, 4) == 7"]})
CHECK = prompt(
    test="""
def check(candidate):
    assert candidate(1, 2) == 3
    assert abs(candidate(1.5, 2) - 3.5) < 1e-6
""",
    entry_point="add",
)
ADD = "def add(a, b):\n    return a + b\n"
SUM = "print(sum(map(int, input().split())))\n"
