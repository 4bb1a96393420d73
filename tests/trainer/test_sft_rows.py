"""Supervised rows through a step: taken, committed, measured, and never counted as samples."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
from rollout_rows import RUN, learner_columns, make_batch, make_demonstrations

from actors.buffer import BufferActor
from rollouts.journal import Journal
from rollouts.rewind import saved_groups
from rollouts.schema import renamed
from rollouts.store import read_step, verify_step
from trainer.step_records import Pick
from viewer.run_data import read_run


def make_buffer(folder: Path, run_id: str = RUN) -> BufferActor:
    """A buffer with one group a step, of which three wait."""
    folder.mkdir(exist_ok=True)
    buffer = BufferActor(str(folder), run_id, 1, lock_wait_s=0.0)
    weakref.finalize(buffer, buffer._lock.release)  # a test that is over holds no lock
    buffer.reopen(0)
    for index in range(3):
        buffer.add(renamed(make_batch(index), run_id))
    return buffer


def train_step(buffer: BufferActor, step: int, replay: tuple[Pick, ...] = ()) -> list[str]:
    """Take a group and two demonstrations, learn nothing, commit; the origins of the rows."""
    index = buffer.take(1, 0, replay, make_demonstrations(step))
    assert index is not None
    rows = buffer.shard(index.column("row").to_pylist())
    buffer.commit(step, learner_columns(rows), {"metrics": {}})
    return [str(origin) for origin in index.column("origin").to_pylist()]


def test_they_are_taken_and_committed_with_the_step(tmp_path: Path) -> None:
    """After the group's own two rows, each its own group, without the columns that only a sampler fills."""
    buffer = make_buffer(tmp_path)
    first = buffer.take(1, 0, (), make_demonstrations(1))
    again = buffer.take(1, 0, (), make_demonstrations(1))
    assert first is not None and again is not None and first.equals(again)
    assert first.column("origin").to_pylist() == ["policy", "policy", "sft", "sft"]
    assert first.column("min_version").to_pylist() == [0, 0, None, None]
    with pytest.raises(ValueError, match="must be committed first"):
        buffer.take(1, 0, (), make_demonstrations(2))
    with pytest.raises(ValueError, match="must be committed first"):
        buffer.take(1, 0)
    train_step(buffer, 1)
    verify_step(tmp_path, 1)
    rows = read_step(tmp_path, 1).to_pylist()
    assert [row["sample_id"] for row in rows] == ["g0-0", "g0-1", "sft-1-0", "sft-1-1"]
    assert [row["group_id"] for row in rows] == ["g0", "g0", "sft-1-0", "sft-1-1"]
    for row in rows[2:]:
        assert (row["reward"], row["behavior_logprobs"], row["versions"]) == (None, None, [])
        assert len(row["proximal_logprobs"]) == len(row["token_ids"]) and row["step"] == 1


def test_other_rows_are_refused_and_nothing_is_taken(tmp_path: Path) -> None:
    """Of another run, of another origin, or against the row contract."""
    buffer, rows = make_buffer(tmp_path), make_demonstrations(1)
    with pytest.raises(ValueError, match="run_id must be 'run-a' in every row, got \\['other'\\]"):
        buffer.take(1, 0, (), renamed(rows, "other"))
    with pytest.raises(ValueError, match=r"must have origin sft, got \['policy'\]"):
        buffer.take(1, 0, (), make_batch(7))
    with pytest.raises(ValueError, match="column text must be present"):
        buffer.take(1, 0, (), rows.drop_columns(["text"]))
    assert buffer.waiting() == (0, 1, 2)
    index = buffer.take(1, 0, (), rows.slice(0, 0))
    assert index is not None and index.num_rows == 2


def test_the_report_shows_none_of_them_as_samples(tmp_path: Path) -> None:
    """The prompts of two demonstrations are not among the sampled ones."""
    train_step(make_buffer(tmp_path), 1)
    (tmp_path / "config.yaml").write_text("name: run\n")
    (samples,) = read_run(tmp_path).samples
    assert [row.prompt_id for row in samples.rows] == ["p0"]


def test_replay_draws_none_of_them(tmp_path: Path) -> None:
    """Step 1's demonstrations have submission indexes 0 and 1, like its group: only the group is replayed."""
    buffer = make_buffer(tmp_path)
    assert train_step(buffer, 1) == ["policy", "policy", "sft", "sft"]
    origins = train_step(buffer, 2, (Pick(step=1, submission_index=0),))
    assert origins == ["policy", "policy", "replay", "replay", "sft", "sft"]
    assert read_step(tmp_path, 2).column("parent_id").to_pylist()[2:4] == ["g0-0", "g0-1"]


def test_going_back_returns_the_groups_alone(tmp_path: Path) -> None:
    """To the journal, unchanged; and the step can be trained again with the same demonstrations."""
    buffer = make_buffer(tmp_path)
    train_step(buffer, 1)
    train_step(buffer, 2)
    before = read_step(tmp_path, 2)
    assert buffer.rewind(1, attempt=2).waiting == (1, 2)
    journal = Journal(tmp_path / "journal")
    assert journal.indexes() == [1, 2]
    assert all(journal.read(index).equals(make_batch(index)) for index in (1, 2))
    train_step(buffer, 2)
    assert read_step(tmp_path, 2).equals(before)


def test_another_run_takes_over_the_groups_alone(tmp_path: Path) -> None:
    """`--train-only` reads three groups, two of them in steps with demonstrations."""
    source = make_buffer(tmp_path / "theirs")
    train_step(source, 1)
    train_step(source, 2)
    assert [batch.num_rows for batch in saved_groups(tmp_path / "theirs")] == [2, 2, 2]
    (tmp_path / "mine").mkdir()
    own = BufferActor(str(tmp_path / "mine"), "run-b", 1)
    weakref.finalize(own, own._lock.release)
    assert own.adopt(str(tmp_path / "theirs")) == 3 and own.waiting() == (0, 1, 2)
    index = own.take(3, 0)
    assert index is not None and set(index.column("origin").to_pylist()) == {"policy"}
