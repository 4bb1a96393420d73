"""The scorer `judge` against a stub endpoint: what is scored, what is null and why, what is paid."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from judge_endpoint import COMPLETION_TOKENS, PROMPT_TOKENS, Answer, Fault, Stub, completion, says, tag_of
from judge_model import FakeModel

from configs.kinds.judges import JudgeOptions
from rewards.judge import Judge
from rewards.model_calls import ModelCallError
from rewards.scorer_reports import ScorerReport
from rollouts.records import Completion, Judgement, Prompt

T = TypeVar("T")
PROMPT = Prompt(prompt_id="p7", messages=(("user", "What is 2 + 2?"),), answer="4", domain="math")
YES, NO = says({"correct": "yes"}), says({"correct": "no"})
WHOLE = json.dumps(completion('{"tag": "x"}')).encode()


def options(url: str, **changed: Any) -> JudgeOptions:
    usual = {"served_model": "stub", "cache": "", "canaries": "none", "price_in": 1.0, "price_out": 10.0}
    return JudgeOptions(endpoint=url, **{**usual, **changed})


def completions(*texts: str) -> list[Completion]:
    return [
        Completion(
            sample_id=f"g.{k}",
            seed=k,
            token_ids=(1,),
            text=text,
            finish_reason="stop",
            behavior_logprobs=(0.0,),
            versions=((0, 0),),
        )
        for k, text in enumerate(texts)
    ]


def with_judge(
    plan: Sequence[Answer],
    work: Callable[[Judge, Stub], Awaitable[T]],
    backoff_s: float = 0.01,
    **changed: Any,
) -> T:
    """The result of `work` with a judge whose endpoint answers by `plan`; retries wait only briefly."""

    async def run() -> T:
        async with Stub(plan) as stub:
            judge = Judge(options(stub.url, **changed))
            assert judge._endpoint is not None
            object.__setattr__(judge._endpoint._config, "backoff_s", backoff_s)
            try:
                return await work(judge, stub)
            finally:
                await judge.close()

    return asyncio.run(asyncio.wait_for(run(), 30))


def judged(
    plan: Sequence[Answer], texts: Sequence[str] = ("4",), **changed: Any
) -> tuple[list[Judgement], ScorerReport, Stub]:
    """(judgements of some answers, the judge's report, the stub)."""

    async def work(judge: Judge, stub: Stub) -> tuple[list[Judgement], ScorerReport, Stub]:
        return await judge.score(PROMPT, completions(*texts)), judge.take_report(), stub

    return with_judge(plan, work, **changed)


def test_a_verdict_is_a_score_with_its_tokens_cost_and_reason() -> None:
    """100 prompt and 20 completion tokens at 1 and 10 a million."""
    (found,), report, stub = judged([says({"correct": "yes"}, "2 + 2 is 4")])
    assert found.score == 1.0 and found.status == "ok" and found.texts == {"explanation": "2 + 2 is 4"}
    assert found.numbers == {
        "prompt_tokens": 100.0,
        "completion_tokens": 20.0,
        "cost": pytest.approx(0.0003),
        "criterion/correct": 1.0,
    }
    assert report.sums["calls"] == 1 and report.sums["cost"] == pytest.approx(0.0003)
    (body,) = stub.bodies
    assert (body["model"], body["max_tokens"], body["temperature"], body["seed"]) == ("stub", 512, 0.0, 0)


def test_an_empty_answer_has_the_lowest_score_without_a_call() -> None:
    """There is nothing to judge."""
    found, _, stub = judged([YES], ("", " \n"))
    assert [each.score for each in found] == [0.0, 0.0] and found[0].tags == {"judge": "empty"}
    assert stub.bodies == []


def test_a_prompt_without_a_reference_is_no_zero() -> None:
    """The bundled rubric `correctness` needs one; `quality` does not."""
    bare = Prompt(prompt_id="p8", messages=(("user", "Sing."),), answer=None, domain="songs")

    async def work(judge: Judge, stub: Stub) -> tuple[Judgement, int]:
        (found,) = await judge.score(bare, completions("la"))
        return found, len(stub.bodies)

    found, calls = with_judge([YES], work)
    assert (found.score, found.status, calls) == (None, "error", 0) and "p8" in found.detail
    rated = says({"helpful": "mostly", "accurate": "true", "clear": 3})
    found, calls = with_judge([rated], work, rubric="quality")
    # (2 x 2/3 + 2 x 1 + 1 x 1/2) / 5
    assert found.score == pytest.approx((4 / 3 + 2 + 0.5) / 5) and calls == 1


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (lambda body: completion("I think it is right."), "invalid", "no JSON object"),
        (says({"correct": "perhaps"}), "invalid", "criterion correct"),
        (says({}), "invalid", "criterion correct has no verdict"),
        (lambda body: completion('{"tag": "' + tag_of(body) + '", "verdicts": {"corr'), "invalid", "no JSON"),
        (lambda body: YES(body) | {"choices": [YES(body)["choices"][0] | {"finish_reason": "length"}]},
         "invalid", "cut off"),
        (lambda body: completion(None, refusal="I cannot help with that."), "error", "I cannot help"),
        (lambda body: completion("", "content_filter"), "error", "content filter"),
        (lambda body: completion("  "), "error", "empty"),
        (lambda body: completion([{"type": "text"}]), "error", "empty"),
        (Fault(400, b'{"error": {"message": "context length"}}'), "error",
         "refused the call with status 400 Bad Request: context length"),
        (Fault(401, b'{"error": {"message": "wrong key"}}'), "error", "status 401 Unauthorized: wrong key"),
        (Fault(418, b"418"), "error", "status 418 I'm a Teapot"),
        (Fault(499, b'{"detail": "gone"}'), "error", "status 499: {'detail': 'gone'}"),
        (Fault(404), "error", "status 404"),
        (Fault(302, headers={"Location": "http://127.0.0.1:9/"}), "error", "status 302"),
    ],
)  # fmt: skip
def test_what_is_no_verdict_is_null_at_once(answer: Answer, status: str, reason: str) -> None:
    """A status and a reason, one call, no retry: to ask again would give the same."""
    (found,), report, stub = judged([answer])
    assert (found.score, found.status) == (None, status) and reason in found.detail
    assert len(stub.bodies) == 1 and report.sums["failed"] == 1 and "retries" not in report.sums


@pytest.mark.parametrize(
    "answer",
    [
        Fault(429),
        Fault(500, b"oops"),
        Fault(503),
        Fault(200, b""),
        Fault(200, WHOLE[:60]),
        Fault(200, b"[]"),
        Fault(200, b'{"choices": []}'),
        Fault(200, b'{"choices": [{"message": "text"}]}'),
        Fault(200, b"[" * 100_000),
        Fault(200, WHOLE, drop_after=0),
        Fault(200, WHOLE, drop_after=50),
    ],
)
def test_what_may_pass_is_tried_again(answer: Fault) -> None:
    """Twice it fails, then the verdict comes; or it never does, and the score is null after all tries."""
    (found,), report, stub = judged([answer, answer, YES])
    assert found.score == 1.0 and len(stub.bodies) == 3 and report.sums["retries"] == 2
    (found,), report, stub = judged([answer], max_retries=2)
    assert found.score is None and found.status == "error" and "(3 tries)" in found.detail
    assert len(stub.bodies) == 3 and report.sums["failed"] == 1


def test_a_slow_endpoint_is_a_timeout_within_the_deadline() -> None:
    """Calls of 0.1 s are tried again until 0.5 s are over; then the score is null. One may still succeed."""
    slow = Fault(200, WHOLE, wait_s=5.0)
    began = time.monotonic()
    (found,), report, _ = judged([slow], call_timeout_s=0.1, deadline_s=0.5, max_retries=1000)
    assert (found.score, found.status) == (None, "timeout") and time.monotonic() - began < 3
    assert report.sums["timed_out"] == 1 and report.sums["calls"] >= 2
    (found,), _, _ = judged([slow, YES], call_timeout_s=0.1, deadline_s=5.0)
    assert found.score == 1.0


def test_an_unreachable_endpoint_is_null_and_refused_at_the_start() -> None:
    """Nothing listens on the port."""

    async def run() -> tuple[list[Judgement], str]:
        judge = Judge(options("http://127.0.0.1:9/v1", canaries="warn", max_retries=0))
        found = await judge.score(PROMPT, completions("4"))
        with pytest.raises(ValueError) as refused:
            await judge.start()
        await judge.close()
        return found, str(refused.value)

    (found,), message = asyncio.run(run())
    assert found.score is None and found.status == "error" and "cannot be reached" in found.detail
    assert message.startswith("judge stub gave no reply: http://127.0.0.1:9/v1 cannot be reached: ")
    assert message.endswith("see that its server runs, and check endpoint, served_model and api_key")


def test_retry_after_is_kept_and_holds_all_calls() -> None:
    """One 429 asks for a second; the second completion, begun after it, waits too."""

    async def work(judge: Judge, stub: Stub) -> tuple[list[float], list[Judgement]]:
        began = time.monotonic()
        times: list[float] = []

        async def one(text: str, after_s: float) -> Judgement:
            await asyncio.sleep(after_s)
            (found,) = await judge.score(PROMPT, completions(text))
            times.append(time.monotonic() - began)
            return found

        return times, list(await asyncio.gather(one("4", 0), one("5", 0.3)))

    times, found = with_judge([Fault(429, headers={"Retry-After": "1"}), YES], work)
    assert [each.score for each in found] == [1.0, 1.0] and min(times) >= 1.0


def test_a_wait_beyond_the_deadline_is_given_up_at_once() -> None:
    """A server that asks for an hour costs no hour."""
    began = time.monotonic()
    (found,), _, stub = judged([Fault(429, headers={"Retry-After": "3600"})])
    assert found.status == "timeout" and "too late" in found.detail and len(stub.bodies) == 1
    assert time.monotonic() - began < 5


def test_calls_in_flight_are_limited() -> None:
    """Never more than `max_concurrent` at the same time."""
    slow = [Fault(200, WHOLE, wait_s=0.02)]
    _, report, stub = judged(slow, [str(k) for k in range(12)], max_concurrent=3)
    assert stub.most_in_flight == 3 and report.sums["calls"] == 12


def test_calls_a_minute_are_spaced_and_never_pile_up() -> None:
    """At 600 a minute, 6 calls take half a second; what finds no room in time does not delay the next."""
    began = time.monotonic()
    found, _, _ = judged([YES], [str(k) for k in range(6)], requests_per_minute=600)
    assert time.monotonic() - began >= 0.5 and {each.score for each in found} == {1.0}

    async def work(judge: Judge, stub: Stub) -> tuple[list[Judgement], list[Judgement]]:
        began = time.monotonic()
        first = await judge.score(PROMPT, completions(*(str(k) for k in range(50))))
        assert time.monotonic() - began < 5, "calls without room must not wait for it"
        await asyncio.sleep(0.6)
        return first, await judge.score(PROMPT, completions("late"))

    first, late = with_judge([YES], work, requests_per_minute=120, deadline_s=1.2, call_timeout_s=1)
    assert [each.score for each in first].count(1.0) <= 4
    assert {each.status for each in first} == {"ok", "timeout"}
    assert late[0].score == 1.0


def test_tokens_a_minute_are_limited_by_what_the_server_counts() -> None:
    """Each call takes 120 tokens; at 72,000 a minute they may begin 0.1 s apart, whatever was estimated."""

    async def work(judge: Judge, stub: Stub) -> float:
        began = time.monotonic()
        for k in range(6):
            await judge.score(PROMPT, completions(str(k)))
        return time.monotonic() - began

    assert 0.5 <= with_judge([YES], work, tokens_per_minute=72_000) < 3.0


def test_equal_answers_are_one_call() -> None:
    """Those of a group, at the same time."""
    found, report, stub = judged([YES], ["4"] * 5 + ["5"])
    assert [each.score for each in found] == [1.0] * 6 and len(stub.bodies) == 2
    assert report.sums["shared"] == 4 and len({tuple(sorted(each.numbers.items())) for each in found}) == 1


def test_a_cancelled_group_does_not_lose_what_is_paid(tmp_path: Path) -> None:
    """Its calls end, and their replies are in the cache."""

    async def work(judge: Judge, stub: Stub) -> int:
        group = asyncio.create_task(judge.score(PROMPT, completions("4")))
        await asyncio.sleep(0.1)
        group.cancel()
        await asyncio.sleep(0.6)
        (found,) = await judge.score(PROMPT, completions("4"))
        assert found.score == 1.0
        return len(stub.bodies)

    def late(body: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.3)
        return YES(body)

    assert with_judge([late], work, cache=str(tmp_path)) == 1


def test_nothing_is_paid_twice(tmp_path: Path) -> None:
    """A second judge with the same folder makes no call and gives the same; failures are asked again."""
    plan = [YES, NO, lambda body: completion("hm")]
    first, report, _ = judged(plan, ["4", "5", "6"], cache=str(tmp_path), max_concurrent=1)
    assert report.sums["calls"] == 3 and [each.score for each in first] == [1.0, 0.0, None]
    assert len(list(tmp_path.rglob("*.json"))) == 2
    again, report, stub = judged([YES], ["4", "5", "6"], cache=str(tmp_path))
    assert again[:2] == first[:2] and report.sums["cached"] == 2 and len(stub.bodies) == 1
    others: list[dict[str, Any]] = [
        {"served_model": "other"}, {"temperature": 0.5}, {"seed": 1}, {"max_tokens": 9}, {"extra": {"k": 1}},
    ]  # fmt: skip
    for changed in others:
        _, _, stub = judged([YES], ["4"], cache=str(tmp_path), **changed)
        assert len(stub.bodies) == 1, f"another request, {changed}, must be another entry"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content.replace(b"yes", b"no "),
        lambda content: content + b" ",
        lambda content: b"0" * 64 + content[64:],
    ],
)
def test_a_damaged_entry_is_asked_again(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """And written again, whole."""
    judged([YES], cache=str(tmp_path))
    (path,) = tmp_path.rglob("*.json")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    (found,), _, stub = judged([YES], cache=str(tmp_path))
    assert found.score == 1.0 and len(stub.bodies) == 1 and path.read_bytes() == whole
    assert [each.name for each in tmp_path.rglob("*.partial")] == []


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    """A file where a folder must be stands for a full disk."""
    judged([YES], cache=str(tmp_path))
    (path,) = tmp_path.rglob("*.json")
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("in the way")
    (found,), _, _ = judged([YES], cache=str(tmp_path))
    assert found.score == 1.0


def test_failed_replies_are_paid_too() -> None:
    """Three calls with usage, one of which was refused and one not readable."""
    refused: Answer = lambda body: completion(None, refusal="no")  # noqa: E731
    unreadable: Answer = lambda body: completion("hm")  # noqa: E731
    found, report, _ = judged([YES, refused, unreadable], ["4", "5", "6"], max_concurrent=1)
    assert [each.score for each in found] == [1.0, None, None]
    assert report.sums["prompt_tokens"] == 3 * PROMPT_TOKENS
    assert report.sums["completion_tokens"] == 3 * COMPLETION_TOKENS
    assert report.sums["cost"] == pytest.approx(3 * (PROMPT_TOKENS * 1 + COMPLETION_TOKENS * 10) / 1e6)
    assert found[2].numbers["cost"] == pytest.approx(report.sums["cost"] / 3)


def test_a_run_that_has_paid_more_than_max_cost_is_stopped() -> None:
    """The calls of several steps together: 3 of 0.0003 are above 0.0008, 2 are not."""

    async def work(judge: Judge, stub: Stub) -> list[str]:
        steps = ("4", "5", "6", "6")  # without a cache the last one is paid again
        return [(await judge.score(PROMPT, completions(each)), judge.take_report().stop)[1] for each in steps]

    each = (PROMPT_TOKENS * 1 + COMPLETION_TOKENS * 10) / 1e6
    stops = with_judge([YES], work, max_cost=2.5 * each)
    assert stops[:2] == ["", ""] and all("more than its share of max_cost" in stop for stop in stops[2:])
    assert with_judge([YES], work) == [""] * 4


def test_only_the_key_of_its_secret_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the OPENAI_API_KEY of the environment; and loopback needs no proxy."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("JUDGE_API_KEY", "sk-judge")
    _, _, stub = judged([YES])
    assert stub.headers[0]["Authorization"] == "Bearer none"
    _, _, stub = judged([YES], api_key="JUDGE_API_KEY")
    assert stub.headers[0]["Authorization"] == "Bearer sk-judge"
    assert "sk-judge" not in json.dumps(stub.bodies)


def test_further_fields_are_sent() -> None:
    """What `extra` says is added to the body, null removes a field, and -1 sends no seed."""
    extra = {"response_format": {"type": "json_object"}, "top_p": None}
    _, _, stub = judged([YES], extra=extra, seed=-1)
    (body,) = stub.bodies
    assert body["response_format"] == {"type": "json_object"} and not {"top_p", "seed"} & body.keys()


def test_instructions_may_be_in_the_users_message() -> None:
    """For templates that refuse a system role; the same text, and another entry in the cache."""
    _, _, usual = judged([YES])
    (found,), _, stub = judged([YES], system_message=False)
    (message,) = stub.bodies[0]["messages"]
    system, user = (each["content"] for each in usual.bodies[0]["messages"])
    assert found.score == 1.0 and message == {"role": "user", "content": f"{system}\n\n{user}"}


def test_a_long_answer_loses_its_middle() -> None:
    """The row says how much was left out; both ends are shown."""
    answer = "begin" + "x" * 500 + "end"
    (found,), _, stub = judged([YES], [answer], max_answer_chars=100)
    content = stub.bodies[0]["messages"][1]["content"]
    assert found.numbers["cut_chars"] == len(answer) - 100
    assert "begin" in content and "end\n<<<END ANSWER" in content and "x" * 101 not in content


@pytest.mark.parametrize(
    ("model", "score", "status"),
    [
        (FakeModel(), 1.0, "ok"),
        (FakeModel(ModelCallError("the engine has failed")), None, "error"),
        (FakeModel(ValueError("the prompt is too long")), None, "error"),
        (FakeModel(wait_s=5), None, "timeout"),
    ],
)
def test_a_model_of_the_run_judges_as_an_endpoint(model: FakeModel, score: float | None, status: str) -> None:
    """Named in `models`, with the same deadline and the same nulls."""
    own = JudgeOptions(
        model="judge", cache="", canaries="none", deadline_s=0.3, call_timeout_s=0.3, price_in=1.0
    )

    async def run() -> tuple[Judgement, ScorerReport]:
        judge = Judge(own, {"judge": model})  # type: ignore[dict-item]
        (found,) = await judge.score(PROMPT, completions("4"))
        await judge.close()
        return found, judge.take_report()

    found, report = asyncio.run(run())
    assert (found.score, found.status) == (score, status) and report.sums["calls"] == 1
    if score is not None:
        assert found.numbers["prompt_tokens"] == 7 and found.numbers["cost"] == pytest.approx(7e-6)
        assert report.sums["cost"] == pytest.approx(7e-6), "paid as the rows say"
    assert model.requests[0].temperature == 0.0 and model.requests[0].max_tokens == 512
