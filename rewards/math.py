r"""Mathematical equivalence with math-verify. In: a prompt's completions. Out: Judgements.

`rewards.math_answers` finds the answer in a text, `rewards.math_values` reads what it is and
`rewards.math_equality` compares it with the prompt's; `docs/scorers/math.md` has the rules. Run by
`actors.sandbox` in a killable process, one sample at a time: SymPy may never return on hostile input, and
math-verify's own time limits use signals, which Python does not handle during a loop in C. Importing this
imports SymPy.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence

from configs.kinds.scorers import MathOptions
from rewards.math_answers import find_answer, is_definite, marked_answer, readable
from rewards.math_engine import expression_text
from rewards.math_equality import equal
from rewards.math_spelling import braces_match, plain
from rewards.math_values import Expression, Label, Listing, Named, Number, Parts, Table, Value, Words, read
from rollouts.records import Completion, Judgement, Prompt

_MAX_PROSE_WORDS = 20
"""A gold answer of more words, without a box, is a text and not an answer."""
_MAX_ANSWER_CHARS = 2000


def math(prompt: Prompt, completions: Sequence[Completion], options: MathOptions) -> list[Judgement]:
    r"""1 when the answer found in the text equals the prompt's, else 0; `answer` is the one found.

    The prompt's answer may be plain text (``1/2``, ``B``, ``Paris``), LaTeX (``\frac12``, ``$\frac12$``), a
    solution with a box or a line ``#### 72`` (GSM8K), or a list of answers of which any is right. Of a text
    longer than `max_chars` only the end is read, where the answer is.

    Raises:
        ValueError: the prompt's answer is missing or cannot be compared with anything, or `max_chars` is not
            positive. The scores are then null with status ``error``, never 0.
    """
    if options.max_chars < 1:
        raise ValueError(f"math: max_chars must be at least 1, got {options.max_chars}")
    # A list of answers has no text form, so it is in `ground_truth`.
    given = prompt.ground_truth if prompt.answer is None else prompt.answer
    golds = read_golds(tuple(map(str, given)) if isinstance(given, list) else (given,))
    if not golds:
        raise ValueError(
            f"math: answer of prompt {prompt.prompt_id!r} must be an expression, a number or a few words,"
            f" got {_shortened(given)}"
        )
    return [_score(golds, completion.text[-options.max_chars :]) for completion in completions]


def warm_up(options: MathOptions) -> None:
    """Compile the patterns and math-verify's LaTeX grammar, which takes longer than scoring a sample."""
    _score(read_golds((r"\frac{1}{2}x",)), "so the answer is $0.5x$")


@functools.lru_cache(maxsize=256)
def read_golds(answers: tuple[object, ...]) -> tuple[Value, ...]:
    """The values of which any is right: those of `answers` that can be compared with something."""
    texts = [text for answer in answers if isinstance(answer, str) for text in _alternatives(answer)]
    return tuple(gold for gold in map(_read_gold, texts) if gold is not None)


def _alternatives(answer: str) -> list[str]:
    """The strings of a JSON list of strings, as some datasets write it in a text; else the answer itself."""
    if answer.lstrip().startswith('["'):
        try:
            listed = json.loads(answer)
        except (ValueError, RecursionError):
            return [answer]
        if isinstance(listed, list) and all(isinstance(item, str) for item in listed):
            return listed
    return [answer]


def _read_gold(answer: str) -> Value | None:
    """A gold answer's value; None where nothing can be compared: it is empty, cut off, or prose."""
    text: str | None = answer
    # A solution is given as the gold answer: only its marked part is the answer.
    if any(mark in answer for mark in ("####", r"\boxed", r"\fbox", "<answer>")):
        text = marked_answer(answer)
    if text is None or not readable(text) or not braces_match(plain(text)):
        return None
    value = read(text)
    if is_definite(value) or len(text.split()) <= _MAX_PROSE_WORDS:
        return value
    # A long text is accepted only if it says itself where its answer is.
    found = find_answer(text) if "answer" in text.lower() else None
    return read(found) if found is not None and is_definite(read(found)) else None


def _score(golds: tuple[Value, ...], text: str) -> Judgement:
    written = find_answer(text)
    if written is None or not readable(written):
        return Judgement(score=0.0, answer_ok=False)
    answer = read(written)
    correct = any(equal(gold, answer) for gold in golds)
    return Judgement(score=float(correct), answer=_spelling(answer), answer_ok=correct)


def _spelling(answer: Value) -> str:
    """The same text for answers that are read alike, if they are numbers, words or expressions."""
    text: str | None = None
    if isinstance(answer, Number):
        text = f"{answer.quantity.value}{'%' * answer.quantity.percent}" if len(answer.source) < 400 else None
    elif isinstance(answer, Named):
        text = _spelling(answer.content)
    elif isinstance(answer, Words):
        text = " ".join(answer.words)
    elif isinstance(answer, Expression):
        text = expression_text(answer.latex)
    elif isinstance(answer, Listing):
        brackets = answer.brackets or "  "
        items = ", ".join(_spelling(item) for item in answer.items)
        text = f"{brackets[0]}{items}{brackets[-1]}".strip()
    else:
        assert isinstance(answer, (Label, Parts, Table))
    return (answer.source if text is None else text)[:_MAX_ANSWER_CHARS]


def _shortened(answer: object) -> str:
    text = repr(answer)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"
