"""Mathematical equivalence with math-verify. In: a prompt's completions. Out: Judgements.

Run by `actors.sandbox` in a killable process, one sample at a time: SymPy may take for ever on hostile input,
and math-verify's own time limits rest on signals, which a C loop never sees. Importing this imports SymPy.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

from math_verify import parse, verify

from configs.kinds.scorers import MathOptions
from rollouts.records import Completion, Judgement, Prompt

# It warns that its time limits are off, which they are on purpose.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def math(prompt: Prompt, completions: Sequence[Completion], options: MathOptions) -> list[Judgement]:
    r"""1 when the expression found in the text equals the prompt's answer, else 0; `answer` is that found.

    The prompt's answer may be plain text (``1/2``), LaTeX (``\frac12``, ``$\frac12$``) or boxed. Of a text
    longer than `max_chars` the end is read, where the answer stands.

    Raises:
        ValueError: the prompt's answer is missing or is no expression, or `max_chars` is not positive.
    """
    if options.max_chars < 1:
        raise ValueError(f"math: max_chars must be at least 1, got {options.max_chars}")
    gold = _parse_gold(prompt.answer)
    if not gold:
        raise ValueError(
            f"math: answer of prompt {prompt.prompt_id!r} must be an expression, got {prompt.answer!r}"
        )
    return [_judge(gold, completion.text[-options.max_chars :]) for completion in completions]


def warm_up(options: MathOptions) -> None:
    """Compile math-verify's patterns and LaTeX grammar, so that the first sample does not pay for it."""
    verify(_parse(r"\boxed{\frac{1}{2}}"), _parse("so the answer is $0.5$"), timeout_seconds=None)


def _judge(gold: tuple[object, ...], text: str) -> Judgement:
    found = _parse(text)
    if not found:
        return Judgement(score=0.0, answer_ok=False)
    correct = bool(verify(list(gold), found, timeout_seconds=None))
    return Judgement(score=float(correct), answer=_expression_text(found), answer_ok=correct)


def _expression_text(found: list[object]) -> str:
    """The parsed expression as text; as written when Python refuses to print it (over 4,300 digits)."""
    try:
        return str(found[0])
    except ValueError:
        return str(found[-1])


def _parse(text: str) -> list[object]:
    return list(parse(text, parsing_timeout=None))


@functools.lru_cache(maxsize=256)
def _parse_gold(answer: str | None) -> tuple[object, ...]:
    """Gold as math-verify wants it; a bare answer is read as boxed first: plain text finds numbers only."""
    if answer is None or not answer.strip():
        return ()
    delimited = "$" in answer or r"\boxed" in answer or r"\(" in answer or r"\[" in answer
    for text in (answer,) if delimited else (rf"\boxed{{{answer}}}", answer):
        gold = _parse(text)
        if gold:
            return tuple(gold)
    return ()
