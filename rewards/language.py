"""The share of words in the scripts of a language. In: a prompt's completions. Out: Judgements.

Called in process by `actors.scorer`. Python's `unicodedata` knows no scripts, but the name of a letter begins
with its script; docs/scorers/language.md has the limits.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from configs.kinds.text_scorers import SCRIPTS, SCRIPTS_OF, LanguageOptions
from rewards.sections import inside
from rollouts.records import Completion, Judgement, Prompt

OTHER: Final = "other"
"""The script of letters whose script is not among `SCRIPTS`."""
NO_WORDS: Final = "none"
_UNSPACED: Final = frozenset({"Han", "Hiragana", "Katakana", "Thai"})
"""Scripts written without spaces between words: each letter counts as a word."""
_NAMES: Final = {
    **{script.upper(): script for script in SCRIPTS},
    "CJK": "Han",
    "IDEOGRAPHIC": "Han",
    "HENTAIGANA": "Hiragana",
}
_NEUTRAL: Final = frozenset({"MODIFIER", "KATAKANA-HIRAGANA"})
"""How the names of letters begin that belong to several scripts."""
_LETTERLIKE: Final = range(0x2100, 0x2150)
"""Symbols made of letters, such as the sign of the real numbers."""
_BETWEEN: Final = (("`", "`"), ("$$", "$$"), (r"\[", r"\]"), (r"\(", r"\)"), ("$", "$"))
_COMMAND: Final = re.compile(r"\\[A-Za-z]+")


def language(prompt: Prompt, completions: Sequence[Completion], options: LanguageOptions) -> list[Judgement]:
    """The share of words that are written in the scripts of `language` or in `scripts`, in [0, 1].

    The language consistency reward of DeepSeek-R1 (arXiv 2501.12948, section 2.3.2), with scripts in place of
    languages. The tag `script` is the script of most words.

    Raises:
        ValueError: an unknown language or script.
    """
    scripts = frozenset(options.scripts or SCRIPTS_OF.get(options.language, ()))
    if not scripts or not scripts <= frozenset(SCRIPTS):
        raise ValueError(
            f"language: language must be one of {', '.join(SCRIPTS_OF)} and scripts among "
            f"{', '.join(SCRIPTS)}, got language={options.language!r}, scripts={options.scripts}"
        )
    return [_judge(completion.text, scripts, options) for completion in completions]


def _judge(text: str, scripts: frozenset[str], options: LanguageOptions) -> Judgement:
    if options.within:
        text = inside(text, options.within)
    if options.ignore_formulas:
        text = without_formulas(text)
    counts = Counter(words(text))
    total = sum(counts.values())
    if not total:
        return Judgement(score=options.without_words, tags={"script": NO_WORDS})
    # Ties go to the first name, so that the tag does not depend on the order of words.
    leading = min(counts, key=lambda script: (-counts[script], script))
    return Judgement(score=sum(counts[script] for script in scripts) / total, tags={"script": leading})


def words(text: str) -> Iterator[str]:
    """The script of each word: a run of letters of one script, or a letter where words are not spaced."""
    current = ""
    for character in text:
        category = unicodedata.category(character)
        if category[0] == "M" or category == "Cf":  # accents, vowel signs and joiners are inside words
            continue
        script = script_of(character) if category[0] == "L" else ""
        if script and (script != current or script in _UNSPACED):
            yield script
        current = script


@functools.lru_cache(maxsize=8192)
def script_of(letter: str) -> str:
    """The script of a letter, by its Unicode name; `OTHER`, or "" for one of no script of its own.

    Compatibility forms have the script of what they stand for: full-width and mathematical bold letters.
    """
    # Symbols of formulas, which NFKC would turn into Latin letters.
    if ord(letter) in _LETTERLIKE:
        return ""
    first = unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "").partition(" ")[0]
    return "" if first in _NEUTRAL else _NAMES.get(first, OTHER)


def without_formulas(text: str) -> str:
    """The text without code, formulas and TeX commands. Linear in its length, whatever it contains."""
    # Code first: a dollar sign in it opens no formula. A block that is not closed runs to the end, as in
    # Markdown.
    text = _drop(text, "```", "```", to_end=True)
    for opening, closing in _BETWEEN:
        text = _drop(text, opening, closing)
    return _COMMAND.sub(" ", text)


def _drop(text: str, opening: str, closing: str, to_end: bool = False) -> str:
    """The text without what is between the two; what is not closed stays, or with `to_end` goes too."""
    kept, place = [], 0
    while (start := text.find(opening, place)) >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            if to_end:
                kept.append(text[place:start])
                return " ".join(kept)
            break
        kept.append(text[place:start])
        place = end + len(closing)
    return " ".join([*kept, text[place:]])
