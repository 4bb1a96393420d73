"""The rollout buffer: order, staleness, and nothing lost or trained on twice, whatever dies when."""

from __future__ import annotations

import weakref
from pathlib import Path

import pyarrow as pa
import pytest
from rollout_rows import RUN, DyingDisk, learner_columns, make_batch, make_group, make_sample
from run_files import damage

from actors.buffer import BufferActor
from rollouts.schema import group_to_batch, sft_batch, validate
from rollouts.store import committed_steps, read_step, read_summary
from trainer.step_records import Pick


def open_buffer(folder: Path, step: int = 0, groups_per_step: int = 1) -> BufferActor:
    """A buffer that goes on after `step` finished steps."""
    buffer = BufferActor(str(folder), RUN, groups_per_step, lock_wait_s=0.0)
    weakref.finalize(buffer, buffer._lock.release)  # a test that is over holds no lock
    buffer.reopen(step)
    return buffer


def reopened(buffer: BufferActor, folder: Path, step: int, groups_per_step: int = 1) -> BufferActor:
    """The buffer of another process, after this one ended without a word."""
    buffer.close()
    return open_buffer(folder, step, groups_per_step)


def journal_files(folder: Path) -> list[str]:
    """Names of the groups in the journal."""
    return sorted(path.name for path in (folder / "journal").glob("*.arrow"))


def take_rows(buffer: BufferActor, num_groups: int, min_version: int = 0) -> pa.RecordBatch:
    """Take, and fetch all rows."""
    index = buffer.take(num_groups, min_version)
    assert index is not None
    return buffer.shard(index.column("row").to_pylist())


def commit_next(buffer: BufferActor, step: int, num_groups: int, min_version: int = 0) -> float:
    """Take, learn nothing, commit."""
    rows = take_rows(buffer, num_groups, min_version)
    return buffer.commit(step, learner_columns(rows), {"metrics": {"a": float(step)}})


def test_groups_come_in_order_of_submission(tmp_path: Path) -> None:
    """Whatever the order of arrival; nothing is handed out before there are enough."""
    buffer = open_buffer(tmp_path)
    for index in (1, 2):
        buffer.add(make_batch(index))
    assert buffer.take(2, 0) is None, "two groups wait, but the first one is not among them"
    buffer.add(make_batch(0))
    taken = buffer.take(2, 0)
    assert taken is not None
    assert taken.column("submission_index").to_pylist() == [0, 0, 1, 1]
    assert taken.column("row").to_pylist() == [0, 1, 2, 3]
    assert buffer.status().waiting == buffer.waiting() == (2,)


def test_the_index_says_what_a_batch_is_made_of(tmp_path: Path) -> None:
    """All columns of one row, with a null reward kept null and a row without versions null there."""
    buffer = open_buffer(tmp_path, step=1)
    buffer.add(group_to_batch(make_group(1, (make_sample("s", 2, reward=None, version=4),)), RUN))
    buffer.add(
        sft_batch(
            RUN,
            prompt_ids=[[1]],
            token_ids=[[2, 3]],
            text=["x"],
            domain=["d"],
            format_tag=[None],
            first_index=2,
        )
    )
    index = buffer.take(2, 3)
    assert index is not None
    first, second = index.to_pylist()
    assert first == {
        "row": 0,
        "submission_index": 1,
        "group_id": "g1",
        "sample_id": "s",
        "prompt_id": "p1",
        "domain": "math",
        "origin": "policy",
        "reward": None,
        "format_tag": "code",
        "tags": [("format", "code")],
        "answer": "3",
        "answer_ok": True,
        "finish_reason": "stop",
        "spans": [{"label": "answer", "start": 0, "end": 2}],
        "scores": [("correct", None)],
        "score_status": [("correct", "timeout")],
        "partition_id": None,
        "partition_size": None,
        "numbers": None,
        "num_prompt_tokens": 3,
        "num_tokens": 2,
        "num_loss_tokens": 2,
        "min_version": 4,
        "version_tokens": 8,
    }
    assert (second["origin"], second["min_version"], second["num_tokens"]) == ("sft", None, 2)


def test_adding_twice_is_adding_once(tmp_path: Path) -> None:
    """While waiting, taken and committed, and after a restart; another group under its index is an error."""
    buffer = open_buffer(tmp_path)
    other = make_batch(0)
    position = other.schema.get_field_index("group_id")
    other = other.set_column(position, other.schema.field(position), pa.array(["h", "h"]))
    for _ in range(2):
        buffer.add(make_batch(0))
    assert buffer.status().waiting == (0,)
    with pytest.raises(ValueError, match="submission 0 must keep its group 'g0', got 'h'"):
        buffer.add(other)
    rows = take_rows(buffer, 1)
    buffer.add(make_batch(0))
    with pytest.raises(ValueError, match="submission 0 must keep its group 'g0', got 'h'"):
        buffer.add(other)
    buffer.commit(1, learner_columns(rows), {})
    for again in (buffer, reopened(buffer, tmp_path, 1)):
        again.add(make_batch(0))
        assert again.take(1, 0) is None and journal_files(tmp_path) == []


def test_bad_groups_are_refused_before_they_are_durable(tmp_path: Path) -> None:
    """Rows that break the contract, of another run, of two submissions, or none at all leave no trace."""
    buffer = open_buffer(tmp_path)
    good = make_batch(1)
    with pytest.raises(ValueError, match="at least one row"):
        buffer.add(good.slice(0, 0))
    with pytest.raises(ValueError, match="column text must be present"):
        buffer.add(good.drop_columns(["text"]))
    with pytest.raises(ValueError, match=r"submission_index must be 1 in every row, got \[1, 2\]"):
        buffer.add(pa.concat_batches([good, make_batch(2)]))
    with pytest.raises(ValueError, match="run_id must be 'run-a' in every row, got \\['run-b'\\]"):
        buffer.add(group_to_batch(make_group(1, (make_sample("s", 1),)), "run-b"))
    assert journal_files(tmp_path) == []
    assert buffer.status().waiting == ()


def test_groups_that_are_too_old_are_dropped_and_counted(tmp_path: Path) -> None:
    """A group is as old as its oldest token; the next commit names the dropped, which may come again."""
    buffer = open_buffer(tmp_path, step=1)
    for index, version in ((1, 3), (2, 5), (3, 4)):
        buffer.add(make_batch(index, version=version))
    mixed = (make_sample("a", 1, version=9), make_sample("b", 1, version=3))
    buffer.add(group_to_batch(make_group(4, mixed), RUN))
    assert buffer.take(2, 4) is None
    assert (buffer.status().waiting, buffer.status().num_dropped) == ((2, 3), 2)
    assert journal_files(tmp_path) == ["000000000002.arrow", "000000000003.arrow"]
    buffer.add(make_batch(1, version=6))
    commit_next(buffer, 3, 2, min_version=4)
    summary = read_summary(tmp_path, 3)
    assert summary["groups_dropped"] == [
        {"submission_index": 1, "group_id": "g1", "min_version": 3},
        {"submission_index": 4, "group_id": "g4", "min_version": 3},
    ]
    assert summary["groups_used"] == [
        {"submission_index": 1, "group_id": "g1", "min_version": 6},
        {"submission_index": 2, "group_id": "g2", "min_version": 5},
    ]
    assert summary["collection_order"] == [1, 2]
    assert journal_files(tmp_path) == ["000000000003.arrow"]
    buffer.add(make_batch(1, version=3))
    assert buffer.status().waiting == (3,)


def test_shards_are_the_rows_asked_for(tmp_path: Path) -> None:
    """In the order given, with their own buffers, of GROUP_SCHEMA."""
    buffer = open_buffer(tmp_path, step=1)
    with pytest.raises(ValueError, match="must be taken first"):
        buffer.shard([0])
    for index in (1, 2):
        buffer.add(make_batch(index, num_rows=50))
    whole = take_rows(buffer, 2)
    part = buffer.shard([70, 3])
    validate(part)
    assert part.column("sample_id").to_pylist() == ["g2-20", "g1-3"]
    assert part.get_total_buffer_size() < whole.get_total_buffer_size() / 5
    assert buffer.shard([]).num_rows == 0
    for wrong in ([100], [-1]):
        with pytest.raises(ValueError, match=r"row numbers must be within 0\.\.99"):
            buffer.shard(wrong)


def test_commit_joins_by_sample_id(tmp_path: Path) -> None:
    """Learner rows in any order and float width meet their completions; unscored null-reward rows stay."""
    buffer = open_buffer(tmp_path, step=1)
    samples = (make_sample("a", 2), make_sample("b", 1, reward=None), make_sample("c", 0))
    buffer.add(group_to_batch(make_group(1, samples), RUN))
    buffer.take(1, 0)
    columns = pa.table(
        {
            "sample_id": ["c", "a"],
            "proximal_logprobs": [[], [-1.0, -2.0]],
            "entropy": [[], [0.5, 1.5]],
            "entropy_mean": pa.array([None, 1.0], pa.float32()),
            "advantage": [-1.0, 1.0],
            "update_count": pa.array([2, 2], pa.int32()),
        }
    )
    assert buffer.commit(3, columns, {"metrics": {"a": 1.0}}) > 0.0
    rows = read_step(tmp_path, 3).to_pylist()
    assert [row["sample_id"] for row in rows] == ["a", "b", "c"]
    assert [row["proximal_logprobs"] for row in rows] == [[-1.0, -2.0], None, []]
    assert [row["entropy_mean"] for row in rows] == [1.0, None, None]
    assert [row["advantage"] for row in rows] == [1.0, None, -1.0]
    assert [row["update_count"] for row in rows] == [2, None, 2]
    assert [(row["step"], row["ref_logprobs"]) for row in rows] == [(3, None)] * 3
    assert journal_files(tmp_path) == []


def test_learner_columns_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Unknown names, strangers, duplicates, wrong lengths, unscored rows: nothing is committed."""
    buffer = open_buffer(tmp_path, step=1)
    buffer.add(make_batch(1))
    rows = take_rows(buffer, 1)
    good = learner_columns(rows)
    stranger = good.set_column(0, "sample_id", pa.array(["g1-0", "zz"]))
    wrong = [
        (good.append_column("mood", pa.array([1, 2])), "learner columns must be among .*got 'mood'"),
        (good.drop_columns(["advantage"]), "learner columns must include advantage"),
        (stranger, "must be of taken samples, got sample_id 'zz'"),
        (pa.concat_tables([good, good]), "one row per sample_id"),
        (good.slice(0, 1), "row 1 .*column proximal_logprobs: must not be null where there is a reward"),
        (
            good.set_column(2, "entropy", pa.array([[0.5], [0.5]])),
            "row 1 .*column entropy: must have as many",
        ),
        (
            good.set_column(4, "advantage", pa.array([["x"], ["y"]])),
            "learner column advantage must be double",
        ),
    ]
    for columns, message in wrong:
        with pytest.raises(ValueError, match=message):
            buffer.commit(1, columns, {})
    assert committed_steps(tmp_path) == []
    buffer.commit(1, good, {})
    assert committed_steps(tmp_path) == [1]


def test_one_batch_is_open_at_a_time(tmp_path: Path) -> None:
    """Asking for the same gives the same; for other groups before the commit is a mistake of the loop."""
    buffer = open_buffer(tmp_path)
    for index in (0, 1):
        buffer.add(make_batch(index))
    first = buffer.take(1, 0)
    assert first is not None and first.equals(buffer.take(1, 0))
    for arguments in ((2, 0), (1, 1)):
        with pytest.raises(ValueError, match="must be committed first"):
            buffer.take(*arguments)
    with pytest.raises(ValueError, match="num_groups must be 1 or more, got 0"):
        buffer.take(0, 0)
    with pytest.raises(ValueError, match="must be taken first"):
        reopened(buffer, tmp_path, 0).commit(1, pa.table({}), {})


def test_a_restart_finds_every_durable_group(tmp_path: Path) -> None:
    """Waiting and taken groups wait again; committed ones do not; a damaged file is reported, not fatal."""
    buffer = open_buffer(tmp_path, groups_per_step=2)
    for index in range(5):
        buffer.add(make_batch(index))
    commit_next(buffer, 1, 2)
    buffer.take(1, 0)
    damaged = tmp_path / "journal" / "000000000004.arrow"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    again = reopened(buffer, tmp_path, 1, groups_per_step=2)
    status = again.status()
    assert status.waiting == (2, 3) and status.bad_files == (str(damaged) + ".bad",)
    assert take_rows(again, 2).column("group_id").to_pylist() == ["g2", "g2", "g3", "g3"]
    again.close()
    stranger = BufferActor(str(tmp_path), "other", 2)
    with pytest.raises(ValueError, match=r"000000000002\.arrow: run_id must be 'other'"):
        stranger.reopen(1)


def test_two_buffers_of_one_run_exclude_each_other(tmp_path: Path) -> None:
    """The orphan of a killed driver must not write beside its successor."""
    buffer = open_buffer(tmp_path)
    with pytest.raises(ValueError, match=r"in use by rollout buffer \(pid"):
        open_buffer(tmp_path)
    assert reopened(buffer, tmp_path, 0).status().waiting == ()


def test_committing_again_changes_nothing(tmp_path: Path) -> None:
    """The answer to the first commit was lost: the step stays as it is, and the next one can be taken."""
    buffer = open_buffer(tmp_path)
    for index in (0, 1):
        buffer.add(make_batch(index))
    rows = take_rows(buffer, 1)
    buffer.commit(1, learner_columns(rows), {"metrics": {"a": 1.0}})
    buffer.commit(1, learner_columns(rows, entropy=9.0), {"metrics": {"a": 2.0}})
    assert read_summary(tmp_path, 1)["metrics"] == {"a": 1.0}
    assert take_rows(buffer, 1).column("group_id").to_pylist() == ["g1", "g1"]


def test_rewinding_gives_the_groups_back(tmp_path: Path) -> None:
    """To step 1 of 3: the groups of 2 and 3 wait as they were sampled; the damage found is reported."""
    buffer = open_buffer(tmp_path)
    for index in range(4):
        buffer.add(make_batch(index))
    before = [make_batch(index) for index in (1, 2, 3)]
    for step in (1, 2, 3):
        commit_next(buffer, step, 1)
    restored = buffer.rewind(1, attempt=2)
    assert (restored.waiting, restored.abandoned_steps, restored.damaged) == ((1, 2, 3), (2, 3), ())
    assert committed_steps(tmp_path) == [1]
    assert take_rows(buffer, 3).equals(pa.concat_batches(before))
    assert (tmp_path / "abandoned" / "attempt_2" / "rollouts" / "step=000003").is_dir()


def test_a_damaged_step_is_not_given_back(tmp_path: Path) -> None:
    """Its group has to be sampled again, under the index it had."""
    buffer = open_buffer(tmp_path)
    for index in (0, 1):
        buffer.add(make_batch(index))
    for step in (1, 2):
        commit_next(buffer, step, 1)
    damage(next((tmp_path / "rollouts" / "step=000001").glob("*.parquet")))
    restored = buffer.rewind(0, attempt=2)
    assert restored.waiting == (1,) and restored.abandoned_steps == (1, 2)
    assert len(restored.damaged) == 1 and "step=000001" in restored.damaged[0]
    buffer.add(make_batch(0))
    assert buffer.status().waiting == (0, 1)


def test_replayed_groups_come_after_the_steps_own(tmp_path: Path) -> None:
    """As rows of origin replay with names of their own; a pick whose step is damaged is left out."""
    buffer = open_buffer(tmp_path)
    for index in range(3):
        buffer.add(make_batch(index))
    for step in (1, 2):
        commit_next(buffer, step, 1)
    damage(next((tmp_path / "rollouts" / "step=000002").glob("*.parquet")))
    taken = buffer.take(1, 0, (Pick(step=1, submission_index=0), Pick(step=2, submission_index=1)))
    assert taken is not None
    assert taken.column("origin").to_pylist() == ["policy", "policy", "replay", "replay"]
    assert taken.column("submission_index").to_pylist()[2:] == [0, 0]
    assert len(set(taken.column("sample_id").to_pylist())) == 4


def test_another_runs_groups_are_taken_in(tmp_path: Path) -> None:
    """Renumbered in its order and renamed; asking again adds none; a run without any is refused."""
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    for folder in (theirs, mine, tmp_path / "empty"):
        folder.mkdir()
    source = open_buffer(theirs)
    for index in range(3):
        source.add(make_batch(index))
    commit_next(source, 1, 1)
    own = BufferActor(str(mine), "run-b", 1)
    assert (own.adopt(str(theirs)), own.adopt(str(theirs))) == (3, 3)
    assert own.status().waiting == (0, 1, 2)
    assert set(take_rows(own, 3).column("run_id").to_pylist()) == {"run-b"}
    with pytest.raises(ValueError, match=r"must have rollouts to train on .*, got none"):
        own.adopt(str(tmp_path / "empty"))


def test_a_step_that_dies_anywhere_trains_each_group_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every system call of add and commit: after a restart every group is in exactly one step."""
    fatal = 0
    while True:
        run_dir = tmp_path / str(fatal)
        run_dir.mkdir()
        buffer = open_buffer(run_dir, groups_per_step=2)
        commit_after_adding(buffer, (0, 1), 1)
        with monkeypatch.context() as patch:
            DyingDisk(patch, fatal)
            try:
                commit_after_adding(buffer, (2, 3), 2)
                died = False
            except OSError:
                died = True
        again = reopened(buffer, run_dir, max(committed_steps(run_dir)), groups_per_step=2)
        for index in (2, 3):  # the producer submits again what it has no answer for
            again.add(make_batch(index))
        if committed_steps(run_dir) == [1]:
            commit_next(again, 2, 2)
        groups = [
            read_step(run_dir, step).column("group_id").to_pylist() for step in committed_steps(run_dir)
        ]
        assert groups == [["g0", "g0", "g1", "g1"], ["g2", "g2", "g3", "g3"]]
        assert again.take(1, 0) is None
        assert journal_files(run_dir) == []
        if not died:
            break
        fatal += 1
    # two adds of 4 calls, a commit of 12, two unlinks and the fsync of the journal
    assert fatal == 2 * 4 + 12 + 3


def commit_after_adding(buffer: BufferActor, indexes: tuple[int, ...], step: int) -> None:
    for index in indexes:
        buffer.add(make_batch(index))
    commit_next(buffer, step, len(indexes))


def test_a_failed_write_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk that is freed costs nothing: the same group is taken in, the same step committed."""
    buffer = open_buffer(tmp_path, step=1)
    with monkeypatch.context() as patch:
        DyingDisk(patch, 0)
        with pytest.raises(OSError, match="injected"):
            buffer.add(make_batch(1))
    assert buffer.status().waiting == ()
    buffer.add(make_batch(1))
    rows = take_rows(buffer, 1)
    with monkeypatch.context() as patch:
        DyingDisk(patch, 3)
        with pytest.raises(OSError, match="injected"):
            buffer.commit(1, learner_columns(rows), {})
    buffer.commit(1, learner_columns(rows), {})
    assert read_step(tmp_path, 1).column("group_id").to_pylist() == ["g1", "g1"]
