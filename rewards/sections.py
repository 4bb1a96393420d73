"""Sections between tags, such as <think>...</think><answer>...</answer>. In: texts. Out: Judgements.

Called in process by `actors.scorer`: it searches for fixed texts only, in linear time.
"""

from __future__ import annotations

from collections.abc import Sequence

from configs.kinds.text_scorers import FormatOptions
from rollouts.records import Completion, Judgement, Prompt

OK = "ok"


def sections(prompt: Prompt, completions: Sequence[Completion], options: FormatOptions) -> list[Judgement]:
    """1 if the text is made of the sections `tags`, else 0 or, with `partial`, the share of checks that hold.

    The checks: each tag occurs exactly once (two per section), and one for order, text outside the sections,
    their lengths and lines. The tag `structure` says what is wrong first: ``ok``, ``missing``, ``repeated``,
    ``order``, ``outside``, ``short`` or ``lines``.

    Raises:
        ValueError: `tags` is empty.
    """
    if not options.tags:
        raise ValueError("format: tags must not be empty")
    return [_judge(completion.text, options) for completion in completions]


def _judge(text: str, options: FormatOptions) -> Judgement:
    expected = [mark for name in options.tags for mark in (f"<{name}>", f"</{name}>")]
    counts = [text.count(mark) for mark in expected]
    if options.opened:
        counts[0] += 1  # it is at the end of the prompt
    once = sum(count == 1 for count in counts)
    if once < len(counts):
        problem = "repeated" if max(counts) > 1 else "missing"
    else:
        problem = _problem_of_places(text, expected, options)
    share = (once + (problem == OK)) / (len(counts) + 1)
    score = share if options.partial else float(problem == OK)
    return Judgement(score=score, tags={"structure": problem})


def _problem_of_places(text: str, expected: Sequence[str], options: FormatOptions) -> str:
    """What is wrong in a text that has every tag once."""
    marks = expected[1:] if options.opened else expected
    starts = [text.index(mark) for mark in marks]
    if starts != sorted(starts):
        return "order"
    ends = [start + len(mark) for start, mark in zip(starts, marks, strict=True)]
    if options.opened:
        starts, ends = [0, *starts], [0, *ends]
    outside = [text[: starts[0]]]
    outside += [text[end:start] for end, start in zip(ends[1:-1:2], starts[2::2], strict=True)]
    if options.outside == "space":
        outside.append(text[ends[-1] :])
    if options.outside != "any" and any(piece.strip() for piece in outside):
        return "outside"
    inside = (text[end:start] for end, start in zip(ends[::2], starts[1::2], strict=True))
    if any(len(piece.strip()) < options.min_chars for piece in inside):
        return "short"
    if options.own_lines and {*marks} - {line.strip() for line in text.splitlines()}:
        return "lines"
    return OK


def inside(text: str, name: str) -> str:
    """What the first section `name` contains; "" without its closing tag.

    Without an opening tag it begins with the text, as after a prompt that ends with that tag.
    """
    before, closing, _ = text.partition(f"</{name}>")
    _, opening, content = before.partition(f"<{name}>")
    return "" if not closing else content if opening else before
