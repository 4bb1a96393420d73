"""Scorers of single texts: the lab's, the simple ones, verl's signature."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.kinds.scorers import (
    ConstantOptions,
    CustomOptions,
    LabAnswerOptions,
    LabPreferenceOptions,
    LengthOptions,
    RandomOptions,
)
from rewards.custom import custom, to_judgement
from rewards.lab import SYLLABLES, bigram_table, lab_answer, lab_preference
from rewards.simple import constant, length, random
from rollouts.records import Completion, Judgement, Prompt, Span


def prompt(answer: str | None = "7") -> Prompt:
    return Prompt(prompt_id="p1", messages=(("user", "3 + 4 = ?"),), answer=answer, domain="arithmetic")


def completion(
    text: str = "", token_ids: tuple[int, ...] = (), finish_reason: str = "stop", seed: int = 0
) -> Completion:
    return Completion(
        sample_id="s0",
        seed=seed,
        token_ids=token_ids,
        text=text,
        finish_reason=finish_reason,
        behavior_logprobs=tuple(0.0 for _ in token_ids),
        versions=((0, 0),),
    )


def judge_answer(text: str, answer: str = "7") -> Judgement:
    return lab_answer(prompt(answer), [completion(text)], LabAnswerOptions())[0]


@pytest.mark.parametrize(
    ("text", "answer", "read", "score"),
    [
        ("so the answer is 7", "7", "7", 1.0),
        ("7 or 8", "7", "8", 0.0),
        ("x = 007 ;", "7", "7", 1.0),
        ("it is -0", "0", "0", 1.0),
        ("it is -12 .", "-12", "-12", 1.0),
        ("it is - 12", "-12", "12", 0.0),
        ("<answer>7</answer>", "7", "7", 1.0),
        ("answer 7", " 07 ", "7", 1.0),
        ("\u0667", "7", None, 0.0),
        ("none", "7", None, 0.0),
        ("", "7", None, 0.0),
    ],
)
def test_lab_answer_reads_the_last_integer(text: str, answer: str, read: str | None, score: float) -> None:
    """ASCII digits with an adjoining sign; compared as numbers, so leading zeros and -0 do not matter."""
    judged = judge_answer(text, answer)
    assert (judged.answer, judged.score, judged.answer_ok) == (read, score, score == 1.0)


def test_lab_answer_survives_a_megabyte_of_digits() -> None:
    """`int` refuses more than 4,300 digits; a model that repeats one must get a 0, not an exception."""
    start = time.monotonic()
    judged = judge_answer("9" * 1_000_000)
    assert (judged.score, len(judged.answer or "")) == (0.0, 1_000_000)
    assert judge_answer("9" * 5_000, "9" * 5_000).score == 1.0
    assert time.monotonic() - start < 2.0


@pytest.mark.parametrize("answer", [None, "", "7.5", "seven", "7 8"])
def test_lab_answer_refuses_a_truth_that_is_no_integer(answer: str | None) -> None:
    """A data error is not the model's failure: it must not become a score of 0."""
    with pytest.raises(ValueError, match="prompt 'p1' must be an integer"):
        lab_answer(prompt(answer), [completion("7")], LabAnswerOptions())


@pytest.mark.parametrize(
    ("text", "token_ids", "finish_reason", "spans"),
    [
        ("it is 7 <done>", (5, 6, 17, 9, 2), "stop", (Span(label="answer", start=2, end=3),)),
        ("it is 7", (5, 6, 17), "length", (Span(label="answer", start=2, end=3),)),
        ("7 is 7", (17, 6, 17, 2), "stop", (Span(label="answer", start=2, end=3),)),
        ("7 is 7", (17, 6, 18, 2), "stop", ()),  # one word, two tokens
        ("7 is 8", (17, 6, 17, 2), "stop", ()),  # two words, one token
        ("it is 7", (5, 6, 17, 9), "length", ()),  # a fourth token that is no end of text
        ("it is 7", (5, 6, 17, 5), "stop", ()),  # the last token occurs inside the text
        ("it is 77", (5, 6, 17, 17, 2), "stop", ()),  # a token per digit
        ("it is 7.", (5, 6, 17, 2), "stop", ()),  # the integer is part of a word
        ("7 is (7)", (17, 6, 18, 2), "stop", ()),  # the last integer is not the whole word before it
        ("nothing", (5, 2), "stop", ()),
    ],
)
def test_answer_span_only_where_words_are_tokens(
    text: str, token_ids: tuple[int, ...], finish_reason: str, spans: tuple[Span, ...]
) -> None:
    """A wrong span would put answer entropy on other tokens; no span only leaves the sample out."""
    (judged,) = lab_answer(prompt(), [completion(text, token_ids, finish_reason)], LabAnswerOptions())
    assert judged.spans == spans


def prefer(text: str, seed: int = 7) -> float:
    score = lab_preference([(prompt(None), completion(text))], LabPreferenceOptions(table_seed=seed))[0].score
    assert score is not None
    return score


def test_preference_by_hand() -> None:
    """0.9 / (1 + exp(-2 mean weight)), plus 0.1 for 6 to 14 syllables; a lone syllable has mean weight 0."""
    table = np.random.default_rng(7).standard_normal((16, 16))
    mean = (table[0, 1] + table[1, 1]) / 2  # ba de de
    assert prefer("ba de de") == pytest.approx(0.9 / (1 + math.exp(-2 * mean)), abs=1e-12)
    assert prefer("ba") == pytest.approx(0.45, abs=1e-12)
    assert prefer(" ".join(["ba"] * 5)) + 0.1 == pytest.approx(prefer(" ".join(["ba"] * 6)), abs=1e-12)
    assert prefer(" ".join(["ba"] * 14)) - 0.1 == pytest.approx(prefer(" ".join(["ba"] * 15)), abs=1e-12)
    assert prefer("ba de", seed=8) != prefer("ba de")


@pytest.mark.parametrize("text", ["", "  ", "xx", "ba xx de", "BA", "ba.", "bade"])
def test_preference_of_foreign_words_is_zero(text: str) -> None:
    """Only the open-ended domain's own alphabet earns anything."""
    assert prefer(text) == 0.0


@given(st.lists(st.sampled_from(SYLLABLES), min_size=1, max_size=40))
def test_preference_is_in_the_unit_interval(words: list[str]) -> None:
    """Any text of syllables scores above 0 and at most 1, whatever its spacing."""
    assert 0.0 < prefer(" ".join(words)) <= 1.0
    assert prefer("\n".join(words)) == prefer(" ".join(words))


def test_syllables_and_table_are_fixed() -> None:
    """The corpus is built on them: 16 different syllables, and a table nobody can write to."""
    assert len(set(SYLLABLES)) == 16
    assert all(len(syllable) == 2 for syllable in SYLLABLES)
    with pytest.raises(ValueError, match="read-only"):
        bigram_table(7)[0, 0] = 1.0


@pytest.mark.parametrize(
    ("tokens", "score"), [(0, 1.0), (32, 1.0), (40, 0.75), (48, 0.5), (64, 0.0), (99, 0.0)]
)
def test_length_is_linear_between_target_and_maximum(tokens: int, score: float) -> None:
    """From 1 at 32 tokens to 0 at 64: a quarter of the way costs a quarter."""
    (judged,) = length(prompt(), [completion("", tuple(range(tokens)))], LengthOptions(32, 64))
    assert judged.score == score


def test_length_refuses_an_empty_range() -> None:
    """target 64, max 64 would divide by zero."""
    with pytest.raises(ValueError, match="target_tokens=64, max_tokens=64"):
        length(prompt(), [completion()], LengthOptions(64, 64))


def test_random_depends_on_seed_and_sample_alone() -> None:
    """The control must be the same on a re-score; SHA-256 of "0:0" begins ac72368a, so u = 0.674."""
    many = [completion(seed=number) for number in range(2000)]
    scores = [judged.score for judged in random(prompt(), many, RandomOptions(seed=0, probability=0.5))]
    alone = [random(prompt("8"), [one], RandomOptions(seed=0))[0].score for one in many]
    assert scores == alone
    assert scores != [judged.score for judged in random(prompt(), many, RandomOptions(seed=1))]
    assert abs(sum(score or 0.0 for score in scores) / 2000 - 0.5) < 0.05
    first = [
        random(prompt(), many[:1], RandomOptions(seed=0, probability=chance))[0].score
        for chance in (0.0, 0.67, 0.68, 1.0)
    ]
    assert first == [0.0, 0.0, 1.0, 1.0]


def test_constant_is_constant() -> None:
    """One judgement per completion, each with the value."""
    judged = constant(prompt(), [completion(), completion()], ConstantOptions(value=0.25))
    assert judged == [Judgement(score=0.25)] * 2


def weighted_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, str], scale: float
) -> float:
    """A user's function with a keyword of its own."""
    return scale * float(ground_truth in solution_str and data_source == "arithmetic" and extra_info == {})


def test_custom_passes_options_on_as_keywords() -> None:
    """verl's reward_kwargs."""
    options = CustomOptions(function="test_rewards:weighted_score", options={"scale": 0.5})
    judged = custom(prompt(), [completion("7"), completion("8")], options)
    assert judged == [Judgement(score=0.5), Judgement(score=0.0)]


async def later(data_source: str, solution_str: str, ground_truth: object, extra_info: object) -> object:
    """An ``async def`` reward function; its second call needs the loop of the first."""
    LOOPS.append(asyncio.get_running_loop())
    await asyncio.sleep(0)
    return {"score": float(solution_str == ground_truth), "acc": np.bool_(solution_str == ground_truth)}


LOOPS: list[asyncio.AbstractEventLoop] = []


def shown_types(data_source: str, solution_str: str, ground_truth: object, extra_info: object) -> object:
    """What a function is called with, as text."""
    return {"score": 1, "pred": repr((data_source, ground_truth, extra_info))}


def test_custom_awaits_coroutines_on_one_loop() -> None:
    """A session that a function keeps belongs to the loop it was made on."""
    judged = custom(
        prompt(), [completion("7"), completion("8")], CustomOptions(function="test_rewards:later")
    )
    assert judged == [Judgement(score=1.0, answer_ok=True), Judgement(score=0.0, answer_ok=False)]
    assert len(LOOPS) == 2 and LOOPS[0] is LOOPS[1]


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({}, ("arithmetic", "7", {})),
        ({"answer": None}, ("arithmetic", None, {})),
        ({"ground_truth": 7}, ("arithmetic", 7, {})),
        ({"answer": None, "ground_truth": ["7", "vii"]}, ("arithmetic", ["7", "vii"], {})),
        ({"answer": None, "ground_truth": False}, ("arithmetic", False, {})),
        ({"domain": "mine", "data_source": "gsm8k"}, ("gsm8k", "7", {})),
        ({"extra": {"strict": False, "n": None}}, ("arithmetic", "7", {"strict": False, "n": None})),
    ],
)
def test_custom_gets_the_values_of_the_row(changes: dict[str, Any], seen: object) -> None:
    """The ground truth with its type, the row's own source, extra_info as it is."""
    asked = replace(prompt(), **changes)
    (judged,) = custom(asked, [completion()], CustomOptions(function="test_rewards:shown_types"))
    assert judged.answer == repr(seen)


@pytest.mark.parametrize(
    ("result", "score", "verdict"),
    [
        (np.bool_(True), 1.0, None),
        (np.float32(0.5), 0.5, None),
        (np.array(0.25), 0.25, None),
        (np.array([0.25]), 0.25, None),
        (torch.tensor(0.75, dtype=torch.bfloat16), 0.75, None),
        (torch.tensor([True]), 1.0, None),
        (Decimal("0.5"), 0.5, None),
        ({"score": np.float64(1.0), "acc": np.bool_(False)}, 1.0, False),
        ({"score": torch.tensor(1), "acc": torch.tensor(True)}, 1.0, True),
        (MappingProxyType({"score": 1, "acc": 0.0}), 1.0, False),
        ({"score": 1, "acc": float("nan")}, 1.0, None),
    ],
)
def test_custom_takes_what_functions_return(result: object, score: float, verdict: bool | None) -> None:
    """Numpy's and torch's scalars, arrays of one element, any mapping."""
    judged = to_judgement(result)
    assert (judged.score, judged.answer_ok) == (score, verdict)
    assert type(judged.score) is float and type(judged.answer_ok) in (bool, type(None))


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (
            "abc",
            "compute_score returned str 'abc'; expected a finite number, a bool or a mapping with `score`",
        ),
        (None, "compute_score returned NoneType None; expected"),
        (float("nan"), "compute_score returned float nan; expected a finite number"),
        ({"reward": 1.0}, "compute_score returned dict {'reward': 1.0}; expected"),
        (np.zeros(2), "compute_score returned ndarray array([0., 0.]); expected"),
        (1j, "compute_score returned complex 1j; expected"),
    ],
)
def test_custom_says_what_was_no_score(result: object, told: str) -> None:
    """Type and value, cut short, and what would have done."""
    judged = to_judgement(result)
    assert (judged.score, judged.status) == (None, "invalid") and judged.detail.startswith(told)
    assert len(to_judgement("x" * 10_000).detail) < 200


def test_custom_function_must_be_callable() -> None:
    """A module's constant is a mistake in the config, and is named."""
    with pytest.raises(ValueError, match=r"rewards\.lab:SYLLABLES"):
        custom(prompt(), [completion()], CustomOptions(function="rewards.lab:SYLLABLES"))


@pytest.mark.parametrize(
    ("result", "score"),
    [(1, 1.0), (np.float32(0.5), 0.5), ({"score": 2}, 2.0), (True, 1.0), ("1", None), ({}, None), (1j, None)],
)
def test_custom_results(result: object, score: float | None) -> None:
    """Real numbers, NumPy's too; never text that looks like one."""
    judged = to_judgement(result)
    assert (judged.score, judged.status) == (score, "invalid" if score is None else "ok")
