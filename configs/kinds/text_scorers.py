"""Scorers of a text alone: repetition, language, a pattern, JSON, sections. Used by `configs.kinds.scorers`.

None of them reads the prompt's answer. What they score, case by case, is in docs/scorers/.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from configs.errors import Broken
from configs.fields import NOT_EMPTY, NOT_NEGATIVE, NOTHING, POSITIVE, SHARE, Rule, one_of, option
from configs.kinds.base import Kind, Options

SCRIPTS_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "ar": ("Arabic",),
    "bg": ("Cyrillic",),
    "bn": ("Bengali",),
    "de": ("Latin",),
    "el": ("Greek",),
    "en": ("Latin",),
    "es": ("Latin",),
    "fa": ("Arabic",),
    "fr": ("Latin",),
    "he": ("Hebrew",),
    "hi": ("Devanagari",),
    "it": ("Latin",),
    "ja": ("Hiragana", "Katakana", "Han"),
    "ka": ("Georgian",),
    "ko": ("Hangul",),
    "mr": ("Devanagari",),
    "pl": ("Latin",),
    "pt": ("Latin",),
    "ru": ("Cyrillic",),
    "ta": ("Tamil",),
    "te": ("Telugu",),
    "th": ("Thai",),
    "tr": ("Latin",),
    "uk": ("Cyrillic",),
    "vi": ("Latin",),
    "zh": ("Han",),
}
"""ISO 639-1 code of a language -> the Unicode scripts that it is written in."""
SCRIPTS: Final = tuple(
    sorted({script for scripts in SCRIPTS_OF.values() for script in scripts} | {"Armenian"})
)
"""The scripts that `language` tells apart, by their Unicode names."""

_NOT_ABOVE_ZERO: Final = Rule(lambda value: value <= 0, "must not be above 0: it is a penalty")
_KNOWN_SCRIPTS: Final = Rule(
    lambda scripts: set(scripts) <= set(SCRIPTS), f"must be among {', '.join(SCRIPTS)}", SCRIPTS
)
_TAG_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.|-]*")
_TAG_NAMES: Final = Rule(
    lambda names: (
        bool(names) and len({*names}) == len(names) and all(_TAG_NAME.fullmatch(name) for name in names)
    ),
    "must be names of tags without their brackets, such as think, each once",
)
_TAG_OR_NONE: Final = Rule(
    lambda name: not name or bool(_TAG_NAME.fullmatch(name)),
    "must be a tag's name without its brackets, or empty",
)


@dataclass
class RepetitionOptions(Options):
    """`max_penalty` times the share of n-grams that repeat an earlier one, as in TRL and Open-R1."""

    ngram_size: int = option(3, POSITIVE)
    """Units in an n-gram. A completion with fewer units scores 0."""
    max_penalty: float = option(-1.0, _NOT_ABOVE_ZERO)
    """Score of a text that only repeats; the score of one without repetition is 0."""
    unit: str = option("words", one_of("words", "tokens", "characters"))
    """words (lower-cased, Open-R1), tokens (those sampled, TRL) or characters (for text without spaces)."""

    def reads_tokens(self) -> bool:
        return self.unit == "tokens"


@dataclass
class LanguageOptions(Options):
    """Share of words in the scripts of a language: DeepSeek-R1's reward against mixing languages.

    It tells scripts apart, not languages of one script: English and French score alike.
    """

    language: str = option("en", one_of(*SCRIPTS_OF))
    """Its scripts count; see `scripts`."""
    scripts: tuple[str, ...] = option((), _KNOWN_SCRIPTS)
    """Scripts that count instead of those of `language`."""
    within: str = option("", _TAG_OR_NONE)
    """Only the text inside this tag counts, such as think; empty for the whole text."""
    ignore_formulas: bool = True
    """Leave out code and formulas, whose letters are Latin in any language."""
    without_words: float = option(0.0, SHARE)
    """Score of a text without any word."""


@dataclass
class RegexOptions(Options):
    """Whether a regular expression matches, in a process that is killed after `limit_s` seconds."""

    pattern: str = option("", NOT_EMPTY)
    """Of Python's `re`."""
    match: str = option("search", one_of("search", "full", "count"))
    """search (anywhere), full (the whole text) or count (the number of matches / `max_count`, at most 1)."""
    max_count: int = option(1, POSITIVE)
    """Matches that score 1 with `match: count`."""
    negate: bool = False
    """Score 1 - score: a text is to be without the pattern."""
    ignore_case: bool = False
    """Whether the pattern ignores the case of letters."""
    multiline: bool = False
    """^ and $ match at every line."""
    dotall: bool = False
    """The dot matches line breaks too."""
    limit_s: float = option(1.0, POSITIVE)
    """Seconds for one sample. Past it the score is null, so another limit may give other scores."""
    num_processes: int = option(1, POSITIVE, NOTHING)
    """Sandbox processes of each replica."""

    def check(self) -> Iterator[Broken]:
        try:
            re.compile(self.pattern)
        except (re.error, RecursionError, OverflowError) as error:
            yield "pattern", f"must be a regular expression: {error}"


@dataclass
class JsonSchemaOptions(Options):
    """1 if the JSON in a text follows `schema` (JSON Schema), `parsed` if it is only JSON, else 0."""

    schema: dict[str, Any] = field(default_factory=dict)
    """Of any draft that jsonschema knows, named by `$schema`; empty accepts every object and array."""
    where: str = option("last", one_of("last", "fenced", "whole"))
    """last (the last object or array), fenced (the last code block) or whole (the whole text)."""
    parsed: float = option(0.0, SHARE)
    """Score of JSON that does not follow the schema."""
    limit_s: float = option(2.0, POSITIVE)
    """Seconds for one sample. Past it the score is null, so another limit may give other scores."""
    num_processes: int = option(1, POSITIVE, NOTHING)
    """Sandbox processes of each replica."""

    def check(self) -> Iterator[Broken]:
        from jsonschema import SchemaError  # takes a while to import: only for runs that use it
        from jsonschema.validators import validator_for

        if not isinstance(self.schema.get("$schema", ""), str):
            yield "schema", "must be a JSON Schema: at $.$schema: must be text"
            return
        try:
            validator_for(self.schema).check_schema(self.schema)
        except SchemaError as error:
            yield "schema", f"must be a JSON Schema: at {error.json_path}: {error.message[:200]}"


@dataclass
class FormatOptions(Options):
    """Whether the text is made of the sections `tags`, each once and in this order: <think>...</think>."""

    tags: tuple[str, ...] = option(("think", "answer"), _TAG_NAMES)
    """Their names, without the brackets."""
    outside: str = option("space", one_of("space", "after", "any"))
    """Text allowed outside sections: space (white space), after (any after the last section) or any."""
    opened: bool = False
    """The prompt ends with the first opening tag, as in templates of reasoning models: the text has none."""
    own_lines: bool = False
    """Every tag must be alone on its line."""
    min_chars: int = option(0, NOT_NEGATIVE)
    """Characters that each section must have, white space at its ends not counted."""
    partial: bool = False
    """Score the share of checks that hold: each tag once, and all of the rest (as tag_count_reward)."""


@dataclass
class PlanTagsOptions(Options):
    """Tags each completion's `strategy`: the strategic n-grams that it contains. Scores 1 if there are any.

    The n-grams are mined from right completions of earlier runs: `polyphony mine`.
    """

    path: str = option("", NOT_EMPTY)
    """The n-grams: a file of `polyphony mine`; relative to the folder you start in."""
    ordered: bool = False
    """Whether the order of the n-grams counts, and each time that one occurs."""
    max_grams: int = option(8, POSITIVE)
    """N-grams that a tag has at most: the most frequent ones of the file, or with `ordered` the first."""

    def reads_tokens(self) -> bool:
        return True

    def files(self) -> tuple[str, ...]:
        return (self.path,)


TEXT_SCORERS: Final[dict[str, Kind]] = {
    "repetition": Kind(RepetitionOptions, "rewards.repetition:repetition"),
    "language": Kind(LanguageOptions, "rewards.language:language", other_tags=("script",)),
    "regex": Kind(RegexOptions, "rewards.regex:regex", isolated=True, warm_up="rewards.regex:warm_up"),
    "json_schema": Kind(
        JsonSchemaOptions,
        "rewards.json_schema:json_schema",
        isolated=True,
        warm_up="rewards.json_schema:warm_up",
        other_tags=("json",),
    ),
    "format": Kind(FormatOptions, "rewards.sections:sections", other_tags=("structure",)),
    "plan_tags": Kind(
        PlanTagsOptions,
        "trainer.token_advantages.plan_tags:plan_tags",
        tags=("strategy",),
        start="trainer.token_advantages.plan_tags:locate_grams",
    ),
}
