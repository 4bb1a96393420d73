"""A run interrupted anywhere resumes to the same result: the loop with roles in memory, on real files."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from loop_fakes import (
    FakeLearner,
)
from matrices import parts
from run_files import damage
from trial import NUM_STEPS, Killed, Result, Trial, call_of, go_on, killed, result_of, seven_demonstrations

from configs.schema import (
    RolloutConfig,
    RunConfig,
)
from rollouts.checkpoints import checkpoint_dir, checkpoint_steps
from rollouts.store import committed_steps, step_dir
from rollouts.sums import digest_file, write_sums
from trainer.data.demonstrations import draw
from trainer.update_watch import NonFiniteError


@pytest.fixture(scope="module", params=[0, pytest.param(1, marks=pytest.mark.slow)], ids=["lag 0", "lag 1"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trial, Result]:
    """A run that is not interrupted, for each lag."""
    trial = Trial(tmp_path_factory.mktemp("whole") / "run", max_lag=request.param)
    assert trial.train()
    result = result_of(trial)
    assert len(result.steps) == NUM_STEPS and result.checkpoints == [4, 6] and set(result.evals) == {0, 3, 6}
    return trial, result


def test_visits_are_a_fold_over_the_steps_before(whole: tuple[Trial, Result]) -> None:
    """By prompt and answer, from the committed rows alone; no step counts itself, none counts twice."""
    counts: Counter[tuple[str, str | None]] = Counter()
    for table in whole[1].steps:
        keys = list(zip(*(table.column(name).to_pylist() for name in ("prompt_id", "answer")), strict=True))
        assert table.column("visit_count").to_pylist() == [counts[key] for key in keys]
        counts.update(keys)
    assert max(counts.values()) == 6, "a prompt comes in the third epoch again"


@pytest.mark.parametrize("part", parts(31))
def test_demonstrations_are_drawn_alike_after_a_resume(tmp_path: Path, part: int) -> None:
    """Those that `draw` gives, in steps after one of low entropy; and the same rows, controller and learner
    after a kill at any call.
    """
    reference = Trial(tmp_path / "whole", refresh=True)
    assert reference.train()
    expected = result_of(reference)
    config, counts = RunConfig(rollout=RolloutConfig(group_size=2, groups_per_step=2)), []
    for step, (table, line) in enumerate(zip(expected.steps, expected.metrics, strict=True)):
        names = [name for name in table.column("sample_id").to_pylist() if name.startswith("sft-")]
        share = cast(float, line["control/sft.share"])
        drawn = draw(seven_demonstrations(), config, step, share)
        assert names == drawn.column("sample_id").to_pylist()
        low = step > 0 and cast(float, expected.metrics[step - 1]["entropy/token_mean"]) < 0.7
        assert share == (0.5 if low else 0.0)
        counts.append(len(names))
    assert set(counts) == {0, 2}, "this seed has steps of both kinds"
    assert all("sft.share" not in learned.settings for learned in reference.learner.learned)
    for fatal, name in list(enumerate(reference.calls))[part::31]:
        trial = Trial(tmp_path / str(fatal), refresh=True)
        trial.kill_at(fatal, before=fatal % 2 == 0)
        with pytest.raises(Killed):
            trial.train()
        again = Trial(tmp_path / str(fatal), refresh=True, attempt=2)
        assert again.train()
        assert result_of(again) == expected, f"killed at call {fatal}, {name}"


@pytest.mark.parametrize("part", parts(13))
def test_killed_at_every_call(whole: tuple[Trial, Result], tmp_path: Path, part: int) -> None:
    """Two processes give what one gives, whichever call of a role is the last of the first process.

    It ends before the call or after its effect, alternating; the two lags alternate in opposite order.
    """
    reference, expected = whole
    for fatal, name in list(enumerate(reference.calls))[part::13]:
        folder = tmp_path / str(fatal)
        killed(folder, reference.max_lag, fatal, before=(fatal // 13 + reference.max_lag) % 2 == 0)
        assert result_of(go_on(folder, reference.max_lag)) == expected, f"killed at call {fatal}, {name}"
        shutil.rmtree(folder)


@pytest.mark.parametrize("seed", parts(3))
def test_killed_again_and_again(whole: tuple[Trial, Result], tmp_path: Path, seed: int) -> None:
    """Five times, also during the restore."""
    reference, expected = whole
    fatal = np.random.default_rng((seed, reference.max_lag)).integers(len(reference.calls) // 3, size=5)
    for attempt, number in enumerate(fatal, 1):
        killed(tmp_path / "run", reference.max_lag, int(number), bool(number % 2), attempt)
    assert result_of(go_on(tmp_path / "run", reference.max_lag, attempt=6)) == expected


@pytest.mark.parametrize("part", parts(7))
def test_the_learner_lost_at_every_call_of_it(whole: tuple[Trial, Result], tmp_path: Path, part: int) -> None:
    """One process: it restarts the learner from the newest checkpoint, with the same result."""
    reference, expected = whole
    fatal = [number for number, name in enumerate(reference.calls) if name.startswith("learner.")]
    for number in fatal[part::7]:
        folder = tmp_path / str(number)
        trial = Trial(folder, max_lag=reference.max_lag)
        trial.lose_learner_at(number, before=(number + reference.max_lag) % 2 == 0)
        assert trial.train()
        assert result_of(trial) == expected, f"lost at call {number}, {reference.calls[number]}"
        assert trial.calls.count("learner.restart") == 1
        shutil.rmtree(folder)


@pytest.mark.parametrize("part", parts(13))
def test_stopped_at_every_call(whole: tuple[Trial, Result], tmp_path: Path, part: int) -> None:
    """A checkpoint of the last finished step is written, and the next process resumes from it."""
    reference, expected = whole
    for number in range(reference.max_lag + part, len(reference.calls), 13):
        folder = tmp_path / str(number)
        trial = Trial(folder, max_lag=reference.max_lag)

        def stop_at(at: int, name: str, before: bool, trial: Trial = trial, number: int = number) -> None:
            if at == number:
                trial.run.stop()

        trial.act = stop_at
        finished = trial.train()
        where = f"stopped at call {number}, {reference.calls[number]}"
        steps, saved = committed_steps(folder), checkpoint_steps(folder)
        assert saved[-1:] == steps[-1:], where
        assert not finished or steps[-1:] == [NUM_STEPS], where
        again = go_on(folder, reference.max_lag)
        assert replace(result_of(again), checkpoints=[]) == replace(expected, checkpoints=[]), where
        assert not (folder / "abandoned").exists(), "nothing is trained twice"
        shutil.rmtree(folder)


def test_what_was_sampled_is_not_sampled_again(whole: tuple[Trial, Result], tmp_path: Path) -> None:
    """No checkpoint yet, one step committed and one trained but not committed: both are trained on again."""
    reference, _ = whole
    first = killed(tmp_path, reference.max_lag, call_of(reference, "buffer.commit", 2))
    made = {call for call in first.generator.calls[1:] if call.startswith("generate 0")}
    second = go_on(tmp_path, reference.max_lag)
    again = [call for call in second.generator.calls[1:] if call.startswith("generate 0")]
    assert len(made) >= 4 and made.isdisjoint(again) and len(made | set(again)) == 2 * NUM_STEPS
    waiting = 4 + 2 * reference.max_lag
    assert second.events == [f"resumed step=0 groups_waiting={waiting} steps_to_train_again=1"]
    assert os.listdir(tmp_path / "abandoned" / "attempt_2" / "rollouts") == ["step=000001"]


def test_a_damaged_checkpoint_is_passed_over_loudly(whole: tuple[Trial, Result], tmp_path: Path) -> None:
    """The one before is used, two more steps are trained again, and the result is the same."""
    reference, expected = whole
    killed(tmp_path, reference.max_lag, call_of(reference, "buffer.commit", 6))
    damage(checkpoint_dir(tmp_path, 4) / "learner-00000-of-00001.safetensors")
    second = go_on(tmp_path, reference.max_lag)
    assert second.events[0].startswith("checkpoint_damaged reason=") and "step-000004" in second.events[0]
    assert second.events[1].startswith("resumed step=2") and "steps_to_train_again=3" in second.events[1]
    assert result_of(second) == expected
    assert os.listdir(tmp_path / "abandoned" / "checkpoints") == ["step-000004"]


def test_without_a_whole_checkpoint_it_refuses(whole: tuple[Trial, Result], tmp_path: Path) -> None:
    """It never starts over silently; no file is changed."""
    reference, _ = whole
    killed(tmp_path, reference.max_lag, call_of(reference, "buffer.commit", 6))
    for step in (2, 4):
        damage(checkpoint_dir(tmp_path, step) / "manifest.json")
    second = Trial(tmp_path, max_lag=reference.max_lag, attempt=2)
    with pytest.raises(
        ValueError, match=r"must have an intact checkpoint, got 2 damaged: .*step-000004.*step-000002"
    ):
        second.train()
    assert committed_steps(tmp_path) == [1, 2, 3, 4, 5] and checkpoint_steps(tmp_path) == [2, 4]
    assert not (tmp_path / "abandoned").exists()


def test_a_checkpoint_of_another_experiment_is_refused(tmp_path: Path) -> None:
    """Its weights belong to other settings."""
    killed(tmp_path, 0, 60)
    manifest = checkpoint_dir(tmp_path, 2) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"experiment"', '"elsewhere!"'))
    write_sums(
        manifest.parent,
        {path.name: digest_file(path) for path in manifest.parent.iterdir() if path.name != "SHA256SUMS"},
    )
    with pytest.raises(ValueError, match="must be of experiment experiment, got elsewhere!"):
        Trial(tmp_path, attempt=2).train()


def test_a_damaged_step_is_sampled_again(whole: tuple[Trial, Result], tmp_path: Path) -> None:
    """Its groups and no others, with their seeds; it is reported."""
    reference, expected = whole
    killed(tmp_path, reference.max_lag, call_of(reference, "buffer.commit", 6))
    damage(next(step_dir(tmp_path, "rollouts", 5).glob("*.parquet")))
    second = go_on(tmp_path, reference.max_lag)
    assert second.events[0].startswith("rollouts_damaged reason=") and "step=000005" in second.events[0]
    again = {call for call in second.generator.calls[1:] if call.startswith("generate 0")}
    assert again == {"generate 00000008", "generate 00000009"}
    result = result_of(second)
    if reference.max_lag == 0:
        assert result == expected
    else:  # those two groups are of newer weights now
        assert result.steps[:4] == expected.steps[:4] and len(result.steps) == NUM_STEPS


def test_a_finished_run_does_nothing_and_a_longer_one_continues(
    whole: tuple[Trial, Result], tmp_path: Path
) -> None:
    """Another process on a finished run trains nothing; with more steps it continues like a longer run."""
    reference, expected = whole
    lag = reference.max_lag
    assert Trial(tmp_path / "run", max_lag=lag).train()
    idle = Trial(tmp_path / "run", max_lag=lag, attempt=2)
    assert idle.train() and "learner.update" not in idle.calls and result_of(idle) == expected
    longer = Trial(tmp_path / "run", max_lag=lag, attempt=3, num_steps=NUM_STEPS + 3)
    assert longer.train() and longer.calls.count("learner.update") == 3
    at_once = Trial(tmp_path / "at once", max_lag=lag, num_steps=NUM_STEPS + 3)
    assert at_once.train()
    if lag == 0:
        assert result_of(longer) == result_of(at_once)
    assert longer.generator.calls.count("generate 00000012") == 1


def test_skipped_updates_in_a_row_are_counted_across_processes(tmp_path: Path) -> None:
    """Two before the checkpoint of step 4, one after it: three in a row stop the second process."""
    skipping = frozenset({2, 3, 4})
    first = Trial(tmp_path, learner=FakeLearner(nonfinite_steps=skipping))
    first.act = lambda number, name, before: first.run.stop() if first.learner.version == 4 else None
    assert not first.train() and checkpoint_steps(tmp_path) == [2, 4]
    second = Trial(tmp_path, attempt=2, learner=FakeLearner(nonfinite_steps=skipping))
    with pytest.raises(NonFiniteError, match="3 updates in a row"):
        second.train()
    assert committed_steps(tmp_path) == [1, 2, 3, 4, 5]
