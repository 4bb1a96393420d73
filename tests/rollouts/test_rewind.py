"""Going back to an earlier step: sampled groups return to the journal as they were; nothing is deleted."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from examples import examples
from hypothesis import given
from rollout_rows import RUN, groups, learner_columns, make_batch, snapshot
from run_files import damage, indexes_of, make_run, save_step

from actors.buffer import _join
from rollouts.journal import Journal
from rollouts.records import Group
from rollouts.rewind import Rewound, rewind, saved_groups
from rollouts.schema import as_replay, group_to_batch, to_batch
from rollouts.store import commit_step, committed_evals, committed_steps, step_dir, verify_step
from rollouts.sums import DamagedError


def test_later_steps_return_to_the_journal(tmp_path: Path) -> None:
    """Their groups come back equal, their folders are set aside, earlier ones are untouched."""
    journal = make_run(tmp_path)
    parts = {step: snapshot(step_dir(tmp_path, "rollouts", step)) for step in (1, 2, 3, 4)}
    done = rewind(tmp_path, 2, 3, journal, 4)
    assert done == Rewound(groups_returned=4, abandoned_steps=(3, 4), damaged=())
    assert (committed_steps(tmp_path), committed_evals(tmp_path)) == ([1, 2], [0, 2])
    assert journal.indexes() == [4, 5, 6, 7, 8, 9]
    for index in journal.indexes():
        assert journal.read(index).equals(make_batch(index), check_metadata=True)
    for step in (1, 2):
        assert snapshot(step_dir(tmp_path, "rollouts", step)) == parts[step]
    aside = tmp_path / "abandoned" / "attempt_3"
    for step in (3, 4):
        assert snapshot(aside / "rollouts" / f"step=00000{step}") == parts[step]
    assert [path.name for path in (aside / "eval").iterdir()] == ["step=000004"]
    assert rewind(tmp_path, 2, 3, journal, 4) == Rewound(groups_returned=0, abandoned_steps=(), damaged=())


def test_the_same_attempt_goes_back_twice(tmp_path: Path) -> None:
    """A step that was trained again and abandoned again is kept beside the first."""
    journal = make_run(tmp_path)
    rewind(tmp_path, 3, 1, journal, 6)
    save_step(tmp_path, 4)
    rewind(tmp_path, 3, 1, journal, 6)
    names = sorted(path.name for path in (tmp_path / "abandoned" / "attempt_1" / "rollouts").iterdir())
    assert names == ["step=000004", "step=000004.1"]


def test_to_the_starting_model(tmp_path: Path) -> None:
    """Step 0 keeps nothing committed and every group; an evaluation of the starting model stays."""
    journal = make_run(tmp_path)
    assert rewind(tmp_path, 0, 1, journal, 0).groups_returned == 8
    assert (committed_steps(tmp_path), committed_evals(tmp_path)) == ([], [0])
    assert journal.indexes() == list(range(10))


def test_journal_files_below_the_cursor_go(tmp_path: Path) -> None:
    """A crash between a step's rename and the dropping of its groups leaves files that are used up."""
    journal = make_run(tmp_path)
    for index in indexes_of(2):
        journal.append(index, make_batch(index))
    assert rewind(tmp_path, 4, 1, journal, 8).groups_returned == 0
    assert journal.indexes() == [8, 9]


@pytest.mark.parametrize("name", ["part-0.parquet", "step.json", "SHA256SUMS"])
def test_a_damaged_step_is_abandoned_and_named(tmp_path: Path, name: str) -> None:
    """Damage costs its groups, which are sampled again, and never the rewind."""
    journal = make_run(tmp_path)
    damage(step_dir(tmp_path, "rollouts", 3) / name)
    done = rewind(tmp_path, 2, 1, journal, 4)
    assert (done.groups_returned, done.abandoned_steps) == (2, (3, 4))
    assert len(done.damaged) == 1 and "step=000003" in done.damaged[0]
    assert journal.indexes() == [6, 7, 8, 9]


def test_a_damaged_journal_file_is_replaced(tmp_path: Path) -> None:
    """The committed copy of a group wins over a damaged one that a crash left behind."""
    journal = make_run(tmp_path)
    journal.append(6, make_batch(6))
    damage(journal.path(6), 600)
    rewind(tmp_path, 3, 1, journal, 6)
    assert journal.read(6).equals(make_batch(6))
    assert [path.name for path in journal.folder.glob("*.bad")] == ["000000000006.arrow.bad"]


def test_replayed_rows_do_not_return(tmp_path: Path) -> None:
    """Rows of earlier steps that a step trained on again are still where they came from."""
    journal = Journal(tmp_path / "journal")
    rows = pa.concat_batches([make_batch(0), to_batch(pa.table(as_replay(make_batch(9), 1)))])
    commit_step(tmp_path, 1, _join(rows, learner_columns(rows), 1), {"metrics": {}})
    assert rewind(tmp_path, 0, 1, journal, 0).groups_returned == 1
    assert journal.indexes() == [0]
    assert journal.read(0).equals(make_batch(0))


@examples(25)
@given(groups())
def test_any_group_returns_as_it_was(tmp_path_factory: pytest.TempPathFactory, group: Group) -> None:
    """Ragged, empty, null or odd: the journal gets what it had, without replayed and supervised rows."""
    run_dir = tmp_path_factory.mktemp("run")
    batch = group_to_batch(group, RUN)
    commit_step(run_dir, 1, _join(batch, learner_columns(batch), 1), {"metrics": {}})
    journal = Journal(run_dir / "journal")
    rewind(run_dir, 0, 1, journal, 0)
    journaled = ("policy", "refined", "distilled", "tempered")
    own = [row for row in batch.to_pylist() if row["origin"] in journaled]
    returned = [row for index in journal.indexes() for row in journal.read(index).to_pylist()]
    assert returned == own


def test_saved_groups_come_in_order(tmp_path: Path) -> None:
    """All of a run's groups, committed before journaled, and none twice; the folder is only read."""
    journal = make_run(tmp_path)
    journal.append(7, make_batch(7))  # step 4 has it, too
    before = snapshot(tmp_path)
    found = list(saved_groups(tmp_path))
    assert [batch.column("submission_index")[0].as_py() for batch in found] == list(range(10))
    for index, batch in enumerate(found):
        assert batch.equals(make_batch(index), check_metadata=True)
    assert snapshot(tmp_path) == before
    damage(step_dir(tmp_path, "rollouts", 2) / "part-0.parquet")
    with pytest.raises(DamagedError, match=r"step=000002/part-0\.parquet"):
        list(saved_groups(tmp_path))
    assert list(saved_groups(tmp_path / "rollouts")) == []


def test_saved_groups_name_a_damaged_journal_file(tmp_path: Path) -> None:
    """As a step's file does."""
    journal = make_run(tmp_path)
    damage(journal.path(9), 600)
    with pytest.raises(DamagedError, match=r"000000000009\.arrow"):
        list(saved_groups(tmp_path))
    for step in committed_steps(tmp_path):
        verify_step(tmp_path, step)
