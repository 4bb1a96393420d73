"""Every sequence of writes, ended at every call: the state before it or after, and done again it completes.

A kill is modelled by a call that raises what nothing catches, after which every other call fails as well;
a full disk by writes, syncs and new folders that fail while renaming and deleting still work.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from matrices import quick_of
from rollout_rows import DyingDisk, make_batch
from run_files import (
    damage,
    indexes_of,
    make_run,
    manifest_of,
    save_checkpoint,
    save_eval,
    save_step,
    write_state,
)

from rollouts.checkpoints import (
    checkpoint_dir,
    checkpoint_steps,
    finish_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    stage_checkpoint,
)
from rollouts.journal import Journal
from rollouts.rewind import rewind, saved_groups
from rollouts.store import committed_evals, committed_steps, step_dir, verify_step
from rollouts.sums import check_sums

State = tuple[object, ...]
QUICK = ("commit a step", "first checkpoint", "journal")
FULL_DISK_CALLS = ("write", "fsync", "mkdir")


class Killed(BaseException):
    """The process ends here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Writes:
    """A sequence of writes: the folder before it, itself (also to do it again), and what must be equal."""

    prepare: Callable[[Path], object]
    act: Callable[[Path], object]
    state: Callable[[Path], State]


def settled(run_dir: Path) -> State:
    """What a run that starts again finds; every committed folder must be whole."""
    steps, evals, checkpoints = committed_steps(run_dir), committed_evals(run_dir), checkpoint_steps(run_dir)
    for step in steps:
        verify_step(run_dir, step)
    for step in evals:
        check_sums(step_dir(run_dir, "eval", step))
    for step in checkpoints:
        read_checkpoint(run_dir, step)
    journal = Journal(run_dir / "journal")
    assert journal.recover() == []
    return tuple(steps), tuple(evals), tuple(checkpoints), tuple(journal.indexes())


def same_groups(run_dir: Path) -> State:
    """While a run goes back the steps shrink one by one, from the end, but no group is ever gone."""
    settled(run_dir)
    steps = committed_steps(run_dir)
    assert steps == list(range(1, len(steps) + 1))
    rows = [batch.column("sample_id").to_pylist() for batch in saved_groups(run_dir)]
    assert rows == [make_batch(index).column("sample_id").to_pylist() for index in range(10)]
    return ()


def some_whole_checkpoint(run_dir: Path) -> State:
    """Among damaged ones the newest whole one, which is never older than before."""
    manifest, _ = newest_checkpoint(run_dir)
    assert manifest is not None
    return (manifest,)


def commit_again(run_dir: Path) -> None:
    if 5 not in committed_steps(run_dir):
        save_step(run_dir, 5)


def evaluate_again(run_dir: Path) -> None:
    if 3 not in committed_evals(run_dir):
        save_eval(run_dir, 3)


def replace_damaged(run_dir: Path) -> None:
    """A checkpoint that is damaged is made again."""
    staging = stage_checkpoint(run_dir, 4)
    finish_checkpoint(run_dir, staging, manifest_of(4), write_state(staging, 4))


def make_damaged(run_dir: Path) -> None:
    make_run(run_dir)
    damage(checkpoint_dir(run_dir, 4) / "manifest.json")


def prune(run_dir: Path) -> None:
    prune_checkpoints(run_dir, 1)


def go_back(run_dir: Path) -> None:
    rewind(run_dir, 1, 2, Journal(run_dir / "journal"), 2)


def append(run_dir: Path) -> None:
    Journal(run_dir / "journal").append(10, make_batch(10))


SEQUENCES = {
    "commit a step": Writes(prepare=make_run, act=commit_again, state=settled),
    "commit an evaluation": Writes(prepare=make_run, act=evaluate_again, state=settled),
    "first checkpoint": Writes(prepare=Path.mkdir, act=lambda run: save_checkpoint(run, 4), state=settled),
    "checkpoint": Writes(prepare=make_run, act=lambda run: save_checkpoint(run, 5), state=settled),
    "same checkpoint": Writes(prepare=make_run, act=lambda run: save_checkpoint(run, 4), state=settled),
    "damaged checkpoint": Writes(prepare=make_damaged, act=replace_damaged, state=some_whole_checkpoint),
    "prune": Writes(prepare=make_run, act=prune, state=settled),
    "rewind": Writes(prepare=make_run, act=go_back, state=same_groups),
    "journal": Writes(prepare=make_run, act=append, state=settled),
}


def endings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sequence: Writes, **disk: object
) -> Iterator[tuple[Path, BaseException]]:
    """A run directory for each call at which the sequence was ended, and the error it ended with."""
    fatal = 0
    sequence.prepare(tmp_path / "before")
    while True:
        run_dir = tmp_path / str(fatal)
        shutil.copytree(tmp_path / "before", run_dir)
        caught: BaseException | None = None
        with monkeypatch.context() as patch:
            DyingDisk(patch, fatal, **disk)  # type: ignore[arg-type]
            try:
                sequence.act(run_dir)
            except (Killed, OSError) as error:
                caught = error
        if caught is None:
            assert fatal > 0
            return
        yield run_dir, caught
        fatal += 1


def check_endings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sequence: Writes, **disk: object
) -> Iterator[tuple[Path, BaseException]]:
    """`endings`; each must be as before the sequence or after it, and done again it is complete."""
    (tmp_path / "ends").mkdir()
    whole = tmp_path / "whole"
    sequence.prepare(whole)
    before = sequence.state(whole)
    sequence.act(whole)
    after, finished = sequence.state(whole), settled(whole)
    for run_dir, error in endings(tmp_path / "ends", monkeypatch, sequence, **disk):
        yield run_dir, error
        assert sequence.state(run_dir) in (before, after), str(error)
        sequence.act(run_dir)
        assert settled(run_dir) == finished, str(error)


@pytest.mark.parametrize("name", quick_of(list(SEQUENCES), QUICK, rest="slow"))
def test_a_kill_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whole before or whole after, and done again it is complete."""
    for _, error in check_endings(tmp_path, monkeypatch, SEQUENCES[name], error=Killed):
        assert isinstance(error, Killed)


@pytest.mark.parametrize("name", quick_of(list(SEQUENCES), QUICK, rest="slow"))
def test_a_disk_that_is_full_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The same, with an error that names a file, and no temporary file left to fill the disk further."""
    full = {"error": lambda text: OSError(errno.ENOSPC, text), "names": FULL_DISK_CALLS}
    for run_dir, error in check_endings(tmp_path, monkeypatch, SEQUENCES[name], **full):
        assert isinstance(error, OSError) and error.errno == errno.ENOSPC
        assert error.filename is not None or "mkdir" in str(error)  # a real mkdir names its folder itself
        assert list(run_dir.rglob("*.partial")) == []
        # while its new place is not durable, what is pruned must stay whole; the next save clears it
        assert name == "prune" or list((run_dir / ".staging").glob("*")) == []


def test_the_abandoned_checkpoint_is_kept(tmp_path: Path) -> None:
    """Replacing a damaged checkpoint keeps its bytes for whoever wants to look."""
    make_damaged(tmp_path)
    replace_damaged(tmp_path)
    check_sums(checkpoint_dir(tmp_path, 4))
    assert [path.name for path in (tmp_path / "abandoned" / "checkpoints").iterdir()] == ["step-000004"]
    assert list(indexes_of(5)) == Journal(tmp_path / "journal").indexes()
