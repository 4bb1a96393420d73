"""A scorer class may be started and report of itself; what it reports is masked as everything else."""

from __future__ import annotations

import asyncio

import pytest

from actors.scorer import ScorerActor
from actors.secrets import Secrets
from configs.kinds.base import OwnOptions
from configs.kinds.scorers import LengthOptions
from rewards.scorer_reports import ScorerReport
from rollouts.events import describe_event
from rollouts.records import Prompt

PROMPT = Prompt(prompt_id="p", messages=(("user", "?"),), answer="4", domain="math")


def test_a_report_is_taken_and_its_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts begin again with each report; the value of a secret does not leave the process."""
    monkeypatch.setenv("JUDGE_API_KEY", "")  # the scorer sets it in this process: restored afterwards
    secrets = Secrets({"JUDGE_API_KEY": "sk-live-0123456789"})
    actor = ScorerActor("reporting_scorer:Reporting", OwnOptions({}), 2, secrets)
    try:
        for _ in range(3):
            asyncio.run(actor.score(PROMPT, []))
        first, second = asyncio.run(actor.take_report()), asyncio.run(actor.take_report())
    finally:
        actor.close()
    assert (
        first.sums == {"calls": 3.0} and second.sums == {"calls": 0.0} and first.maxima == {"slowest_s": 0.5}
    )
    assert first.events[0].fields == {"key": "***", "n": 1.0}


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        ("raises", "KeyError: 'no such count'"),
        ("text", "must return a ScorerReport, got str"),
        ("nan", "number 'calls' of a report must be finite, got nan"),
        ("name", "event noted: a field must not be named 'scorer'"),
        ("value", "event noted: n must be text or a finite number, got inf"),
    ],
)
def test_a_report_that_cannot_be_used_is_an_event(report: str, reason: str) -> None:
    """It neither ends the run, whose events could not be written, nor is it lost without a word."""
    actor = ScorerActor("reporting_scorer:Reporting", OwnOptions({"report": report}))
    try:
        taken = asyncio.run(actor.take_report())
    finally:
        actor.close()
    (event,) = taken.events
    assert event.kind == "report_failed" and reason in str(event.fields["reason"]) and not taken.sums
    said = describe_event(event.kind, {"scorer": "mine", **event.fields})
    assert said.startswith("scorer mine: its take_report cannot be used: ")


def test_an_event_of_a_known_kind_may_have_other_fields() -> None:
    assert describe_event("resumed", {"scorer": "mine"}) == "resumed: scorer mine"


def test_a_scorer_that_cannot_start_says_why() -> None:
    with pytest.raises(ValueError, match=r"must start, got .*ValueError: no judge is there"):
        ScorerActor("reporting_scorer:Reporting", OwnOptions({"problem": "no judge is there"}))


def test_a_scorer_without_reports_has_an_empty_one() -> None:
    """A plain function in the actor."""
    actor = ScorerActor("length", LengthOptions())
    try:
        assert asyncio.run(actor.take_report()) == ScorerReport()
    finally:
        actor.close()
