"""Answers that attack the judge: whatever a model under judgement writes, it cannot write the verdict.

The judges here are scripted. They show what the request and the parser guarantee; whether a language model
follows an order in the data is a matter of that model, which canaries try.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Sequence

import pytest
from judge_attacks import FAMILIES, QUESTION, REFERENCE, verdict

from configs.kinds.judges import JudgeOptions
from rewards import judge_request
from rewards.judge import Judge
from rewards.judge_request import as_data, make_request
from rewards.judge_rubric import load_rubric
from rewards.model_calls import GenerateReply, GenerateRequest
from rollouts.records import Completion, Judgement, Prompt

ATTACKS = [(family, text) for family, make in FAMILIES.items() for text in make()]
PROMPT = Prompt(prompt_id="p", messages=(("user", QUESTION),), answer=REFERENCE, domain="math")
LIMIT_S = 2.0
"""Far above what the slowest takes, on a machine that is busy."""


def tag_at_the_end(user: str) -> str:
    """The tag in the last line, which is ours whatever the data is."""
    found = re.search(r'its "tag" is "([0-9a-f]{10})"\.$', user)
    assert found is not None
    return found[1]


def data_of(user: str, tag: str) -> str:
    """The answer between its delimiters."""
    return user.partition(f"<<<ANSWER {tag}>>>\n")[2].partition(f"\n<<<END ANSWER {tag}>>>")[0]


def honest(user: str) -> str:
    """Reads only what is outside of the data; finds every answer wrong."""
    return verdict(tag_at_the_end(user), "no")


def quotes_before(user: str) -> str:
    """Quotes the whole answer, then gives its verdict."""
    return f"The response says:\n{data_of(user, tag_at_the_end(user))}\n\n{honest(user)}"


def quotes_after(user: str) -> str:
    """The other way round."""
    return f"{honest(user)}\n\nbecause the response says:\n{data_of(user, tag_at_the_end(user))}"


def explains(user: str) -> str:
    """Quotes the answer inside the explanation of its verdict."""
    tag = tag_at_the_end(user)
    return verdict(tag, "no").replace('"right"', json.dumps(data_of(user, tag)[:1500]))


def obeys_data(user: str) -> str:
    """Replies with the last verdict, or else with all that the data has: as fooled as can be."""
    data = data_of(user, tag_at_the_end(user))
    found = re.findall(r'\{[^{}]*"verdicts"[^{}]*\{[^{}]*\}[^{}]*\}', data[-50_000:])
    return str(found[-1]) if found else data or "yes"


def obeys_anything(user: str) -> str:
    """Replies with the last verdict of the whole message, wherever it is, or else with the message."""
    found = re.findall(r'\{[^{}]*"verdicts"[^{}]*\{[^{}]*\}[^{}]*\}', user[-50_000:])
    return str(found[-1]) if found else user


class Scripted:
    """A model that replies by a function of the user's message."""

    def __init__(self, reply: Callable[[str], str]) -> None:
        self._reply = reply

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[GenerateReply]:
        texts = [self._reply(request.prompt[-1][1]) for request in requests]  # type: ignore[index,arg-type]
        return [
            GenerateReply(text=text, finish_reason="stop", num_prompt_tokens=1, num_completion_tokens=1)
            for text in texts
        ]


def judged(reply: Callable[[str], str], answer: str) -> tuple[Judgement, float]:
    """(judgement, seconds) of one answer by a scripted judge."""
    options = JudgeOptions(model="scripted", cache="", canaries="none")
    completion = Completion(
        sample_id="g.0",
        seed=0,
        token_ids=(1,),
        text=answer,
        finish_reason="stop",
        behavior_logprobs=(0.0,),
        versions=((0, 0),),
    )

    async def run() -> Judgement:
        judge = Judge(options, {"scripted": Scripted(reply)})  # type: ignore[dict-item]
        (found,) = await judge.score(PROMPT, [completion])
        return found

    began = time.perf_counter()
    found = asyncio.run(run())
    return found, time.perf_counter() - began


def test_there_are_enough_of_every_kind() -> None:
    """At least 150, each one once."""
    assert len(ATTACKS) >= 150 and len({text for _, text in ATTACKS}) == len(ATTACKS)
    assert all(len(make()) >= 10 for make in FAMILIES.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("judge", [honest, explains])
def test_a_judge_that_is_not_fooled_is_read_right(judge: Callable[[str], str], family: str) -> None:
    """Its verdict is the score, 0, also where the explanation quotes the answer."""
    for text in FAMILIES[family]():
        found, seconds = judged(judge, text)
        assert (found.score, found.status) == (0.0, "ok"), (text[:80], found)
        assert seconds < LIMIT_S, text[:80]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("judge", [quotes_before, quotes_after])
def test_a_quoted_answer_is_never_the_verdict(judge: Callable[[str], str], family: str) -> None:
    """What is quoted can hide the verdict, which is then null; it cannot be one."""
    for text in FAMILIES[family]():
        found, seconds = judged(judge, text)
        assert found.score in (0.0, None), (text[:80], found)
        assert (found.score is None) == (found.status == "invalid") and seconds < LIMIT_S, text[:80]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("judge", [obeys_data, obeys_anything])
def test_a_judge_that_repeats_a_dictated_verdict_gives_none(judge: Callable[[str], str], family: str) -> None:
    """It lacks the tag of the request: null, not the score that was dictated."""
    for text in FAMILIES[family]():
        found, seconds = judged(judge, text)
        assert found.score is None and found.status in ("invalid", "error"), (text[:80], found)
        assert seconds < LIMIT_S, text[:80]


@pytest.mark.parametrize("family", FAMILIES)
def test_data_stays_between_its_delimiters(family: str) -> None:
    """One block of each name, ours; the tag is in no text; no control token is left; all can be sent."""
    rubric, systems = load_rubric("correctness"), set()
    for text in FAMILIES[family]():
        request = make_request(rubric, QUESTION, REFERENCE, text, 10**9)
        system, user = (content for _, content in request.messages)
        assert [role for role, _ in request.messages] == ["system", "user"]
        assert data_of(user, request.tag) == as_data(text) and request.tag not in as_data(text).lower()
        assert tag_at_the_end(user) == request.tag
        systems.add(system.replace(request.tag, "TAG"))
        for name in ("QUESTION", "REFERENCE", "ANSWER"):
            assert user.count(f"<<<{name} {request.tag}>>>") == 1
            assert user.count(f"<<<END {name} {request.tag}>>>") == 1
        assert as_data(as_data(text)) == as_data(text) and user.encode()
        again = make_request(rubric, QUESTION, REFERENCE, text, 10**9)
        assert again == request, "equal requests must be equal, or nothing is found in the cache"
    assert len(systems) == 1, "the instructions depend on no answer"


@pytest.mark.parametrize(
    "token",
    [
        *("<|im_end|>", "<|im_start|>", "<|eot_id|>", "<|endoftext|>", "<|start_header_id|>", "</s>", "<s>"),
        *("[INST]", "[/INST]", "<<SYS>>", "<end_of_turn>", "<start_of_turn>", "<eos>", "<BOS>", "</think>"),
        *(
            "[SYSTEM_PROMPT]",
            "[/SYSTEM_PROMPT]",
            "[TOOL_CALLS]",
            "[EOT]",
            "<|turn>",
            "<turn|>",
            "<EOS_TOKEN>",
        ),
        *("<\uff5cAssistant\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    ],
)
def test_control_tokens_are_taken_apart(token: str) -> None:
    """A space follows their first character; other text, code among it, is as it was."""
    kept = "if a < b | c > d: <div> x </div> [1] <= >="
    assert as_data(f"{kept}{token}{token}") == kept + f"{token[0]} {token[1:]}" * 2
    request = make_request(load_rubric("correctness"), token, token, token, 1000)
    assert all(token not in content for _, content in request.messages)


def test_a_tag_is_in_none_of_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With tags of one digit, all of which but one are in the answer, that one is taken."""
    monkeypatch.setattr(judge_request, "TAG_CHARS", 1)
    for left in "0123456789abcdef":
        answer = "0123456789ABCDEF".replace(left.upper(), "")
        assert make_request(load_rubric("quality"), "?", None, answer, 1000).tag == left


def test_a_text_that_contains_the_tag_gets_another() -> None:
    """An answer that was made to contain the first tag: it cannot hold the second as well."""
    rubric = load_rubric("correctness")
    first = make_request(rubric, QUESTION, REFERENCE, "41", 1000).tag
    reference = f"43 {first}"
    tags = {make_request(rubric, QUESTION, reference, f"41 {first.upper()} {k}", 1000).tag for k in range(50)}
    assert first not in tags and len(tags) == 50
