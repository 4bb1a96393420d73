"""A scorer may be a coroutine function, a class or batched: groups in flight, and how a call ends."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import scorer_forms
from rollout_rows import make_sample

from actors.requests import CallStuckError
from actors.scorer import ScorerActor
from configs.kinds.base import OwnOptions
from configs.kinds.scorers import LabPreferenceOptions
from rewards.lab import lab_preference
from rollouts.records import Completion, Judgement, Prompt

PROMPT = Prompt(prompt_id="p1", messages=(("user", "3 + 4"),), answer="7", domain="arithmetic")


def completions(*texts: str) -> list[Completion]:
    made = make_sample("s", 3).completion
    return [replace(made, sample_id=f"s{number}", text=text) for number, text in enumerate(texts)]


def found(judgements: list[Judgement]) -> list[tuple[float | None, str]]:
    return [(judgement.score, judgement.status) for judgement in judgements]


async def together(
    actor: ScorerActor, *groups: tuple[str, ...], limit_s: float | None = None
) -> list[list[tuple[float | None, str]]]:
    """What several groups get that are asked for at once."""
    asked = (actor.score(PROMPT, completions(*texts), limit_s) for texts in groups)
    return [found(group) for group in await asyncio.gather(*asked)]


@pytest.fixture(autouse=True)
def fresh_counts() -> Iterator[None]:
    scorer_forms.in_flight = scorer_forms.most = 0
    scorer_forms.batches.clear()
    scorer_forms.closed.clear()
    yield


def test_a_coroutine_function_has_several_groups_in_flight() -> None:
    """Four groups at once, each with its own results, in the actor's own process."""
    actor = ScorerActor("scorer_forms:plain", OwnOptions({}), 4)
    groups = [("a", "bb"), ("ccc",), ("",), ("dddd", "e")]
    wanted = [[(float(len(text)), "ok") for text in texts] for texts in groups]
    assert asyncio.run(together(actor, *groups)) == wanted
    assert scorer_forms.most == 4
    actor.close()


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("raise", "error"),
        ("exit", "error"),
        ("cancel", "error"),
        ("too late", "timeout"),
        ("wait", "timeout"),
    ],
)
def test_what_goes_wrong_in_a_coroutine_is_a_status(text: str, status: str) -> None:
    """Of its own group alone: the group beside it and the next one are scored."""
    actor = ScorerActor("scorer_forms:plain", OwnOptions({}), 2)
    assert asyncio.run(together(actor, (text, "a"), ("bb",), limit_s=0.5)) == [
        [(None, status)] * 2,
        [(2.0, "ok")],
    ]
    assert asyncio.run(together(actor, ("ccc",), limit_s=0.5)) == [[(3.0, "ok")]]
    actor.close()


def test_a_coroutine_that_will_not_be_cancelled_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is lost, which is reported to the cluster; the other group is not affected."""
    monkeypatch.setattr("actors.scorer.CANCEL_S", 0.1)
    actor = ScorerActor("scorer_forms:plain", OwnOptions({}), 2)

    async def work() -> None:
        stuck = asyncio.ensure_future(actor.score(PROMPT, completions("ignore"), 0.2))
        assert found(await actor.score(PROMPT, completions("a"), 5.0)) == [(1.0, "ok")]
        with pytest.raises(CallStuckError, match=r"more than 0\.2 s"):
            await stuck

    asyncio.run(work())


def test_code_that_blocks_its_loop_does_not_keep_the_process_from_answering() -> None:
    """Two seconds of it: whoever asks whether the process is alive is answered meanwhile."""
    actor = ScorerActor("scorer_forms:plain", OwnOptions({}), 2)

    async def work() -> float:
        blocking = asyncio.ensure_future(actor.score(PROMPT, completions("block")))
        longest, last = 0.0, time.monotonic()
        while not blocking.done():
            await asyncio.sleep(0.01)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        return longest

    assert asyncio.run(work()) < 1.0
    actor.close()


def test_a_class_holds_its_state_and_is_closed() -> None:
    """Made with its options on the loop that its calls run on; `close` is called once."""
    actor = ScorerActor("scorer_forms:Client", OwnOptions({"bonus": 0.5}), 2)
    assert asyncio.run(together(actor, ("a",), ("bb", ""))) == [[(1.5, "ok")], [(2.5, "ok"), (0.5, "ok")]]
    actor.close()
    actor.close()
    assert scorer_forms.closed == ["client"]
    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(actor.score(PROMPT, completions("a")))


def test_plain_methods_run_on_as_many_threads_as_groups_may_be_in_flight() -> None:
    """Both calls wait for each other. One that never returns is stuck; closing does not wait for it."""
    actor = ScorerActor("scorer_forms:Threaded", OwnOptions({}), 2)
    assert asyncio.run(together(actor, ("a",), ("bb",))) == [[(1.0, "ok")], [(2.0, "ok")]]
    with pytest.raises(CallStuckError):
        asyncio.run(actor.score(PROMPT, completions("sleep"), 0.1))
    actor.close()
    assert scorer_forms.closed == ["threaded"]


def test_batched_scorers_see_several_groups_in_one_call() -> None:
    """The lab's preference, a class and a coroutine function: every group gets what it would get alone."""
    groups = [("ba de fi", "go"), ("hu ja",), ("ke li mo nu pa re",)]

    def scored(kind: str, options: object) -> list[list[tuple[float | None, str]]]:
        actor = ScorerActor(kind, options, len(groups))
        made = asyncio.run(together(actor, *groups))
        actor.close()
        return made

    alone = []
    for texts in groups:
        items = [(PROMPT, completion) for completion in completions(*texts)]
        alone.append(found(lab_preference(items, LabPreferenceOptions())))
    assert scored("lab_preference", LabPreferenceOptions()) == alone
    lengths = [[(float(len(text)), "ok") for text in texts] for texts in groups]
    assert scored("scorer_forms:Model", OwnOptions({"max_wait_ms": 10_000.0})) == lengths
    assert scored("scorer_forms:served", OwnOptions({"max_batch": 3})) == [
        [(score + 1.0, status) for score, status in group] for group in lengths if group
    ]
    assert scorer_forms.batches == [4, 3, 1]


def test_a_batch_that_fails_is_an_error_for_each_group_in_it() -> None:
    """Neither waits; the next batch is scored."""
    actor = ScorerActor("scorer_forms:Model", OwnOptions({}), 2)
    assert asyncio.run(together(actor, ("raise",), ("a", "b"))) == [[(None, "error")], [(None, "error")] * 2]
    assert asyncio.run(together(actor, ("a",), ("bb",))) == [[(1.0, "ok")], [(2.0, "ok")]]
    actor.close()


def test_a_batch_that_hangs_is_a_timeout_for_each_group_and_then_stuck() -> None:
    """It runs on a thread, which nothing ends: the last group that gives it up says so."""
    actor = ScorerActor("scorer_forms:Model", OwnOptions({}), 2)

    async def work() -> list[object]:
        first = asyncio.ensure_future(actor.score(PROMPT, completions("sleep"), 0.2))
        second = asyncio.ensure_future(actor.score(PROMPT, completions("a"), 0.4))
        return list(await asyncio.gather(first, second, return_exceptions=True))

    first, second = asyncio.run(work())
    assert isinstance(first, list) and found(first) == [(None, "timeout")]
    assert isinstance(second, CallStuckError)
    actor.close()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("scorer_forms:NoScorer", {}, "must have a method score, NoScorer has none"),
        ("scorer_forms:Client", {"bonus": -1}, "bonus must not be negative, got -1"),
        ("scorer_forms:Client", {}, "KeyError: 'bonus'"),
        ("scorer_forms:Model", {"max_batch": 0}, "max_items must be at least 1, got 0"),
        ("scorer_forms:absent", {}, "absent"),
    ],
)
def test_a_scorer_that_cannot_start_says_why(kind: str, options: dict[str, object], message: str) -> None:
    """At the start, in one line."""
    with pytest.raises(ValueError, match=r"scorer .* must start") as raised:
        ScorerActor(kind, OwnOptions(options))
    assert message in str(raised.value) and "\n" not in str(raised.value)


OWN_FUNCTIONS = """
import os

def compute_score(data_source, solution_str, ground_truth, extra_info):
    if solution_str == "bad":
        raise KeyError("nope")
    return os.getpid()

def rank(prompt, completions, options):
    from rollouts.records import Judgement
    return [Judgement(score=float(os.getpid())) for _ in completions]
"""


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("custom", {"function": "mine_inline:compute_score"}),
        ("mine_inline:rank", {}),
    ],
)
def test_inline_code_runs_in_this_process_without_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, str]
) -> None:
    """So that a debugger reaches it; by default it has a process of its own."""
    (tmp_path / "mine_inline.py").write_text(OWN_FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mine_inline", None)  # the other case has imported it from its own folder
    actor = ScorerActor(kind, options, inline=True)
    here = (float(os.getpid()), "ok")
    assert asyncio.run(together(actor, ("a", "b"), ("c",), limit_s=0.0)) == [[here, here], [here]]
    if kind == "custom":  # a completion that fails leaves the others their scores
        judgements = asyncio.run(actor.score(PROMPT, completions("a", "bad")))
        assert found(judgements) == [here, (None, "error")]
        assert judgements[1].detail == f"{tmp_path}/mine_inline.py:6 in compute_score: KeyError: 'nope'"
    actor.close()
    isolated = ScorerActor(kind, options)
    ((score, status),) = asyncio.run(together(isolated, ("a",)))[0]
    assert status == "ok" and score != os.getpid()
    isolated.close()


def test_a_method_that_raises_stop_iteration_is_an_error_at_once() -> None:
    """asyncio passes it to nobody, so that the group would wait for its limit."""
    actor = ScorerActor("scorer_forms:Exhausted", OwnOptions({}))
    (judgement,) = asyncio.run(actor.score(PROMPT, completions("x"), 20.0))
    actor.close()
    assert judgement.status == "error" and "StopIteration" in judgement.detail
