"""Scorers of a text alone: tables worked out by hand, and that no text makes one of them fail."""

# ruff: noqa: RUF001 - letters of other scripts that look like Latin ones are what is tested

from __future__ import annotations

import asyncio
import itertools
import json
import time
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.scorer import ScorerActor
from configs.kinds.scorers import SCORERS
from configs.kinds.text_scorers import (
    SCRIPTS,
    FormatOptions,
    JsonSchemaOptions,
    LanguageOptions,
    RegexOptions,
    RepetitionOptions,
)
from configs.load import load_config
from rewards.json_schema import json_schema
from rewards.language import OTHER, language, script_of, without_formulas, words
from rewards.regex import regex
from rewards.repetition import repeated_share, repetition
from rewards.sections import inside, sections
from rollouts.records import Completion, Judgement, Prompt

PROMPT = Prompt(prompt_id="p1", messages=(("user", "?"),), answer=None, domain="d")
PERSON: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "additionalProperties": False,
}


def completion(text: str, token_ids: Sequence[int] = (), mask: Sequence[bool] | None = None) -> Completion:
    return Completion(
        sample_id="s0",
        seed=0,
        token_ids=tuple(token_ids),
        text=text,
        finish_reason="stop",
        behavior_logprobs=(0.0,) * len(token_ids),
        versions=((0, 0),),
        loss_mask=None if mask is None else tuple(mask),
    )


def judged(function: Callable[..., list[Judgement]], text: str, options: object) -> Judgement:
    (judgement,) = function(PROMPT, [completion(text)], options)
    assert judgement.score is not None
    return judgement


def score(function: Callable[..., list[Judgement]], text: str, options: object) -> float:
    found = judged(function, text, options).score
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("units", "size", "share"),
    [
        ("abcd", 2, 0.0),
        ("aaaa", 2, 2 / 3),  # aa three times
        ("aaaaa", 2, 0.75),  # TRL's example
        ("ababab", 2, 3 / 5),  # ab ba ab ba ab
        ("ababab", 1, 4 / 6),
        ("ab", 2, 0.0),
        ("a", 2, 0.0),
        ("", 1, 0.0),
    ],
)
def test_repeated_share_by_hand(units: str, size: int, share: float) -> None:
    assert repeated_share(units, size) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "options", "wanted"),
    [
        ("a b c a b c", RepetitionOptions(), -0.25),  # abc bca cab abc
        ("A b C a B c", RepetitionOptions(), -0.25),
        ("a b c a b c", RepetitionOptions(max_penalty=-2.0), -0.5),
        ("a b c", RepetitionOptions(max_penalty=0.0), 0.0),
        ("a b", RepetitionOptions(), 0.0),
        ("", RepetitionOptions(), 0.0),
        ("哈哈哈哈", RepetitionOptions(unit="characters", ngram_size=2), -2 / 3),
        ("哈哈哈哈", RepetitionOptions(), 0.0),
    ],
)
def test_repetition_by_hand(text: str, options: RepetitionOptions, wanted: float) -> None:
    assert score(repetition, text, options) == pytest.approx(wanted)


def test_repetition_of_tokens_counts_only_sampled_ones() -> None:
    """TRL's numbers; tokens of an environment are not the policy's repetition."""
    options = RepetitionOptions(ngram_size=2, unit="tokens")
    rows = [
        completion("", [1, 2, 3, 4]),
        completion("", [5, 5, 5, 5, 5]),
        completion("", [5, 5, 5, 5, 5], [True, True, False, False, False]),
    ]
    found = repetition(PROMPT, rows, options)
    assert [each.score for each in found] == pytest.approx([0.0, -0.75, 0.0])
    assert str(found[0].score) == "0.0", "not -0.0"


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
def test_repetition_is_bounded_and_grows_by_repeating(units: list[int], size: int) -> None:
    """A text said twice repeats at least as much as the text."""
    share = repeated_share(units, size)
    assert 0.0 <= share < 1.0
    assert repeated_share(units * 2, size) >= share


@pytest.mark.parametrize(
    ("text", "options", "wanted", "script"),
    [
        ("the answer is seven", LanguageOptions(), 1.0, "Latin"),
        ("la réponse est sept", LanguageOptions(), 1.0, "Latin"),  # the limit: one script
        ("答案是七 ok", LanguageOptions(), 0.2, "Han"),  # four letters that count as words, and ok
        ("答案是七 ok", LanguageOptions(language="zh"), 0.8, "Han"),
        ("答えは七です", LanguageOptions(language="ja"), 1.0, "Hiragana"),
        ("答えは七です", LanguageOptions(language="zh"), 2 / 6, "Hiragana"),
        ("답은 일곱", LanguageOptions(language="ko"), 1.0, "Hangul"),
        ("ответ seven", LanguageOptions(language="ru"), 0.5, "Cyrillic"),
        ("उत्तर सात है", LanguageOptions(language="hi"), 1.0, "Devanagari"),
        ("ответ seven", LanguageOptions(scripts=("Latin", "Cyrillic")), 1.0, "Cyrillic"),
        ("答案是 $x + y$ ```python\nreturn x\n```", LanguageOptions(language="zh"), 1.0, "Han"),
        ("答案是 $x + y$", LanguageOptions(language="zh", ignore_formulas=False), 3 / 5, "Han"),
        ("答案 𝐲𝐞𝐬 𝐧𝐨", LanguageOptions(language="zh"), 0.5, "Han"),  # mathematical bold is no way out
        ("ℝ 42 + 7 = 49!", LanguageOptions(), 0.0, "none"),
        ("42", LanguageOptions(without_words=1.0), 1.0, "none"),
        ("", LanguageOptions(), 0.0, "none"),
        ("<think>да</think> yes", LanguageOptions(within="think"), 0.0, "Cyrillic"),
        ("да</think> yes", LanguageOptions(within="think", language="ru"), 1.0, "Cyrillic"),
        ("да yes", LanguageOptions(within="think", language="ru"), 0.0, "none"),
        ("ሰላም yes", LanguageOptions(), 0.5, "Latin"),  # Ethiopic is another script
    ],
)
def test_language_by_hand(text: str, options: LanguageOptions, wanted: float, script: str) -> None:
    found = judged(language, text, options)
    assert found.score == pytest.approx(wanted) and found.tags == {"script": script}


def test_scripts_of_letters_agree_with_a_library() -> None:
    """Of 132,000 letters all but 1 in 1,000 have the script of Unicode's table, as package regex reads it.

    Left out are mathematical letters, which Unicode gives no script and this scorer that of the letter shown.
    """
    library = pytest.importorskip("regex")
    patterns = {script: library.compile(rf"\p{{Script={script}}}") for script in SCRIPTS}
    common = library.compile(r"\p{Script=Common}|\p{Script=Inherited}")
    wrong = total = 0
    for number in itertools.chain(range(0x1D400), range(0x1D800, 0x110000)):
        letter = chr(number)
        if unicodedata.category(letter)[0] == "L":
            known = next((script for script, pattern in patterns.items() if pattern.match(letter)), OTHER)
            total += 1
            wrong += script_of(letter) != ("" if common.match(letter) else known)
    assert total > 130_000 and wrong / total < 1e-3


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a $b$ c", "a c"),
        ("a $$b$$ c", "a c"),
        (r"a \(b\) c \[d\] e", "a c e"),
        ("a `b` c", "a c"),
        ("a ```b``` c ```d", "a c"),  # cut off inside the code
        (r"\frac \alpha a", "a"),
        ("it costs $5", "it costs $5"),
        ("", ""),
    ],
)
def test_formulas_are_left_out(text: str, wanted: str) -> None:
    assert " ".join(without_formulas(text).split()) == wanted


def test_words_by_hand() -> None:
    assert list(words("don't stop")) == ["Latin", "Latin", "Latin"]
    assert list(words("abcда")) == ["Latin", "Cyrillic"]
    assert list(words("カー")) == ["Katakana"]


@pytest.mark.parametrize(
    ("text", "options", "wanted"),
    [
        ("so 7.", RegexOptions(pattern=r"\d"), 1.0),
        ("so it is", RegexOptions(pattern=r"\d"), 0.0),
        ("7.", RegexOptions(pattern=r"\d", match="full"), 0.0),
        ("7", RegexOptions(pattern=r"\d", match="full"), 1.0),
        ("1 2 3", RegexOptions(pattern=r"\d", match="count", max_count=4), 0.75),
        ("1 2 3", RegexOptions(pattern=r"\d", match="count", max_count=2), 1.0),
        ("1 2 3", RegexOptions(pattern=r"\d", match="count", max_count=4, negate=True), 0.25),
        ("sorry", RegexOptions(pattern="SORRY", negate=True), 1.0),
        ("sorry", RegexOptions(pattern="SORRY", negate=True, ignore_case=True), 0.0),
        ("a\nb", RegexOptions(pattern="^b"), 0.0),
        ("a\nb", RegexOptions(pattern="^b", multiline=True), 1.0),
        ("a\nb", RegexOptions(pattern="a.b"), 0.0),
        ("a\nb", RegexOptions(pattern="a.b", dotall=True), 1.0),
        ("", RegexOptions(pattern="a"), 0.0),
    ],
)
def test_regex_by_hand(text: str, options: RegexOptions, wanted: float) -> None:
    assert score(regex, text, options) == wanted


@pytest.mark.parametrize(
    ("text", "options", "wanted", "tag"),
    [
        ('so: {"name": "Ada"}', JsonSchemaOptions(schema=PERSON), 1.0, "ok"),
        ('{"name": 3}', JsonSchemaOptions(schema=PERSON), 0.0, "schema"),
        ('{"name": 3}', JsonSchemaOptions(schema=PERSON, parsed=0.25), 0.25, "schema"),
        ('{"name": "Ada", "age": -1}', JsonSchemaOptions(schema=PERSON), 0.0, "schema"),
        ('{"name": "a"} then {"name": 3}', JsonSchemaOptions(schema=PERSON), 0.0, "schema"),
        ('{"name": "a"}, as in [1]', JsonSchemaOptions(schema=PERSON), 1.0, "ok"),
        ('[{"name": "a"}]', JsonSchemaOptions(schema=PERSON), 0.0, "schema"),
        ('{"name": "Ada"', JsonSchemaOptions(schema=PERSON), 0.0, "syntax"),
        ('{"name": "Ada",}', JsonSchemaOptions(schema=PERSON), 0.0, "syntax"),
        ("{'name': 'Ada'}", JsonSchemaOptions(schema=PERSON), 0.0, "syntax"),
        ('{"x": NaN}', JsonSchemaOptions(), 0.0, "syntax"),
        ("my name is Ada", JsonSchemaOptions(schema=PERSON), 0.0, "missing"),
        ("", JsonSchemaOptions(), 0.0, "missing"),
        ("{}", JsonSchemaOptions(), 1.0, "ok"),
        ('{"name": "Ada"}', JsonSchemaOptions(schema=PERSON, where="whole"), 1.0, "ok"),
        ('so {"name": "Ada"}', JsonSchemaOptions(schema=PERSON, where="whole"), 0.0, "syntax"),
        ("  ", JsonSchemaOptions(where="whole"), 0.0, "missing"),
        ('```json\n{"name": "a"}\n```', JsonSchemaOptions(schema=PERSON, where="fenced"), 1.0, "ok"),
        (
            '```\n3\n```\n```json\n{"name": "a"}\n```',
            JsonSchemaOptions(schema=PERSON, where="fenced"),
            1.0,
            "ok",
        ),
        (
            '```json\n{"name": "a"}\n```\n```json\n{',
            JsonSchemaOptions(schema=PERSON, where="fenced"),
            1.0,
            "ok",
        ),
        ('{"name": "a"}', JsonSchemaOptions(schema=PERSON, where="fenced"), 0.0, "missing"),
        ('```json\n{"name": "a"}', JsonSchemaOptions(schema=PERSON, where="fenced"), 0.0, "missing"),
        ("[" * 5000, JsonSchemaOptions(), 0.0, "syntax"),
        ("[" * 5000 + "]" * 5000, JsonSchemaOptions(where="whole"), 0.0, "syntax"),
        ("[" + "9" * 5000 + "]", JsonSchemaOptions(), 0.0, "syntax"),
        # Not an error, which would be no score: no float holds the numbers.
        ("[1" + "0" * 400 + "]", JsonSchemaOptions(schema={"items": {"multipleOf": 0.5}}), 0.0, "schema"),
        ("[1e999]", JsonSchemaOptions(schema={"items": {"multipleOf": 0.1}}), 0.0, "schema"),
        ("[NaN, [7]] then [", JsonSchemaOptions(), 1.0, "ok"),
        # Read again from each of 900 brackets, which took over 1 s: past `limit_s` there is no score.
        ("[" * 900 + "1," * 20_000, JsonSchemaOptions(), 0.0, "syntax"),
        ("[" * 900 + "1," * 20_000 + "NaN" + "]" * 900, JsonSchemaOptions(), 0.0, "syntax"),
    ],
)
def test_json_schema_by_hand(text: str, options: JsonSchemaOptions, wanted: float, tag: str) -> None:
    found = judged(json_schema, text, options)
    assert (found.score, found.tags) == (wanted, {"json": tag})


def test_a_schema_fetches_nothing() -> None:
    """A reference to another document is an error, and so a null score; nothing is looked up."""
    options = JsonSchemaOptions(schema={"$ref": "http://127.0.0.1:9/schema.json"})
    with pytest.raises(Exception, match=r"127\.0\.0\.1:9"):
        json_schema(PROMPT, [completion("{}")], options)


GOOD = "<think>\nsum\n</think>\n<answer>\n7\n</answer>"


@pytest.mark.parametrize(
    ("text", "options", "wanted", "partial", "structure"),
    [
        (GOOD, FormatOptions(), 1.0, 1.0, "ok"),
        (GOOD, FormatOptions(own_lines=True), 1.0, 1.0, "ok"),
        ("<think>a</think><answer>7</answer>", FormatOptions(), 1.0, 1.0, "ok"),
        ("<think>a</think><answer>7</answer>", FormatOptions(own_lines=True), 0.0, 0.8, "lines"),
        ("<think>a</think> so <answer>7</answer>", FormatOptions(), 0.0, 0.8, "outside"),
        ("<think>a</think> so <answer>7</answer>", FormatOptions(outside="after"), 0.0, 0.8, "outside"),
        ("<think>a</think> so <answer>7</answer>", FormatOptions(outside="any"), 1.0, 1.0, "ok"),
        ("<think>a</think><answer>7</answer> bye", FormatOptions(), 0.0, 0.8, "outside"),
        ("<think>a</think><answer>7</answer> bye", FormatOptions(outside="after"), 1.0, 1.0, "ok"),
        ("hi <think>a</think><answer>7</answer>", FormatOptions(outside="after"), 0.0, 0.8, "outside"),
        ("<answer>7</answer><think>a</think>", FormatOptions(), 0.0, 0.8, "order"),
        ("<think>a<answer>7</answer></think>", FormatOptions(), 0.0, 0.8, "order"),
        ("<think>a</think>7", FormatOptions(), 0.0, 0.4, "missing"),
        ("<think>a</think><think>b</think><answer>7</answer>", FormatOptions(), 0.0, 0.4, "repeated"),
        ("<think>a</think><answer>7", FormatOptions(), 0.0, 0.6, "missing"),
        ("", FormatOptions(), 0.0, 0.0, "missing"),
        ("<think> </think><answer>7</answer>", FormatOptions(min_chars=1), 0.0, 0.8, "short"),
        ("<think>a</think><answer>7</answer>", FormatOptions(min_chars=1), 1.0, 1.0, "ok"),
        ("a</think><answer>7</answer>", FormatOptions(opened=True), 1.0, 1.0, "ok"),
        ("<think>a</think><answer>7</answer>", FormatOptions(opened=True), 0.0, 0.6, "repeated"),
        ("</think><answer>7</answer>", FormatOptions(opened=True, min_chars=1), 0.0, 0.8, "short"),
        # TRL's think_format_reward
        ("<think>\nso\n</think>\n7", FormatOptions(tags=("think",), outside="after"), 1.0, 1.0, "ok"),
        ("<think>\nso\n7", FormatOptions(tags=("think",), outside="after"), 0.0, 1 / 3, "missing"),
        ("7 <think>so</think>", FormatOptions(tags=("think",), outside="after"), 0.0, 2 / 3, "outside"),
    ],
)
def test_format_by_hand(
    text: str, options: FormatOptions, wanted: float, partial: float, structure: str
) -> None:
    found = judged(sections, text, options)
    assert (found.score, found.tags) == (wanted, {"structure": structure})
    options.partial = True
    assert score(sections, text, options) == pytest.approx(partial)


def test_inside_by_hand() -> None:
    assert inside("x<a>y</a>z", "a") == "y" and inside("y</a>z", "a") == "y" and inside("<a>y", "a") == ""


PLAIN: list[tuple[Callable[..., list[Judgement]], object]] = [
    *((repetition, RepetitionOptions(unit=unit)) for unit in ("words", "tokens", "characters")),
    (language, LanguageOptions()),
    (language, LanguageOptions(language="zh", within="think", ignore_formulas=False)),
    (regex, RegexOptions(pattern=r"(\w+)\s+\1", match="count", max_count=3, negate=True)),
    *((json_schema, JsonSchemaOptions(schema=PERSON, where=where)) for where in ("last", "fenced", "whole")),
    (sections, FormatOptions()),
    (sections, FormatOptions(tags=("think",), opened=True, own_lines=True, min_chars=2, partial=True)),
]
PIECES = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "\n",
        "```",
        "{",
        "[",
        '"a":',
        "}",
        "]",
        "$",
        "答",
        "да",
        "\\[",
    ]
)
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=())), st.lists(PIECES | st.text(max_size=3)).map("".join)
)


@pytest.mark.parametrize(("function", "options"), PLAIN)
@given(text=TEXTS)
def test_any_text_has_a_score_between_the_bounds(
    function: Callable[..., list[Judgement]], options: object, text: str
) -> None:
    """No exception, the same score again, at most 1 away from 0, and tags that can be stored."""
    found, again = judged(function, text, options), judged(function, text, options)
    assert found == again and found.score is not None
    low = -1.0 if function is repetition else 0.0
    assert low <= found.score <= low + 1.0
    assert all(value.isascii() for value in found.tags.values())


@pytest.mark.parametrize(("function", "options"), PLAIN)
@pytest.mark.parametrize(
    "text", ["<think>" * 50_000, "$" * 100_001, r"\(" * 50_000, "[1," * 50_000, "a " * 100_000, "`" * 99_999]
)
def test_long_texts_take_no_long_time(
    function: Callable[..., list[Judgement]], options: object, text: str
) -> None:
    """Kinds without a process of their own must be linear; the others have their limit besides."""
    start = time.monotonic()
    judged(function, text, options)
    assert time.monotonic() - start < 5.0


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ("{kind: regex}", "scorers.s.pattern = '': must not be empty"),
        ("{kind: regex, pattern: '('}", "must be a regular expression"),
        ("{kind: json_schema, schema: {type: objekt}}", r"at \$.type: 'objekt' is not valid"),
        ("{kind: json_schema, schema: {$schema: [1]}}", "must be a JSON Schema"),
        ("{kind: format, tags: [think, think]}", "each once"),
        ("{kind: format, tags: ['<think>']}", "without their brackets"),
        ("{kind: language, language: klingon}", "must be one of ar, bg"),
        ("{kind: language, scripts: [latin]}", "must be among Arabic"),
        ("{kind: repetition, max_penalty: 1.0}", "must not be above 0"),
        ("{kind: repetition, ngram_size: 0}", "must be above 0"),
    ],
)
def test_wrong_options_are_refused_with_the_key(scorer: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config("debug", [f"scorers.s={scorer}"])


def test_a_pattern_that_never_ends_is_killed() -> None:
    """Exponential backtracking: a null score with a status within the limit, and the next sample scored."""
    actor = ScorerActor("regex", RegexOptions(pattern=r"(a+)+$", limit_s=0.5))
    try:
        start = time.monotonic()
        group = [completion("a" * 60 + "b"), completion("aaa")]
        slow, good = asyncio.run(actor.score(PROMPT, group))
        assert (slow.score, slow.status) == (None, "timeout")
        assert (good.score, good.status) == (1.0, "ok")
        assert time.monotonic() - start < 10.0
    finally:
        actor.close()


def test_a_schema_reaches_its_process_unchanged() -> None:
    """Lists inside a schema stay lists: as tuples they would be no JSON."""
    actor = ScorerActor("json_schema", JsonSchemaOptions(schema=json.loads(json.dumps(PERSON))))
    try:
        (found,) = asyncio.run(actor.score(PROMPT, [completion('{"name": "Ada"}')]))
        assert (found.score, found.tags) == (1.0, {"json": "ok"})
    finally:
        actor.close()


def test_every_kind_is_in_the_table_of_scorers() -> None:
    assert {"repetition", "language", "regex", "json_schema", "format"} <= SCORERS.keys()
    assert all(SCORERS[name].isolated for name in ("regex", "json_schema"))
