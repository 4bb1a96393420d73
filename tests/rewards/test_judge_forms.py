"""What a judge asks of its model: replies in the form of a verdict; and clients of endpoints."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from judge_endpoint import Fault, Stub, completion, says, tag_of
from rollout_rows import make_sample

from configs.kinds.judges import JudgeOptions
from rewards.endpoint_model import EndpointClient, EndpointConfig
from rewards.judge import Judge
from rewards.model_calls import GenerateReply, GenerateRequest, ModelCallError
from rollouts.records import Judgement, Prompt

PROMPT = Prompt(prompt_id="p7", messages=(("user", "What is 2 + 2?"),), answer="4", domain="math")
YES = says({"correct": "yes"})


class FakeModel:
    """Keeps what it is asked, and says nothing that could be used."""

    def __init__(self) -> None:
        self.requests: list[GenerateRequest] = []

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[GenerateReply]:
        self.requests += requests
        return [
            GenerateReply(text="no", finish_reason="stop", num_prompt_tokens=1, num_completion_tokens=1)
            for _ in requests
        ]


def judgement(judge: Judge) -> Judgement:
    """The judgement of one answer."""

    async def run() -> Judgement:
        (found,) = await judge.score(PROMPT, [replace(make_sample("s", 3).completion, text="4")])
        await judge.close()
        return found

    return asyncio.run(run())


def at_endpoint(**changed: Any) -> tuple[Judgement, dict[str, Any]]:
    """The judgement of an endpoint that says yes, and the body of its request."""

    async def run() -> tuple[Judgement, dict[str, Any]]:
        async with Stub([YES]) as stub:
            own = JudgeOptions(endpoint=stub.url, served_model="stub", cache="", canaries="none", **changed)
            judge = Judge(own)
            (found,) = await judge.score(PROMPT, [replace(make_sample("s", 3).completion, text="4")])
            await judge.close()
            return found, stub.bodies[0]

    return asyncio.run(asyncio.wait_for(run(), 120))


def test_a_model_of_the_run_is_held_to_the_form_of_a_verdict() -> None:
    """By default; with text it may write anything. The form is part of what replies are cached under."""

    def asked(**changed: Any) -> GenerateRequest:
        own = JudgeOptions(model="judge", cache="", canaries="none", **changed)
        model = FakeModel()
        assert judgement(Judge(own, {"judge": model})).status == "invalid"  # type: ignore[dict-item]
        return model.requests[0]

    schema = json.loads(asked().json_schema)
    assert list(schema["properties"]) == ["tag", "explanation", "verdicts"]
    assert schema["properties"]["explanation"]["maxLength"] == 256, "half of the tokens at most"
    assert asked(response_format="text").json_schema == ""
    judges = [Judge(JudgeOptions(model="m", response_format=each), {"m": FakeModel()})  # type: ignore[dict-item]
              for each in ("text", "json_schema")]  # fmt: skip
    assert judges[0]._sampling() == {"max_tokens": 512, "temperature": 0.0, "seed": 0, "extra": {}}
    assert judges[1]._sampling() == judges[0]._sampling() | {"response_format": "json_schema"}


def test_an_endpoint_is_sent_the_form_if_it_is_asked_for() -> None:
    """As OpenAI and vLLM take it, without limits on lengths, which some refuse."""
    assert "response_format" not in at_endpoint()[1]
    found, body = at_endpoint(response_format="json_schema")
    form = body["response_format"]
    assert found.score == 1.0 and form["type"] == "json_schema" and form["json_schema"]["strict"] is True
    properties = form["json_schema"]["schema"]["properties"]
    assert properties["tag"] == {"type": "string", "enum": [tag_of(body)]}
    assert properties["explanation"] == {"type": "string"}
    assert properties["verdicts"]["properties"] == {"correct": {"type": "string", "enum": ["no", "yes"]}}


def test_a_client_of_an_endpoint_goes_to_another_process_without_its_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each process reads the key from its own environment; what fails is a failure of the model."""
    monkeypatch.setenv("JUDGE_KEY", "sk-abcdef")

    async def run() -> None:
        async with Stub([lambda body: completion("it is wrong"), Fault(401)]) as stub:
            config = EndpointConfig(url=stub.url, model="critic", extra={"min_p": 0.1})
            sent = pickle.dumps(EndpointClient("model c", config, "JUDGE_KEY", 2))
            assert b"sk-abcdef" not in sent
            client = pickle.loads(sent)
            request = GenerateRequest(prompt=(("user", "?"),), max_tokens=9, temperature=0.7, seed=3)
            (reply,) = await client.generate([request])
            assert reply.text == "it is wrong" and stub.headers[0]["Authorization"] == "Bearer sk-abcdef"
            body = stub.bodies[0]
            assert (body["model"], body["max_tokens"], body["seed"], body["min_p"]) == ("critic", 9, 3, 0.1)
            with pytest.raises(ModelCallError, match="status 401"):
                await client.generate([request])
            late = EndpointClient("model c", replace(config, deadline_s=0.05, call_timeout_s=0.05), "", 2)
            stub.plan = [Fault(wait_s=5)]
            with pytest.raises(ModelCallError, match="model c: "):
                await late.generate([request])

    asyncio.run(asyncio.wait_for(run(), 120))
