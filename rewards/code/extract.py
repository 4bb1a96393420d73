"""The program in an answer. In: the text of a completion. Out: source text, or None if there is none.

The last fenced block marked as the language counts; without one, the last fenced block without a mark;
without any fence, the whole text if `bare` says so. A block that is never closed ends with the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from rewards.code.lab_programs import to_python

MARKS = {"python": ("python", "python3", "py")}
"""Language -> the word after the opening fence."""
_WORD: Final = re.compile(r"\w*")


def extract(text: str, language: str, *, bare: bool) -> str | None:
    """The program of `text` as Python, without what is around it; None if there is none or it is blank.

    Of ``lab``, the whole text is the program (`rewards.code.lab_programs`).
    """
    if language == "lab":
        return to_python(text)
    named, plain = None, None
    for mark, body in _blocks(text):
        if mark in MARKS[language]:
            named = body
        elif not mark:
            plain = body
    program = named if named is not None else plain
    if program is None and bare and "```" not in text:
        program = text
    return program if program is not None and program.strip() else None


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """(mark in lower case, body) of every fenced block, in one pass over the lines."""
    mark, fence, body = "", "", list[str]()
    for line in text.split("\n"):
        stripped = line.strip()
        if fence:
            if stripped.startswith(fence) and not stripped.strip("`~"):
                yield mark, "\n".join(body)
                fence = ""
            else:
                body.append(line)
        elif stripped.startswith(("```", "~~~")):
            run = len(stripped) - len(stripped.lstrip(stripped[0]))
            info = stripped[run:].strip().lower()
            # "python title=x" and "python:main.py" are Python too.
            fence, mark, body = stripped[:run], info[: _WORD.match(info).end()] or info, []  # type: ignore[union-attr]
    if fence:
        yield mark, "\n".join(body)
