"""Programs in the lab's format ``code`` as Python, so that its small model can be rewarded for programs.

In: ``def : x = 3 + 4 -> 7 ; x = x * 2 -> 14 ; return 14``. Out: Python that takes each step, asserts the
value written after its arrow, and prints what is returned. A text that begins as a program and is none
becomes source that does not compile.
"""

from __future__ import annotations

import re

_STEP = re.compile(r"(x = (?:x|[0-9]+) [-+*] [0-9]+) -> ([0-9]+)")
_RETURN = re.compile(r"return ([0-9]+)")
_START = "def :"
_NO_STATEMENT = "this is no statement"


def to_python(text: str) -> str | None:
    """The program of `text`; None if it does not begin with ``def :``."""
    words = " ".join(text.split())
    if not words.startswith(_START):
        return None
    return "\n".join(_statement(part.strip()) for part in words[len(_START) :].split(";")) + "\n"


def _statement(part: str) -> str:
    if step := _STEP.fullmatch(part):
        return f"{step[1]}\nassert x == {step[2]}"
    if returned := _RETURN.fullmatch(part):
        return f"print({returned[1]})"
    return _NO_STATEMENT
