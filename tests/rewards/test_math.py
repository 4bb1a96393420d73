"""`math` on answers as models and datasets write them: the table of cases by kind, refusals, hostile text."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
from examples import examples
from hypothesis import example, given
from hypothesis import strategies as st

from actors.scorer import ScorerActor
from configs.kinds.scorers import MathOptions
from rewards.math import math
from rewards.math_answers import find_answer
from rewards.math_numbers import close, read_quantity
from rewards.math_spelling import plain
from rollouts.files import Json
from rollouts.records import Completion, Judgement, Prompt

CASES = [json.loads(line) for line in (Path(__file__).parent / "math_cases.jsonl").read_text().splitlines()]
KINDS = sorted({case["kind"] for case in CASES})


def prompt(answer: str | None, ground_truth: Json = None) -> Prompt:
    return Prompt(prompt_id="p1", messages=(), answer=answer, domain="math", ground_truth=ground_truth)


def completion(text: str) -> Completion:
    return Completion(
        sample_id="s0",
        seed=0,
        token_ids=(),
        text=text,
        finish_reason="stop",
        behavior_logprobs=(),
        versions=((0, 0),),
    )


def judge(gold: str | None, text: str, ground_truth: Json = None) -> Judgement:
    return math(prompt(gold, ground_truth), [completion(text)], MathOptions())[0]


def score_or_none(gold: str, text: str) -> float | None:
    """The score; None where the gold is refused."""
    try:
        return judge(gold, text).score
    except ValueError as error:
        assert "must be an expression" in str(error)
        return None


@pytest.mark.parametrize("kind", KINDS)
def test_every_case_of_a_kind_gets_its_right_score(kind: str) -> None:
    """`math_cases.jsonl`: gold, text and the right score; null where the gold must be refused."""
    cases = [case for case in CASES if case["kind"] == kind]
    wrong = [
        (case["name"], case["gold"], case["text"], got)
        for case in cases
        if (got := score_or_none(case["gold"], case["text"])) != case["right"]
    ]
    assert len(cases) > 5
    assert wrong == []


def test_the_table_holds_right_and_wrong_answers_of_every_kind() -> None:
    """A grader that pays everyone, or nobody, must fail on each kind; names are distinguished."""
    assert len({(case["kind"], case["name"]) for case in CASES}) == len(CASES)
    for kind in KINDS:
        scores = {case["right"] for case in CASES if case["kind"] == kind}
        assert scores == ({None} if kind == "math-gold-refused" else {0.0, 1.0}), kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_gold_is_right_as_its_own_answer(kind: str) -> None:
    """Whatever spelling a dataset uses, a model that writes the same in its box is right."""
    golds = {case["gold"] for case in CASES if case["kind"] == kind and case["right"] is not None}
    plain_golds = sorted(
        gold for gold in golds if not any(mark in gold for mark in ("####", "boxed", "<answer>", '["'))
    )
    assert [gold for gold in plain_golds if judge(gold, rf"So \boxed{{{gold}}}").score != 1.0] == []


@pytest.mark.parametrize(
    ("gold", "text", "score", "answer"),
    [
        ("1/2", r"so \boxed{\frac{2}{4}}", 1.0, "1/2"),
        (r"\frac{1}{2}", "the answer is 0.5", 1.0, "1/2"),
        (r"$\frac12$", r"$x = \frac{1}{2}$", 1.0, "1/2"),
        (r"\boxed{12}", "so it is 12.", 1.0, "12"),
        ("x^2+1", r"\boxed{1 + x^2}", 1.0, "x**2 + 1"),
        ("7", r"\boxed{8}", 0.0, "8"),
        ("7", "no number here", 0.0, "no number here"),
        ("7", "", 0.0, None),
    ],
)
def test_score_and_answer(gold: str, text: str, score: float, answer: str | None) -> None:
    """Gold as text, LaTeX, delimited and boxed; equal in value, not in spelling."""
    judged = judge(gold, text)
    assert (judged.score, judged.answer_ok, judged.answer) == (score, score == 1.0, answer)


def test_the_end_of_a_long_text_is_read() -> None:
    """`max_chars` cuts the front: the answer comes last."""
    text = r"\boxed{8}" + " " * 100 + r"\boxed{7}"
    (judged,) = math(prompt("7"), [completion(text)], MathOptions(max_chars=20))
    assert (judged.score, judged.answer) == (1.0, "7")
    with pytest.raises(ValueError, match="max_chars must be at least 1"):
        math(prompt("7"), [completion(text)], MathOptions(max_chars=0))


@pytest.mark.parametrize("gold", [None, "", "  "])
def test_a_missing_gold_is_refused(gold: str | None) -> None:
    """A row without an answer is an error of the data, not a wrong sample."""
    with pytest.raises(ValueError, match="prompt 'p1' must be an expression"):
        judge(gold, "7")


def test_a_refused_gold_names_prompt_and_answer() -> None:
    """The message must lead to the row of the dataset."""
    with pytest.raises(ValueError, match=r"prompt 'p1' must be an expression.*got '\?\?\?'"):
        judge("???", r"\boxed{5}")
    with pytest.raises(ValueError, match=r"got \[\]"):
        judge(None, r"\boxed{5}", [])
    with pytest.raises(ValueError, match=r"\(9000 characters\)|\(9002 characters\)"):
        judge("a b c " * 1500, r"\boxed{5}")


def test_a_list_of_answers_accepts_each() -> None:
    """Datasets of verl's form may have several accepted answers; numbers in a list count as text."""
    truth: Json = ["1/2", 3, 1e-05]
    assert [judge(None, rf"\boxed{{{text}}}", truth).score for text in ("0.5", "3", "0.00001", "1/3")] == [
        1.0,
        1.0,
        1.0,
        0.0,
    ]


@pytest.mark.parametrize(
    ("texts", "answer"),
    [
        ((r"\boxed{\frac{2}{4}}", r"\boxed{0.5}", "the answer is 1/2"), "1/2"),
        ((r"\boxed{x+1}", r"\boxed{1+x}", "$y = x + 1$"), "x + 1"),
        ((r"\boxed{\text{Paris}}", "The answer is Paris.", r"\boxed{paris}"), "paris"),
        ((r"\boxed{(1, 2)}", r"\boxed{\left(1,2\right)}"), "(1, 2)"),
        ((r"\boxed{50\%}",), "50%"),
    ],
)
def test_answers_read_alike_are_written_alike(texts: tuple[str, ...], answer: str) -> None:
    """Bonuses count the different answers of a group: a spelling is no other answer."""
    assert {judge("7", text).answer for text in texts} == {answer}


@pytest.mark.parametrize(
    ("first", "second", "decimals", "same"),
    [
        ("1/3", "0.333333", 6, True),
        ("1/3", "0.333334", 6, False),
        ("1/3", "0.33333", 5, False),
        ("2/3", "0.666666", 6, True),
        ("2/3", "0.666668", 6, False),
        ("1/12", "0.083333", 6, True),
        ("0.0000012", "0.000001", 6, False),
        ("1/3", "1/4", None, False),
        ("0.1", "0.10000000000000001", 17, True),
    ],
)
def test_close_rounds_to_long_decimals_only(
    first: str, second: str, decimals: int | None, same: bool
) -> None:
    """Six decimals and five digits that count; two fractions must be equal."""
    quantities = [read_quantity(text) for text in (first, second)]
    assert quantities[0] is not None
    assert quantities[1] is not None
    assert quantities[1].decimals == decimals
    assert close(quantities[0].value, quantities[1].value, None, decimals) is same
    assert close(quantities[1].value, quantities[0].value, decimals, None) is same


PIECES = st.sampled_from(
    [
        r"\boxed{",
        r"}",
        r"{",
        r"(",
        r")",
        r"[",
        r"]",
        r"\{",
        r"\}",
        r"$",
        r"$$",
        r"\(",
        r"\)",
        r"\[",
        r"\]",
        r"\frac",
        r"\frac{1}{2}",
        r"\sqrt",
        r"\text{",
        r"\begin{cases}",
        r"\end{cases}",
        r"&",
        r"\\",
        r"\pm",
        r"^",
        r"_",
        r"<answer>",
        r"</answer>",
        r"</think>",
        r"####",
        r"answer",
        r"is:",
        r"the",
        r"or",
        r"and",
        r"to",
        r",",
        r";",
        r":",
        r".",
        r"-",
        r"+",
        r"*",
        r"/",
        r"=",
        r"<",
        r">",
        r"%",
        r"°",
        r"\$",
        r"€",
        r"1",
        r"2",
        r"17",
        r"0.5",
        r"1,000",
        r"1e-05",
        r"2/3",
        r"3:30",
        r"2020-03-04",
        r"x",
        r"y",
        r"A",
        r"B",
        r"(C)",
        r"cm",
        r"hours",
        r"March",
        r"5",
        r"½",
        r"²",
        r"−",
        r"π",
        r"≤",
        r"\infty",
        r"\emptyset",
        r"\cup",
        r"\in",
        r"\overline",
        r"\!",
        r"?",
        r"!",
        r"'",
        r"**",
        r"答案",
        r"个",
        " ",
        "\n",
        "\x00",
        "\u200b",
    ]
)


@examples(250)
@given(st.lists(PIECES, max_size=12), st.sampled_from(["", " "]))
def test_any_text_gets_a_judgement(pieces: list[str], between: str) -> None:
    """Whatever a model writes scores 0 or 1, and is never an exception."""
    text = between.join(pieces)
    for gold in ("5", "x+1", "Paris", "(1,2)"):
        judged = judge(gold, text)
        assert judged.score in (0.0, 1.0)
        assert judged.answer_ok is (judged.score == 1.0)


ANY_TEXT = st.text(max_size=40) | st.lists(PIECES, max_size=8).map("".join)


@examples(250)
@given(ANY_TEXT)
@example(r"\\\\A")
@example(r"\\!!A")
@example(r"\text{\text{\boxed{\boxed{(\text{\text{A}})}}}}")
@example("\\" * 60 + "!" * 60)
@example("**" * 30 + "a" + "**" * 30)
def test_any_gold_is_read_or_refused(gold: str) -> None:
    """Whatever a dataset holds is compared, or refused by the message; its spelling is spelled as itself."""
    assert score_or_none(gold, r"\boxed{5}") in (0.0, 1.0, None)
    assert plain(plain(gold)) == plain(gold)


@examples(250)
@given(ANY_TEXT, ANY_TEXT.map(r"\boxed{{{}}}".format))
@example("x", r"\boxed{\ln(0) 2020-03-04!!!!!!!!!!!}")  # SymPy cannot print it
@example(r"10^{308}(x+x\sqrt{-1})", r"\boxed{10^{308}x(2+\sqrt{-1})}")  # at a point larger than a float
def test_any_two_texts_are_compared(gold: str, text: str) -> None:
    """No pair of a gold answer and a boxed one is an exception: SymPy's own are no scores."""
    assert score_or_none(gold, text) in (0.0, 1.0, None)


@pytest.mark.parametrize("backslashes", range(1, 10))
def test_a_command_escaped_many_times_is_the_command(backslashes: int) -> None:
    r"""Datasets that passed through JSON more than once hold ``\\\\frac``; a matrix keeps its rows."""
    assert plain("\\" * backslashes + "frac{1}{2}") == r"\frac{1}{2}"
    assert judge("\\" * backslashes + "frac{1}{2}", "0.5 it is: the answer is 0.5").score == 1.0
    matrix = r"\begin{pmatrix} a\\b \end{pmatrix}"
    assert plain(matrix) == matrix


def test_values_too_large_for_a_float_are_compared_by_sympy() -> None:
    """Where no point tells two expressions apart, math-verify's verdict holds."""
    gold = r"10^{308}(x+x\sqrt{-1})"
    assert judge(gold, r"\boxed{10^{308}x(1+\sqrt{-1})}").score == 1.0
    assert judge(gold, r"\boxed{10^{308}x(2+\sqrt{-1})}").score == 0.0


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 1000,
        r"\boxed{" + "(" * 3000 + ")" * 3000 + "}",
        r"\boxed{" + "1," * 4000 + "1}",
        r"\boxed{" + "x+" * 1500 + "x}",
        r"\boxed{" + "-" * 8000 + "5}",
        r"\boxed{" + r"\frac{1}" * 900 + "}",
        r"\boxed{" + r"\begin{cases}" + r"1&2\\" * 1500 + r"\end{cases}}",
        r"\boxed{9^{9^{9^{9}}}}",
        r"\boxed{\binom{1000000}{500000}}",
        r"\boxed{100000000!}",
        r"\boxed{1e999999999}",
        "9" * 8000,
        "$5 " * 2600,
        "1 hour and " * 700,
        "the answer is " * 580,
        "5" + " " * 8000 + "5",
        "<answer>" * 1000,
        "**a" * 2700,
    ],
)
def test_hostile_texts_are_judged_in_time(text: str) -> None:
    """Each within the limit of a sample, 5 s, with room for a slow machine; as an answer none is right."""
    start = time.monotonic()
    assert [judge(gold, text).score for gold in ("7", "x+1")] == [0.0, 0.0]
    assert time.monotonic() - start < 5.0


def test_the_places_of_an_answer_in_order() -> None:
    """Tag, box, ####, "answer is", last line, last number; a later "answer is" overrules a box."""
    text = "7\nThe answer is 6.\n#### 5\n"
    assert find_answer(text) == "5"
    assert find_answer(text + r"\boxed{4}") == "4"
    assert find_answer(text + r"\boxed{4} <answer>3</answer>") == "3"
    assert find_answer("The answer is 6.\n7") == "6"
    assert find_answer(r"\boxed{4}. No: the answer is 9.") == "9"
    assert find_answer("6 apples\n7") == "7"
    assert find_answer("He has 6 apples, then eats some.") == "6 apples"


def test_a_refused_gold_gives_null_scores_and_the_scorer_continues() -> None:
    """In its process too: status error, no score of 0, and the next prompt is judged."""
    scorer = ScorerActor("math", {"limit_s": 60.0})
    try:
        refused, judged = (
            asyncio.run(scorer.score(prompt(gold), [completion(r"\boxed{5}"), completion("7")]))
            for gold in ("???", "5")
        )
    finally:
        scorer.close()
    assert [(each.score, each.status) for each in refused] == [(None, "error")] * 2
    assert [each.score for each in judged] == [1.0, 0.0]
