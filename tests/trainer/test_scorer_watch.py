"""Reports of scorers become metrics and events, and a scorer that fails too often ends the run in time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from loop_fakes import FakeGenerator, FileBuffer, token_prompts
from test_collect import CONFIG

from configs.bound import bind
from configs.kinds.scorers import ScorerCommon
from rewards.scorer_reports import ScorerEvent, ScorerReport, combined, masked
from rollouts.records import Completion, Group, Judgement, Prompt
from trainer.data.prompts import PromptOrder
from trainer.rollout.dynamic_sampling import submissions_per_step
from trainer.rollout.producer import Producer
from trainer.rollout.rollouter import ScorerSet
from trainer.scorer_watch import WINDOW, FailureWatch, ScorerReports, ScorerStoppedError


class Reporting:
    """A scorer with reports; it has no score for the first `num_missing` completions."""

    def __init__(self, reports: Sequence[ScorerReport] = (), num_missing: int = 0) -> None:
        self.reports, self.num_missing = list(reports), num_missing

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        found = []
        for _ in completions:
            missing = self.num_missing > 0
            self.num_missing -= 1
            found.append(Judgement(score=None, status="error") if missing else Judgement(score=1.0))
        return found

    async def take_report(self) -> ScorerReport:
        return self.reports.pop(0) if self.reports else ScorerReport()


def test_numbers_of_replicas_are_added_and_the_largest_is_kept() -> None:
    event = ScorerEvent(kind="judge_fooled", fields={"judge": "m"})
    one = ScorerReport(sums={"calls": 3, "cost": 0.5}, maxima={"slowest_call_s": 2.0}, events=(event,))
    two = ScorerReport(sums={"calls": 4}, maxima={"slowest_call_s": 1.0}, stop="no")
    both = combined([one, two])
    assert both.sums == {"calls": 7, "cost": 0.5} and both.maxima == {"slowest_call_s": 2.0}
    assert both.events == (event,) and both.stop == "no" and combined([]) == ScorerReport()


def test_secrets_are_masked_in_reports() -> None:
    event = ScorerEvent(kind="x", fields={"why": "key sk-1 refused", "score": 1.0})
    report = masked(ScorerReport(events=(event,), stop="sk-1"), lambda text: text.replace("sk-1", "***"))
    assert report.events[0].fields == {"why": "key *** refused", "score": 1.0} and report.stop == "***"


def test_reports_become_metrics_events_and_a_stop() -> None:
    """What is seen at the start counts in the first step; what comes after the last step is an event."""
    event = ScorerEvent(kind="judge_fooled", fields={"judge": "m", "canary": "bad"})
    reports = [
        ScorerReport(sums={"calls": 8}, maxima={"slowest_call_s": 3.0}, events=(event,)),
        ScorerReport(sums={"calls": 2}, maxima={"slowest_call_s": 1.0}),
        ScorerReport(sums={"calls": 5.0, "cost": 0.25}, stop="it falls for everything"),
    ]
    events: list[tuple[str, dict[str, object]]] = []
    scorer = Reporting(reports)
    watch = ScorerReports({"judge": scorer, "plain": object()}, lambda kind, **f: events.append((kind, f)))  # type: ignore[dict-item]

    async def run() -> dict[str, float]:
        await watch.look()
        metrics = await watch.take()
        watch.check()
        await watch.finish()
        return metrics

    assert asyncio.run(run()) == {"health/judge/calls": 10.0, "health/judge/slowest_call_s": 3.0}
    assert events == [
        ("judge_fooled", {"scorer": "judge", "judge": "m", "canary": "bad"}),
        ("scorer_calls", {"scorer": "judge", "calls": 5.0, "cost": 0.25}),
    ]
    with pytest.raises(ScorerStoppedError, match="scorer judge: it falls for everything"):
        watch.check()


def sampled(folder: Path, scorer: Reporting, limit: float, num_groups: int = 60) -> tuple[int, str]:
    """(groups stored, why it ended) of a step of `num_groups` groups of 2 with a limit of missing scores."""
    rollout = replace(CONFIG.rollout, groups_per_step=num_groups)
    config = replace(CONFIG, rollout=rollout, num_steps=1)
    buffer = FileBuffer(folder, submissions_per_step(config))
    scorers = ScorerSet(
        scorers={"judge": scorer},
        common_keys={"judge": ScorerCommon(kind="judge", weight=1.0)},
        failure_limits={"judge": limit},
    )
    order = PromptOrder(token_prompts(5), config.seed, config.data.shuffle)
    producer = Producer(
        bind(config), order, FakeGenerator(), scorers, buffer, scorer_log=lambda name: f"{name}.log"
    )
    stored: list[Group] = []
    producer.on_group = stored.append

    async def run() -> str:
        producer.top_up(0)
        try:
            await producer.settle(0)
        except ScorerStoppedError as error:
            return str(error)
        finally:
            await producer.close()
        return ""

    try:
        why = asyncio.run(run())
        return len(stored), why
    finally:
        buffer.actor.close()


def test_a_scorer_that_fails_too_often_ends_the_run_before_the_group_is_stored(tmp_path: Path) -> None:
    """A quarter of 64 is 16: the 17th missing score ends it. Eight groups are stored, not the ninth."""
    stored, why = sampled(tmp_path / "a", Reporting(num_missing=10**6), limit=0.25)
    assert stored == 8 and "scorer judge: 18 of the last 18 scores are missing (error 18)" in why
    assert "judge.log" in why and "max_failure_share = 0.25 of 64" in why
    assert sampled(tmp_path / "b", Reporting(num_missing=16), limit=0.25) == (60, "")
    assert sampled(tmp_path / "c", Reporting(num_missing=10**6), limit=1.0) == (60, "")


def test_only_recent_scores_count() -> None:
    """Ten missing, then a window of good ones, then ten again: never more than 16 of 64."""
    watch = FailureWatch({"judge": 0.25}, str)

    def group(*statuses: str) -> Group:
        samples = tuple(_Sample({"judge": status}) for status in statuses)
        return Group(submission=None, samples=samples)  # type: ignore[arg-type]

    for _ in range(3):
        watch.observe(group(*["timeout"] * 10))
        watch.observe(group(*["ok"] * WINDOW))
    watch.observe(group(*["timeout"] * 16))
    with pytest.raises(ScorerStoppedError, match=r"17 of the last 64 .*\(error 1, timeout 16\)"):
        watch.observe(group("error"))


class _Sample:
    """As much of a sample as is counted."""

    def __init__(self, score_status: dict[str, str]) -> None:
        self.score_status = score_status
