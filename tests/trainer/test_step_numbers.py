"""Step numbers in files, reports and events are the committed ones: the first step is 1."""

from __future__ import annotations

from pathlib import Path

from run_files import damage
from trial import NUM_STEPS, Trial

from rollouts.events import describe_event
from rollouts.store import step_dir

STEP = 3
"""The step, counted from 1, in which something happens."""


def test_phases_count_as_commits_do(tmp_path: Path) -> None:
    """All phases of a step have its committed number, also those after the commit."""
    trial = Trial(tmp_path / "run")
    commits = 0

    def check(number: int, name: str, before: bool) -> None:
        nonlocal commits
        if name == "buffer.commit" and before:
            commits += 1
            assert trial.phases[-1] == (commits, "committing")

    trial.act = check
    assert trial.train() and commits == NUM_STEPS
    assert [step for step, _ in trial.phases] == sorted(step for step, _ in trial.phases)
    once = ["generating", "scoring", "learning", "publishing", "committing"]
    for step in range(1, NUM_STEPS + 1):
        saved = ["checkpointing"] if step % 2 == 0 else []
        assert [name for at, name in trial.phases if at == step] == [*once, *saved, "idle"]


def test_groups_that_are_missing_are_reported_with_their_step(tmp_path: Path) -> None:
    """The buffer loses a group of step 3 just before it is taken."""
    trial = Trial(tmp_path / "run")

    def lose(number: int, name: str, before: bool) -> None:
        if name == "buffer.take" and before and trial.learner.version == STEP - 1:
            trial.act = lambda number, name, before: None
            index = 2 * (STEP - 1)
            del trial.buffer.actor._waiting[index], trial.buffer.actor._seen[index]
            trial.buffer.actor._journal.drop([index])

    trial.act = lose
    assert trial.train() and trial.events == [f"groups_missing step={STEP} groups=1"]
    assert describe_event("groups_missing", {"step": STEP, "groups": 1}).startswith("step 3: ")


def test_replay_that_is_left_out_is_reported_with_its_step(tmp_path: Path) -> None:
    """Step 3 can only replay groups of steps 1 and 2, whose files are damaged by then."""
    trial = Trial(tmp_path / "run", replay=1)

    def spoil(number: int, name: str, before: bool) -> None:
        if name == "buffer.take" and before and trial.learner.version == STEP - 1:
            trial.act = lambda number, name, before: None
            for step in (1, 2):
                damage(next(step_dir(trial.folder, "rollouts", step).glob("*.parquet")))

    trial.act = spoil
    assert trial.train() and trial.events[0] == f"replay_left_out step={STEP} groups=1"
