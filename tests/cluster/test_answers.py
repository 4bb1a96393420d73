"""Prompts that a scorer can give no score are found before a run starts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from cluster.answers import check_answers
from configs.bound import bind
from configs.load import load_config
from configs.schema import RunConfig
from rollouts.files import Json
from rollouts.records import Judgement, Prompt

GSM8K = "He has 3 * 4 = <<3*4=12>>12 apples.\n#### 12"


def prompts(*answers: str | None, truth: Json = None) -> list[Prompt]:
    return [
        Prompt(
            prompt_id=f"p{number}",
            messages=(("user", "q"),),
            answer=answer,
            domain="d",
            ground_truth=truth,
            place=f"train.jsonl, line {number + 1}",
        )
        for number, answer in enumerate(answers)
    ]


def config_with(scorer: str) -> RunConfig:
    return load_config("debug", ["scorers.correct=null", f"scorers.mine={scorer}", "allow=[mine]"])


LAB = "{kind: lab_answer, weight: 1.0}"
REFUSED: list[tuple[str, list[str | None], str]] = [
    (
        LAB,
        [None, "  ", None, None],
        r"scorers\.mine \(lab_answer\): data\.train must have an answer .* got 4 prompts without one "
        r"\(train\.jsonl, lines 1, 2, 3, \.\.\.\)",
    ),
    (
        LAB,
        [GSM8K, GSM8K],
        r"that the scorer can read, got 2 of 2 that were tried "
        r"\(train\.jsonl, lines 1, 2\); .*answer of prompt",
    ),
    ("{kind: lab_answer, combine: gate}", [None], "must have an answer"),
    ("{kind: math, weight: 1.0}", [None], "must have an answer"),
    ("{kind: math, weight: 1.0}", ["???"], "must have answers that the scorer can read, got 1 of 1"),
]


@pytest.mark.parametrize(("scorer", "answers", "message"), REFUSED)
def test_what_could_never_have_a_reward_is_refused(
    scorer: str, answers: list[str | None], message: str
) -> None:
    """With how many rows, the first of them, and the scorer's own reason."""
    with pytest.raises(ValueError, match=message):
        check_answers(bind(config_with(scorer)), prompts(*answers), pytest.fail)


def test_some_rows_are_noted() -> None:
    """Those without an answer and those whose answer cannot be read; the run may start."""
    notes: list[str] = []
    check_answers(bind(config_with(LAB)), prompts("7", None, "8", GSM8K), notes.append)
    assert notes[0] == (
        "scorers.mine (lab_answer): 1 of 4 prompts of data.train lack an answer in text or a number to "
        "compare with (train.jsonl, line 2); their completions have no reward and are not trained on"
    )
    assert (
        len(notes) == 2
        and "cannot read: 1 of 3 that were tried (train.jsonl, line 4); the reason" in notes[1]
    )


def test_a_function_without_any_truth_is_noted() -> None:
    """It may need none, so this is no error; a structured truth is one."""
    notes: list[str] = []
    custom = config_with('{kind: custom, function: "mine:f", weight: 1.0}')
    check_answers(bind(custom), prompts(None, None), notes.append)
    assert notes == [
        "scorers.mine (custom): 2 of 2 rows of data.train have no answer (train.jsonl, lines 1, 2); "
        "the function gets ground_truth=None"
    ]
    check_answers(bind(custom), prompts(None, truth=["7"]), pytest.fail)
    entry = '{kind: custom, function: "mine:f"}, other: {kind: length, weight: 1.0}'
    recorded = load_config("debug", ["scorers.correct=null", f"scorers={{mine: {entry}}}", "allow=[mine]"])
    check_answers(bind(recorded), prompts("7", None), notes.append)
    assert "scorers.mine (custom): 1 of 2 rows of data.train have no answer (train.jsonl, line 2)" in notes[1]


@pytest.mark.parametrize(
    ("scorer", "given"),
    [
        ("{kind: lab_answer, weight: 1.0}", prompts("7", "-12")),
        ("{kind: length, weight: 1.0}", prompts(None)),
    ],
)
def test_what_can_be_scored_is_not_talked_about(scorer: str, given: list[Prompt]) -> None:
    """Nor is a scorer that needs no answer."""
    check_answers(bind(config_with(scorer)), given, pytest.fail)


def test_a_scorer_that_does_not_enter_the_reward_may_lack_answers() -> None:
    """Its nulls cost nothing."""
    recorded = load_config(
        "debug", ["scorers.correct={kind: lab_answer, weight: 0}", "scorers.len={kind: length, weight: 1.0}"]
    )
    check_answers(bind(recorded), prompts(None), pytest.fail)


def test_few_of_many_prompts_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 32, spread over all."""
    tried: list[str] = []

    def load(target: str) -> Callable[..., list[object]]:
        def score(prompt: Prompt, completions: object, options: object) -> list[object]:
            tried.append(prompt.prompt_id)
            return [Judgement(score=0.0)]

        return score

    monkeypatch.setattr("configs.bound.load_target", load)
    check_answers(bind(config_with(LAB)), prompts(*["7"] * 1000), pytest.fail)
    assert len(tried) == 32 and tried[0] == "p0" and tried[-1] == "p992"


class Judge:
    """A scorer as a class, whose `score` is a coroutine function."""

    def __init__(self, options: object) -> None:
        pass

    async def score(self, prompt: Prompt, completions: object) -> list[Judgement]:
        return await judge(prompt, completions, None)


async def judge(prompt: Prompt, completions: object, options: object) -> list[Judgement]:
    """A scorer that awaits something, and cannot read one answer."""
    await asyncio.sleep(0)
    if prompt.answer == "?":
        raise ValueError("no number")
    return [Judgement(score=0.0)]


@pytest.mark.parametrize("target", [judge, Judge])
def test_every_form_of_a_kind_is_tried(target: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coroutine function is awaited, a class is constructed; what it says of an answer is noted."""
    monkeypatch.setattr("configs.bound.load_target", lambda name: target)
    notes: list[str] = []
    check_answers(bind(config_with(LAB)), prompts("7", "?"), notes.append)
    assert (
        len(notes) == 1
        and "1 of 2 that were tried (train.jsonl, line 2); the reason for the first" in notes[0]
    )
    assert "no number" in notes[0]
