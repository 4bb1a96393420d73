"""Checkpoints: the newest whole one is found, damaged ones are reported, and none is ever half there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rollout_rows import DyingDisk, snapshot
from run_files import damage, manifest_of, save_checkpoint, write_state

from rollouts.checkpoints import (
    Manifest,
    checkpoint_dir,
    checkpoint_steps,
    finish_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    stage_checkpoint,
)
from rollouts.sums import DamagedError, check_sums

RANK_1 = "learner-00001-of-00002.safetensors"


def test_save_and_read(tmp_path: Path) -> None:
    """The manifest comes back; sizes and digests of the learner's files are in it; staging is empty again."""
    folder = save_checkpoint(tmp_path, 10)
    assert folder == checkpoint_dir(tmp_path, 10) == tmp_path / "checkpoints" / "step-000010"
    assert sorted(path.name for path in folder.iterdir()) == [
        "SHA256SUMS",
        "learner-00000-of-00002.safetensors",
        "learner-00001-of-00002.safetensors",
        "manifest.json",
    ]
    assert read_checkpoint(tmp_path, 10) == manifest_of(10)
    files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    assert files[RANK_1]["bytes"] == 1400
    assert files[RANK_1]["sha256"] in (folder / "SHA256SUMS").read_text(encoding="utf-8")
    assert list((tmp_path / ".staging").iterdir()) == []
    with pytest.raises(ValueError, match="step-000011: no such checkpoint"):
        read_checkpoint(tmp_path, 11)


def test_newest_passes_over_damage_and_never_starts_from_scratch(tmp_path: Path) -> None:
    """None without any; the newest; the one before with a message; an error when all are damaged."""
    assert newest_checkpoint(tmp_path) == (None, [])
    for step in (2, 10, 4):
        save_checkpoint(tmp_path, step)
    (tmp_path / "checkpoints" / "notes").mkdir()
    assert checkpoint_steps(tmp_path) == [2, 4, 10]
    assert newest_checkpoint(tmp_path) == (manifest_of(10), [])
    damage(checkpoint_dir(tmp_path, 10) / RANK_1)
    manifest, messages = newest_checkpoint(tmp_path)
    assert manifest == manifest_of(4)
    assert len(messages) == 1 and "step-000010/learner-00001-of-00002.safetensors" in messages[0]
    (checkpoint_dir(tmp_path, 4) / "manifest.json").unlink()
    (checkpoint_dir(tmp_path, 2) / "SHA256SUMS").unlink()
    with pytest.raises(
        ValueError, match=r"must have an intact checkpoint, got 3 damaged: .*step-000010.*000004"
    ):
        newest_checkpoint(tmp_path)


def test_what_the_learner_did_not_write_is_no_checkpoint(tmp_path: Path) -> None:
    """A file missing, unknown, or not what its writer meant: nothing appears and nothing is left."""
    for change, message in (
        (lambda staging: (staging / RANK_1).unlink(), "must be a file that the learner wrote, got none"),
        (lambda staging: (staging / "x").touch(), "x: is not listed"),
        (lambda staging: damage(staging / RANK_1), "got .* after writing"),
    ):
        staging = stage_checkpoint(tmp_path, 3)
        sums = write_state(staging, 3)
        change(staging)
        with pytest.raises(DamagedError, match=message):
            finish_checkpoint(tmp_path, staging, manifest_of(3), sums)
        assert not staging.exists()
        assert checkpoint_steps(tmp_path) == []
    staging = stage_checkpoint(tmp_path, 3)
    with pytest.raises(ValueError, match=r"manifest\.json must have finite numbers"):
        state = {"beta": float("nan")}
        sums = write_state(staging, 3)
        finish_checkpoint(tmp_path, staging, Manifest(step=3, config_hash="x", state=state), sums)
    assert not staging.exists()
    assert checkpoint_steps(tmp_path) == []


def test_a_whole_one_stays_a_damaged_one_is_replaced(tmp_path: Path) -> None:
    """Saving a step again changes nothing; over a damaged checkpoint it takes its place."""
    folder = save_checkpoint(tmp_path, 3)
    before = snapshot(folder)
    assert save_checkpoint(tmp_path, 3) == folder
    assert list((tmp_path / ".staging").iterdir()) == []
    for number in range(2):
        damage(folder / RANK_1)
        assert save_checkpoint(tmp_path, 3) == folder
        assert snapshot(folder) == before
        assert len(list((tmp_path / "abandoned" / "checkpoints").iterdir())) == number + 1
    assert newest_checkpoint(tmp_path) == (manifest_of(3), [])


def test_staging_is_fresh(tmp_path: Path) -> None:
    """What a crash left goes with the next save of any step; staged steps and evaluations stay."""
    (stage_checkpoint(tmp_path, 3) / "half").touch()
    other = tmp_path / ".staging" / "eval-step=000003"
    other.mkdir()
    assert list(stage_checkpoint(tmp_path, 4).iterdir()) == []
    assert sorted(path.name for path in (tmp_path / ".staging").iterdir()) == [
        "checkpoints-step-000004",
        "eval-step=000003",
    ]
    assert checkpoint_steps(tmp_path) == []


def test_pruning_counts_only_whole_ones(tmp_path: Path) -> None:
    """The newest `keep` whole checkpoints stay; with fewer of them nothing goes."""
    for step in (1, 2, 3, 4, 5):
        save_checkpoint(tmp_path, step)
    damage(checkpoint_dir(tmp_path, 5) / RANK_1)
    damage(checkpoint_dir(tmp_path, 2) / RANK_1)
    assert prune_checkpoints(tmp_path, 4) == []
    assert prune_checkpoints(tmp_path, 5) == []
    assert prune_checkpoints(tmp_path, 2) == [1, 2]
    assert checkpoint_steps(tmp_path) == [3, 4, 5]
    damage(checkpoint_dir(tmp_path, 4) / RANK_1)
    assert prune_checkpoints(tmp_path, 2) == []
    assert prune_checkpoints(tmp_path, 1) == []  # step 3 is the newest whole one
    assert newest_checkpoint(tmp_path)[0] == manifest_of(3)
    assert list((tmp_path / ".staging").iterdir()) == []
    with pytest.raises(ValueError, match="keep must be 1 or more, got 0"):
        prune_checkpoints(tmp_path, 0)


def test_everything_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The learner's files, the manifest, the list and the folder reach the disk before the name does."""
    save_checkpoint(tmp_path, 1)
    staging = stage_checkpoint(tmp_path, 2)
    sums = write_state(staging, 2)
    with monkeypatch.context() as patch:
        disk = DyingDisk(patch, 1000)
        finish_checkpoint(tmp_path, staging, manifest_of(2), sums)
    assert disk.calls == [
        *("fsync", "fsync"),  # two ranks
        *("write", "fsync"),  # manifest
        *("write", "fsync"),  # list
        "fsync",  # the folder
        "mkdir",  # checkpoints/, which exists
        *("replace", "fsync"),
    ]
    check_sums(checkpoint_dir(tmp_path, 2))


def test_a_copied_checkpoint_does_not_pass_for_another_step(tmp_path: Path) -> None:
    """The manifest's step must be that of the folder."""
    shutil.copytree(save_checkpoint(tmp_path, 3), checkpoint_dir(tmp_path, 9))
    with pytest.raises(DamagedError, match=r"step-000009/manifest\.json: step must be 9, got 3"):
        read_checkpoint(tmp_path, 9)
