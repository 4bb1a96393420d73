"""The solution format that a text is written in. In: text. Out: one tag per text, as a Judgement.

`GRAMMARS` has a pattern for the whole text of each format; a user adds one with
`GRAMMARS["name"] = re.compile(...)` (and `MARKERS["name"]`, to recognize fragments of it in mixtures).
Each run of whitespace is replaced by one space before matching. Called in process by `actors.scorer`; `tag`
can be used alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from configs.kinds.scorers import FormatTagsOptions
from rollouts.records import Completion, Judgement, Prompt

MIXED = "mixed"
NONE = "none"

_N = r"[0-9]+"
_OP = r"[-+*]"
_WORD = r"(?:plus|minus|times)"

# Every pattern matches in linear time: each number and each repetition is delimited by a literal that is not
# a digit, so there is only one way to match a text, and no backtracking.
GRAMMARS: dict[str, re.Pattern[str]] = {
    "code": re.compile(rf"def : x = {_N} {_OP} {_N} -> {_N} ;(?: x = x {_OP} {_N} -> {_N} ;)* return {_N}"),
    "prose": re.compile(
        rf"we take {_N} {_WORD} {_N} which is {_N}"
        rf"(?: and then {_N} {_WORD} {_N} which is {_N})* so the answer is {_N}"
    ),
    "symbolic": re.compile(rf"\$ {_N} {_OP} {_N} = {_N}(?: , {_N} {_OP} {_N} = {_N})* => {_N} \$"),
    "tagged": re.compile(
        rf"<step> {_N} {_OP} {_N} = {_N} </step>"
        rf"(?: <step> {_N} {_OP} {_N} = {_N} </step>)* <answer> {_N} </answer>"
    ),
}
"""Format name -> pattern of the whole text."""

MARKERS: dict[str, re.Pattern[str]] = {
    "code": re.compile(r"(?<!\S)(?:def :|x =|->|return)(?!\S)"),
    "prose": re.compile(r"(?<!\S)(?:we take|which is|and then|so the answer|plus|minus|times)(?!\S)"),
    "symbolic": re.compile(r"(?<!\S)(?:\$|=>)(?!\S)"),
    "tagged": re.compile(r"</?(?:step|answer)>"),
}
"""Format name -> pattern of a fragment that only this format contains."""


def tag(text: str, names: Sequence[str]) -> str:
    """The format in `names` whose grammar matches the whole `text`, else ``mixed`` or ``none``.

    ``mixed``: the text has markers of two or more formats, or matches two grammars; ``none``: anything else.

    Raises:
        ValueError: a name is not in `GRAMMARS`.
    """
    unknown = [name for name in names if name not in GRAMMARS]
    if unknown:
        raise ValueError(f"grammars must be among {sorted(GRAMMARS)}, got {unknown[0]!r}")
    normalised = " ".join(text.split())
    whole = {name for name in names if GRAMMARS[name].fullmatch(normalised)}
    if len(whole) == 1:
        return whole.pop()
    marked = {name for name in names if name in MARKERS and MARKERS[name].search(normalised)}
    return MIXED if len(whole | marked) >= 2 else NONE


def format_tags(
    prompt: Prompt, completions: Sequence[Completion], options: FormatTagsOptions
) -> list[Judgement]:
    """Tag each completion's ``format``; the score is 1 for a format, 0 for ``mixed`` and ``none``.

    Raises:
        ValueError: `options.grammars` names an unknown grammar.
    """
    tags = [tag(completion.text, options.grammars) for completion in completions]
    return [Judgement(score=0.0 if name in (MIXED, NONE) else 1.0, tags={"format": name}) for name in tags]
