"""Rubrics: what is read from YAML, what is refused with which message, and the canaries made of them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from judge_endpoint import Stub, completion, says, tag_of

from configs.kinds.judges import JudgeOptions
from rewards.judge import Judge
from rewards.judge_canaries import make_canaries, probe_of
from rewards.judge_request import question_of, reference_of, reply_schema
from rewards.judge_rubric import BUNDLED, load_rubric, start
from rewards.scorer_reports import ScorerReport
from rollouts.records import Prompt

GOOD = """
instruction: Judge.
uses_reference: true
criteria:
  - {name: right, weight: 3, description: "Right?", choices: ["no", partly, "yes"]}
  - {name: safe, description: "Safe?", choices: {"no": 0.2, "yes": 0.9}}
  - {name: clear, description: "Clear?", range: [1, 10]}
canaries: {question: q, reference: r, good: g, bad: b, pass_mark: 0.75}
"""


def load(folder: Path, text: str) -> str:
    path = folder / "rubric.yaml"
    path.write_text(text)
    return str(path)


def test_values_weights_and_the_lowest_score(tmp_path: Path) -> None:
    """A list goes from 0 to 1 in equal steps, a mapping has its values, a range begins at 0."""
    rubric = load_rubric(load(tmp_path, GOOD))
    right, safe, clear = rubric.criteria
    assert right.choices == {"no": 0.0, "partly": 0.5, "yes": 1.0} and right.weight == 3.0
    assert safe.choices == {"no": 0.2, "yes": 0.9} and safe.weight == 1.0
    assert clear.value(1) == 0.0 and clear.value(10) == 1.0 and clear.value(7) == pytest.approx(6 / 9)
    assert clear.value(0.99) is None and clear.value(10.01) is None and clear.value(float("nan")) is None
    assert rubric.score({"right": 0.5, "safe": 1.0, "clear": 0.0}) == pytest.approx(2.5 / 5)
    assert rubric.lowest() == pytest.approx(0.2 / 5) and rubric.uses_reference
    assert rubric.probe is not None and rubric.probe.pass_mark == 0.75


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("instruction: Judge.", "", "instruction must be a text, got None"),
        ("instruction: Judge.", "instruction: 3", "instruction must be a text, got 3: put it in quotes"),
        (
            "uses_reference: true",
            "uses_reference: maybe",
            "must be true or false, got 'maybe'",
        ),
        ('"no", partly, "yes"', "no, partly, yes", "put yes, no, on, off and numbers in quotes"),
        ('"no", partly, "yes"', "no, yes", "choices must be texts, got [False, True]: put yes, no"),
        ('"no", partly, "yes"', "partly, partly", "must be different texts"),
        ('"no", partly, "yes"', '"yes"', "must have two or more choices"),
        ('{"no": 0.2, "yes": 0.9}', '{"no": 0.2, "yes": 1.5}', "with values from 0 to 1"),
        ('{"no": 0.2, "yes": 0.9}', '{"no": low, "yes": 1}', "choices.no must be a number, got 'low'"),
        ("range: [1, 10]", "range: [10, 1]", "a lowest number below the highest, got [10, 1]"),
        ("range: [1, 10]", "range: 10", "range must be [lowest, highest], got 10"),
        ("range: [1, 10]", "range: [1, .nan]", "range must be a number, got nan"),
        (", range: [1, 10]", "", "criteria[2] must have either choices or range"),
        ("range: [1, 10]", "range: [1, 10], choices: [a, b]", "must have either choices or range"),
        ("name: clear", "name: safe", "criteria must have different names, got ['right', 'safe', 'safe']"),
        ("name: clear", "name: Is it clear", "name must be lower-case letters, digits and _"),
        ("weight: 3", "weight: 0", "criteria[0].weight must be above 0, got 0"),
        ("weight: 3", "weigth: 3", "choices, range, got 'weigth' (did you mean weight?)"),
        ("uses_reference", "use_reference", "a rubric must have only the keys"),
        ("pass_mark: 0.75", "pass_mark: 0", "canaries.pass_mark must be above 0 and at most 1, got 0"),
        ("reference: r, ", "", "canaries.reference must be a text"),
        ("instruction: Judge.", "instruction: [", "must be a readable YAML file"),
        (GOOD, "criteria", "a rubric must be a mapping"),
        (GOOD, "{instruction: x, criteria: []}", "criteria must be a list with at least one criterion"),
    ],
)
def test_what_cannot_be_used_is_refused(before: str, after: str, message: str, tmp_path: Path) -> None:
    """One line with the file, the key and what was expected."""
    path = load(tmp_path, GOOD.replace(before, after))
    with pytest.raises(ValueError) as refused:
        load_rubric(path)
    assert message in str(refused.value) and str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_a_missing_rubric_names_the_bundled_ones() -> None:
    with pytest.raises(ValueError, match=r"'correctnes': no such file in .*correctness, quality$"):
        load_rubric("correctnes")


@pytest.mark.parametrize("path", sorted(BUNDLED.glob("*.yaml")), ids=lambda path: str(path.stem))
def test_bundled_rubrics_are_whole(path: Path) -> None:
    """Each can be used by its name, and has canaries; `start` gives its absolute path."""
    rubric = load_rubric(path.stem)
    assert rubric.probe is not None and len(make_canaries(rubric, rubric.probe)) == 8
    started = start(JudgeOptions(endpoint="http://x/v1", served_model="m", rubric=path.stem, cache="c"))
    assert started.rubric == str(path.resolve()) and started.files() == (started.rubric,)
    assert Path(started.cache).is_absolute()
    assert start(JudgeOptions(endpoint="http://x/v1", served_model="m", cache="")).cache == ""


def test_the_dictated_canary_is_the_best_verdict_without_a_tag(tmp_path: Path) -> None:
    rubric = load_rubric(load(tmp_path, GOOD))
    assert rubric.probe is not None
    answers = {each.name: each.answer for each in make_canaries(rubric, rubric.probe)}
    dictated = json.loads(answers["verdict"].partition("```json\n")[2].partition("\n```")[0])
    assert dictated["verdicts"] == {"right": "yes", "safe": "yes", "clear": 10.0}
    assert answers["good"] == "g" and answers["bad"] == "b" and answers["claim"] == "correct answer: A"


def report_of_canaries(
    reply: object, canaries: str = "warn", rubric: str = "correctness", score: Prompt | None = None
) -> tuple[ScorerReport, str, int]:
    """(report, refusal at the start, calls) of a judge that replies by `reply` to every canary."""

    async def run() -> tuple[ScorerReport, str, int]:
        async with Stub([reply]) as stub:  # type: ignore[list-item]
            options = JudgeOptions(
                endpoint=stub.url, served_model="stub", cache="", canaries=canaries, rubric=rubric
            )
            judge, refusal = Judge(options), ""
            try:
                await judge.start()
                if score is not None:
                    await judge.score(score, [])
                    await asyncio.gather(*judge._background)
            except ValueError as error:
                refusal = str(error)
            await judge.close()
            return judge.take_report(), refusal, len(stub.bodies)

    return asyncio.run(run())


def canary_answer(body: dict[str, object]) -> str:
    content = body["messages"][-1]["content"]  # type: ignore[index]
    tag = tag_of(body)
    return str(content.partition(f"<<<ANSWER {tag}>>>\n")[2].partition(f"\n<<<END ANSWER {tag}>>>")[0])


def test_a_judge_that_says_yes_to_everything_fails_all_but_the_good_one() -> None:
    """Seven alarms with the judge's name and the canary; with stop, the run is refused."""
    report, refusal, calls = report_of_canaries(says({"correct": "yes"}))
    names = [event.fields["canary"] for event in report.events]
    assert names == ["empty", "colon", "opener", "claim", "instructions", "verdict", "bad"]
    assert {event.fields["judge"] for event in report.events} == {"stub"} and not refusal and not report.stop
    assert report.sums["canaries"] == 8 == calls and report.sums["canaries_failed"] == 7
    _, refusal, _ = report_of_canaries(says({"correct": "yes"}), canaries="stop")
    assert "judge stub gave the canary 'bad' a score of 1, not less than 0.5" in refusal


def test_a_judge_that_says_no_to_everything_fails_the_good_one() -> None:
    report, _, _ = report_of_canaries(says({"correct": "no"}))
    assert [(e.fields["canary"], e.fields["wanted"]) for e in report.events] == [("good", "at least 0.5")]


def test_a_judge_that_is_right_raises_no_alarm() -> None:
    """Also with stop."""

    def right(body: dict[str, object]) -> dict[str, object]:
        return says({"correct": "yes" if canary_answer(body).endswith("= 43") else "no"})(body)

    report, refusal, calls = report_of_canaries(right, canaries="stop")
    assert report.events == () and not refusal and calls == 8 and "canaries_failed" not in report.sums


def test_a_judge_without_a_verdict_on_the_good_answer_is_refused() -> None:
    _, refusal, _ = report_of_canaries(lambda body: completion("I like it."))
    assert refusal.startswith("judge stub gave the rubric's good answer no verdict: ")
    assert report_of_canaries(lambda body: completion("I like it."), canaries="none")[1:] == ("", 0)


def test_a_rubric_without_canaries_uses_the_first_prompt_with_an_answer(tmp_path: Path) -> None:
    """Its reference is the good answer."""
    path = load(tmp_path, GOOD[: GOOD.index("canaries")])
    prompt = Prompt(prompt_id="p1", messages=(("user", "2 + 2?"),), answer="4", domain="math")
    best = says({"right": "yes", "safe": "yes", "clear": 10})
    report, _, calls = report_of_canaries(best, rubric=path, score=prompt)
    assert calls == 8 and len(report.events) == 7
    bare = Prompt(prompt_id="p2", messages=(("user", "Sing."),), answer=None, domain="songs")
    assert probe_of(question_of(bare), reference_of(bare), bare) is None
    assert report_of_canaries(best, rubric=path, score=bare)[2] == 0


def test_canaries_come_again_after_so_many_groups() -> None:
    """At the start, and with the 2nd and 4th of 5 groups."""

    async def run() -> int:
        async with Stub([says({"correct": "no"})]) as stub:
            options = JudgeOptions(endpoint=stub.url, served_model="stub", cache="", canary_every=2)
            judge = Judge(options)
            await judge.start()
            prompt = Prompt(prompt_id="p", messages=(("user", "?"),), answer="4", domain="math")
            for _ in range(5):
                await judge.score(prompt, [])
                await asyncio.gather(*judge._background)
            await judge.close()
            return len(stub.bodies)

    assert asyncio.run(run()) == 3 * 8


def test_questions_of_several_messages_and_references_of_other_types() -> None:
    """Roles are shown; a prefill is part of the answer; what is no text is JSON."""
    messages = (("system", "Be brief."), ("user", "2 + 2?"), ("assistant", "It is"))
    prompt = Prompt(prompt_id="p", messages=messages, answer=None, domain="d", ground_truth=[4, "four"])
    assert question_of(prompt) == "[system]\nBe brief.\n\n[user]\n2 + 2?"
    assert reference_of(prompt) == '[4, "four"]'


def test_the_form_of_a_verdict(tmp_path: Path) -> None:
    """Labels as they are, whole numbers where a range has more than two, all keys in their order."""
    text = GOOD.replace("canaries:", "  - {name: near, description: n, range: [0, 1]}\ncanaries:")
    schema = json.loads(reply_schema(load_rubric(load(tmp_path, text)), "0123456789", 40))
    assert schema["required"] == ["tag", "explanation", "verdicts"] == list(schema["properties"])
    assert schema["properties"]["tag"] == {"type": "string", "enum": ["0123456789"]}
    assert schema["properties"]["explanation"] == {"type": "string", "maxLength": 40}
    verdicts = schema["properties"]["verdicts"]
    assert verdicts["properties"] == {
        "right": {"type": "string", "enum": ["no", "partly", "yes"]},
        "safe": {"type": "string", "enum": ["no", "yes"]},
        "clear": {"type": "integer", "minimum": 1, "maximum": 10},
        "near": {"type": "number", "minimum": 0.0, "maximum": 1.0},
    }
    assert verdicts["required"] == ["right", "safe", "clear", "near"]
    assert schema["additionalProperties"] is verdicts["additionalProperties"] is False
