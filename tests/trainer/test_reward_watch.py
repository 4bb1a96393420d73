"""Completions without a reward: what is reported, and when a run ends."""

from __future__ import annotations

import pytest

from rollouts.records import Judgement
from trainer.reward_watch import FirstFailures, NoRewardError, RewardWatch

NOTHING = {"reward/null_share": 1.0, "failed/mine/invalid": 6.0, "failed/mine/error": 2.0}
HALF = {"reward/null_share": 0.5, "failed/mine/invalid": 3.0, "failed/other/timeout": 1.0}
ALL = {"reward/null_share": 0.0}


def watch(num_steps: int) -> tuple[RewardWatch, list[str]]:
    notes: list[str] = []
    return RewardWatch(num_steps, notes.append, lambda name: f"logs/{name}.log"), notes


def test_a_failed_scorer_is_named_with_its_logs() -> None:
    """Each scorer, each status, each log once; nothing if nothing failed."""
    rewards, notes = watch(10)
    for step, metrics in enumerate((HALF, ALL, NOTHING), 1):
        rewards.observe(metrics, step)
    assert notes == [
        "step 1: 50% of completions have no reward (mine/invalid 3, other/timeout 1; the reasons are in "
        "logs/mine.log, logs/other.log)",
        "step 3: 100% of completions have no reward (mine/invalid 6, mine/error 2; the reasons are in "
        "logs/mine.log)",
    ]


def test_the_first_reason_of_each_scorer_and_status_is_reported() -> None:
    """Once, on one line, with the log; scores that are there are not talked about."""
    notes: list[str] = []
    failures = FirstFailures(notes.append, lambda name: f"logs/{name}.log")
    for detail in ("mine.py:12 in f:\n KeyError: 'answer'", "mine.py:13 in f: ValueError: other"):
        failures.observe("mine", Judgement(score=None, status="error", detail=detail))
    failures.observe("mine", Judgement(score=1.0))
    failures.observe("mine", Judgement(score=None, status="timeout"))
    failures.observe("other", Judgement(score=None, status="error", detail="x" * 1000))
    assert notes[0] == (
        "scorer mine could not score a completion (error): mine.py:12 in f: KeyError: 'answer'. "
        "Others with this status are only counted, in failed/mine/error; log: logs/mine.log"
    )
    assert notes[1].startswith("scorer mine could not score a completion (timeout): no reason was given. ")
    assert "x" * 300 + "..." in notes[2] and "x" * 301 not in notes[2]
    assert len(notes) == 3


@pytest.mark.parametrize(("num_steps", "last"), [(1, 1), (2, 2), (3, 3), (4, 3), (100, 3)])
def test_three_steps_or_all_of_them_end_the_run(num_steps: int, last: int) -> None:
    """Whichever comes first."""
    rewards, _ = watch(num_steps)
    for step in range(1, last):
        rewards.observe(NOTHING, step)
    with pytest.raises(NoRewardError, match=rf"step {last}: .*another name"):
        rewards.observe(NOTHING, last)


def test_one_reward_starts_the_count_again() -> None:
    """Two, one, two: the run continues, and its end is a success."""
    rewards, _ = watch(5)
    for step, metrics in enumerate((NOTHING, NOTHING, HALF, NOTHING, NOTHING), 1):
        rewards.observe(metrics, step)
    rewards.finish(5)


def test_a_run_that_is_cut_short_is_no_success_either() -> None:
    """Started for 10 steps, resumed for 2, which by the checkpoint had no reward."""
    rewards, _ = watch(2)
    rewards.in_a_row = 2
    with pytest.raises(NoRewardError, match="no completion of the run has a reward, 2 steps in a row"):
        rewards.finish(2)
