"""Whether a regular expression matches. In: a prompt's completions. Out: Judgements.

Run by `actors.sandbox` in a killable process, one sample at a time: a pattern may take exponential time on a
text made for it, and Python cannot interrupt its `re` from within.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence

from configs.kinds.text_scorers import RegexOptions
from rollouts.records import Completion, Judgement, Prompt


def regex(prompt: Prompt, completions: Sequence[Completion], options: RegexOptions) -> list[Judgement]:
    """1 where the pattern matches, else 0; with ``count`` min(1, matches / max_count); 1 - that if `negate`.

    Raises:
        ValueError: the pattern is no regular expression, or `match` or `max_count` are not allowed.
    """
    if options.match not in ("search", "full", "count") or options.max_count < 1:
        raise ValueError(
            "regex: match must be search, full or count and max_count at least 1, "
            f"got match={options.match!r}, max_count={options.max_count}"
        )
    pattern = _compiled(options.pattern, _flags(options))
    found = (_share(pattern, completion.text, options) for completion in completions)
    return [Judgement(score=1.0 - share if options.negate else share) for share in found]


def warm_up(options: RegexOptions) -> None:
    """Compile the pattern."""
    _compiled(options.pattern, _flags(options))


def _share(pattern: re.Pattern[str], text: str, options: RegexOptions) -> float:
    if options.match == "full":
        return float(pattern.fullmatch(text) is not None)
    if options.match == "search":
        return float(pattern.search(text) is not None)
    # No further than needed: a pattern may match millions of times.
    matches = itertools.islice(pattern.finditer(text), options.max_count)
    return sum(1 for _ in matches) / options.max_count


def _flags(options: RegexOptions) -> int:
    flags = 0
    for wanted, flag in (
        (options.ignore_case, re.IGNORECASE),
        (options.multiline, re.MULTILINE),
        (options.dotall, re.DOTALL),
    ):
        flags |= flag if wanted else 0
    return flags


@functools.lru_cache(maxsize=8)
def _compiled(pattern: str, flags: int) -> re.Pattern[str]:
    try:
        return re.compile(pattern, flags)
    except re.error as error:
        raise ValueError(f"regex: pattern must be a regular expression: {error}") from error
