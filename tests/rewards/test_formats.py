"""The format tagger: what each grammar takes whole, what it refuses, and that no text can hold it up."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.kinds.scorers import FormatTagsOptions
from rewards import formats
from rewards.formats import GRAMMARS, MARKERS, format_tags, tag
from rollouts.records import Completion, Prompt

NAMES = ("code", "prose", "symbolic", "tagged")
PLAIN = {
    "code": "def : x = 3 + 4 -> 7 ; return 7",
    "prose": "we take 3 plus 4 which is 7 so the answer is 7",
    "symbolic": "$ 3 + 4 = 7 => 7 $",
    "tagged": "<step> 3 + 4 = 7 </step> <answer> 7 </answer>",
}
TWO_STEPS = {
    "code": "def : x = 3 + 4 -> 7 ; x = x * 2 -> 14 ; return 14",
    "prose": "we take 3 plus 4 which is 7 and then 7 times 2 which is 14 so the answer is 14",
    "symbolic": "$ 3 + 4 = 7 , 7 * 2 = 14 => 14 $",
    "tagged": "<step> 3 + 4 = 7 </step> <step> 7 * 2 = 14 </step> <answer> 14 </answer>",
}
THREE_STEPS = {
    "code": "def : x = 30 - 4 -> 26 ; x = x * 2 -> 52 ; x = x - 2 -> 50 ; return 50",
    "prose": "we take 30 minus 4 which is 26 and then 26 times 2 which is 52"
    " and then 52 minus 2 which is 50 so the answer is 50",
    "symbolic": "$ 30 - 4 = 26 , 26 * 2 = 52 , 52 - 2 = 50 => 50 $",
    "tagged": "<step> 30 - 4 = 26 </step> <step> 26 * 2 = 52 </step> <step> 52 - 2 = 50 </step>"
    " <answer> 50 </answer>",
}
WHOLE = [(name, text) for texts in (PLAIN, TWO_STEPS, THREE_STEPS) for name, text in texts.items()]


@pytest.mark.parametrize(("name", "text"), WHOLE)
def test_whole_solutions(name: str, text: str) -> None:
    """One, two and three steps; whitespace does not matter; other formats do not claim it."""
    assert tag(text, NAMES) == name
    assert tag("\n " + text.replace(" ", " \t\n") + " ", NAMES) == name
    assert tag(text, [other for other in NAMES if other != name]) == "none"


@pytest.mark.parametrize(("name", "text"), WHOLE)
def test_every_truncation_is_none(name: str, text: str) -> None:
    """A text cut after any word, or without its first, is no whole solution and no mixture."""
    words = text.split()
    for cut in range(1, len(words)):
        assert tag(" ".join(words[:cut]), NAMES) == "none"
    assert tag(" ".join(words[1:]), NAMES) == "none"


@pytest.mark.parametrize(("name", "text"), WHOLE)
def test_trailing_and_leading_garbage_is_none(name: str, text: str) -> None:
    """The grammar is of the whole text: one more word, or the solution twice, is another text."""
    for broken in (f"{text} 7", f"{text} .", f"{text}.", f"ok {text}", f"{text} {text}", f"{text}\0"):
        assert tag(broken, NAMES) == "none"


@pytest.mark.parametrize("first", NAMES)
@pytest.mark.parametrize("second", NAMES)
def test_two_formats_are_mixed(first: str, second: str) -> None:
    """A solution in one format followed by another's; twice the same one is not a mixture."""
    expected = "none" if first == second else "mixed"
    assert tag(f"{TWO_STEPS[first]} {PLAIN[second]}", NAMES) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "none"),
        ("7", "none"),
        ("the answer is 7", "none"),
        ("3 + 4 = 7", "none"),
        ("we take 3 + 4 which is 7 so the answer is 7", "none"),  # a symbol in prose
        ("def : x = x + 4 -> 7 ; return 7", "none"),  # the first step has two numbers
        ("def : x = 3 + 4 -> 7 ; x = 7 * 2 -> 14 ; return 14", "none"),  # later steps start from x
        ("def : x = -3 + 4 -> 1 ; return 1", "none"),  # numbers are not negative
        ("def : return 7", "none"),  # at least one step
        ("$ => 7 $", "none"),
        ("<answer> 7 </answer>", "none"),
        ("$ 3 / 4 = 0 => 0 $", "none"),
        ("$ ٣ + 4 = 7 => 7 $", "none"),  # ASCII digits only
        ("DEF : X = 3 + 4 -> 7 ; RETURN 7", "none"),
        ("def : x = 3 + 4 -> 7 ; so the answer is 7", "mixed"),
        ("$ 3 plus 4 = 7 => 7 $", "mixed"),
        ("<step> we take 3 plus 4 </step>", "mixed"),
        ("$ 3 + 4 = 7 $ return 7", "mixed"),
        ("returned $7 for answers", "none"),  # markers are whole words
    ],
)
def test_texts_near_the_grammars(text: str, expected: str) -> None:
    """Where the line runs between a format, a mixture and neither."""
    assert tag(text, NAMES) == expected


@pytest.mark.parametrize(
    ("start", "unit"),
    [
        ("", "9"),
        ("def : x = 3 + 4 -> 7 ;", " x = x + 1 -> 8 ;"),
        ("we take 3 plus 4 which is 7", " and then 7 plus 1 which is 8"),
        ("$ 3 + 4 = 7", " , 7 + 1 = 8"),
        ("<step> 3 + 4 = 7 </step>", " <step> 7 + 1 = 8 </step>"),
        ("def : x = ", "1"),
        ("", "\t "),
        ("", "<step"),
        ("", "we "),
    ],
)
def test_hostile_texts_take_linear_time(start: str, unit: str) -> None:
    """A megabyte that almost matches: a pattern that tried other readings would not end."""
    text = start + unit * (1_000_000 // len(unit)) + " !"
    begin = time.monotonic()
    assert tag(text, NAMES) == "none"
    assert time.monotonic() - begin < 2.0


WORDS = sorted({word for _, text in WHOLE for word in text.split()})


@given(st.text() | st.lists(st.sampled_from(WORDS)).map(" ".join), st.sets(st.sampled_from(NAMES)))
def test_tag_is_total(text: str, names: set[str]) -> None:
    """Any text, also of the grammars' own words, gets one of the names asked for, mixed or none."""
    assert tag(text, sorted(names)) in {*names, "mixed", "none"}


STEP = st.tuples(st.integers(0, 10**9), st.sampled_from("+-*"), st.integers(0, 99), st.integers(0, 10**9))


@given(st.lists(STEP, min_size=1, max_size=6), st.integers(0, 10**9))
def test_rendered_solutions_are_recognised(steps: list[tuple[int, str, int, int]], answer: int) -> None:
    """The four renderings, written out a second time here, of any number of steps, right or wrong."""
    words = {"+": "plus", "-": "minus", "*": "times"}
    code = [f"x = {a if not i else 'x'} {op} {b} -> {c} ;" for i, (a, op, b, c) in enumerate(steps)]
    prose = " and then ".join(f"{a} {words[op]} {b} which is {c}" for a, op, b, c in steps)
    equations = [f"{a} {op} {b} = {c}" for a, op, b, c in steps]
    tagged = " ".join(f"<step> {equation} </step>" for equation in equations)
    assert tag(f"def : {' '.join(code)} return {answer}", NAMES) == "code"
    assert tag(f"we take {prose} so the answer is {answer}", NAMES) == "prose"
    assert tag(f"$ {' , '.join(equations)} => {answer} $", NAMES) == "symbolic"
    assert tag(f"{tagged} <answer> {answer} </answer>", NAMES) == "tagged"


def test_a_user_adds_a_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line each in two dicts; a text that two grammars take whole is mixed."""
    monkeypatch.setitem(GRAMMARS, "haiku", re.compile(r"old pond (?:frog )+splash"))
    monkeypatch.setitem(MARKERS, "haiku", re.compile(r"\bfrog\b"))
    monkeypatch.setitem(GRAMMARS, "anything", re.compile(r".*"))
    assert tag("old pond frog frog splash", [*NAMES, "haiku"]) == "haiku"
    assert tag("old pond frog so the answer is 7", [*NAMES, "haiku"]) == "mixed"
    assert tag(PLAIN["code"], ["code", "anything"]) == "mixed"


def test_unknown_grammar_is_named() -> None:
    """A misspelt grammar must not silently tag everything `none`."""
    with pytest.raises(ValueError, match="got 'poetry'"):
        tag("x", ["code", "poetry"])


def test_scorer_tags_and_scores() -> None:
    """1 for a single format, 0 for mixed and none; the tag is called `format`."""
    texts = [PLAIN["prose"], f"{PLAIN['code']} {PLAIN['prose']}", "what"]
    group = [
        Completion(
            sample_id=f"s{number}",
            seed=number,
            token_ids=(),
            text=text,
            finish_reason="stop",
            behavior_logprobs=(),
            versions=((0, 0),),
        )
        for number, text in enumerate(texts)
    ]
    prompt = Prompt(prompt_id="p", messages=(), answer=None, domain="d")
    judged = format_tags(prompt, group, FormatTagsOptions())
    assert [(judgement.score, dict(judgement.tags)) for judgement in judged] == [
        (1.0, {"format": "prose"}),
        (0.0, {"format": formats.MIXED}),
        (0.0, {"format": formats.NONE}),
    ]
