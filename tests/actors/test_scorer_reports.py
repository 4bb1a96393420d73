"""A scorer class may be started and report of itself; what it reports is masked as everything else."""

from __future__ import annotations

import asyncio

import pytest

from actors.scorer import ScorerActor
from actors.secrets import Secrets
from configs.kinds.base import OwnOptions
from configs.kinds.scorers import LengthOptions
from rewards.scorer_reports import ScorerReport
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
