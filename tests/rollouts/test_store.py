"""The committed store: a step is there whole or not at all, and opens with tools that know nothing of us."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from rollout_rows import RUN, DyingDisk, groups, learner_columns, make_batch, make_group, make_sample

from actors.buffer import _join
from rollouts.columns import GROUP_SCHEMA, ROLLOUT_SCHEMA
from rollouts.files import Json
from rollouts.records import Group
from rollouts.schema import group_to_batch, validate
from rollouts.store import (
    append_metrics,
    commit_eval,
    commit_step,
    committed_evals,
    committed_steps,
    create_run_dir,
    read_eval,
    read_step,
    read_steps,
    read_summary,
    rebuild_metrics,
)
from rollouts.sums import DamagedError, write_sums


def rollout_table(batch: pa.RecordBatch, step: int, entropy: float = 0.25) -> pa.Table:
    """`batch` as ROLLOUT_SCHEMA rows of `step`."""
    return _join(batch, learner_columns(batch, entropy=entropy), step)


def mixed_batch(index: int) -> pa.RecordBatch:
    """Rewards 1, 0, null, 0 and formats code, prose, code, none."""
    rewards, tags = (1.0, 0.0, None, 0.0), ("code", "prose", "code", None)
    rows = [
        make_sample(f"g{index}-{number}", number, reward=reward, tag=tag)
        for number, (reward, tag) in enumerate(zip(rewards, tags, strict=True))
    ]
    return group_to_batch(make_group(index, tuple(rows)), RUN)


@given(groups())
def test_any_rows_survive_the_commit(tmp_path_factory: pytest.TempPathFactory, group: Group) -> None:
    """Parquet gives back the same values under the same schema, ragged, empty, null or odd as they may be."""
    run_dir = tmp_path_factory.mktemp("run")
    table = rollout_table(group_to_batch(group, RUN), 7)
    commit_step(run_dir, 7, table, {"metrics": {}})
    back = read_step(run_dir, 7)
    assert back.schema.equals(ROLLOUT_SCHEMA)
    assert back.schema.metadata == ROLLOUT_SCHEMA.metadata
    assert back.to_pylist() == table.to_pylist()
    validate(back)


def test_a_step_and_its_summary(tmp_path: Path) -> None:
    """The layout of the architecture page; columns on request; what is not there is a clear error."""
    summary: dict[str, Json] = {
        "metrics": {"reward/mean": 0.5, "kl": math.nan, "n": np.float64(2)},
        "collection_order": [3, 1],
    }
    commit_step(tmp_path, 12, rollout_table(make_batch(3), 12), summary)
    folder = tmp_path / "rollouts" / "step=000012"
    assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", "part-0.parquet", "step.json"]
    assert pq.ParquetFile(folder / "part-0.parquet").metadata.row_group(0).column(0).compression == "ZSTD"
    assert committed_steps(tmp_path) == [12]
    assert read_summary(tmp_path, 12) == {
        "step": 12,
        "num_rows": 2,
        "metrics": {"reward/mean": 0.5, "n": 2.0},
        "nonfinite": ["kl"],
        "collection_order": [3, 1],
    }
    assert read_step(tmp_path, 12, ["reward", "step"]).to_pylist() == [{"reward": 1.0, "step": 12}] * 2
    with pytest.raises(ValueError, match=r"part-0\.parquet: column must be one of .*got 'rewards'"):
        read_step(tmp_path, 12, ["rewards"])
    with pytest.raises(ValueError, match=r"step=000013.*no such committed step"):
        read_step(tmp_path, 13)
    with pytest.raises(ValueError, match=r"step=000013.*no such committed step"):
        read_summary(tmp_path, 13)


def test_a_step_commits_once(tmp_path: Path) -> None:
    """A second commit of a step is refused and changes nothing."""
    commit_step(tmp_path, 1, rollout_table(make_batch(1), 1), {"metrics": {"a": 1.0}})
    with pytest.raises(ValueError, match="step=000001: a step must be committed once"):
        commit_step(tmp_path, 1, rollout_table(make_batch(2), 1), {"metrics": {"a": 2.0}})
    assert read_summary(tmp_path, 1)["metrics"] == {"a": 1.0}


def test_what_cannot_be_committed(tmp_path: Path) -> None:
    """Extension types (at any depth), rows of another step, and summaries that are not JSON."""
    extension = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16], pa.binary(16)))
    with pytest.raises(ValueError, match="column x must have a plain Arrow type"):
        commit_step(tmp_path, 1, pa.table({"x": extension}), {})
    nested = pa.ListArray.from_arrays([0, 1], pa.StructArray.from_arrays([extension], ["u"]))
    with pytest.raises(ValueError, match="column x must have a plain Arrow type"):
        commit_step(tmp_path, 1, pa.table({"x": nested}), {})
    with pytest.raises(ValueError, match=r"column step must be 2 in every row, got \[1\]"):
        commit_step(tmp_path, 2, rollout_table(make_batch(1), 1), {})
    with pytest.raises(ValueError, match="metric loss must be a number, got 'low'"):
        commit_step(tmp_path, 1, rollout_table(make_batch(1), 1), {"metrics": {"loss": "low"}})
    with pytest.raises(ValueError, match=r"step\.json must have finite numbers"):
        commit_step(tmp_path, 1, rollout_table(make_batch(1), 1), {"beta": math.inf})
    with pytest.raises(ValueError, match="step must be 0 or more, got -1"):
        commit_step(tmp_path, -1, rollout_table(make_batch(1), -1), {})
    assert committed_steps(tmp_path) == []


def test_a_commit_that_dies_anywhere_shows_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every system call of a commit: ending there leaves the step whole or absent; the run can go on."""
    table, fatal, outcomes = rollout_table(make_batch(2), 2), 0, []
    while True:
        run_dir = tmp_path / str(fatal)
        run_dir.mkdir()
        commit_step(run_dir, 1, rollout_table(make_batch(1), 1), {"metrics": {"a": 1.0}})
        with monkeypatch.context() as patch:
            disk = DyingDisk(patch, fatal)
            try:
                commit_step(run_dir, 2, table, {"metrics": {"a": 2.0}})
                died = False
            except OSError:
                died = True
        if not died:
            break
        outcomes.append((disk.calls[fatal], committed_steps(run_dir)))
        for step in committed_steps(run_dir):
            assert read_step(run_dir, step).num_rows == 2
            assert read_summary(run_dir, step)["metrics"] == {"a": float(step)}
        assert duckdb.execute(f"select count(*) from '{run_dir}/rollouts/*/*.parquet'").fetchall() == [
            (2 * len(committed_steps(run_dir)),)
        ]
        if committed_steps(run_dir) == [1]:
            commit_step(run_dir, 2, table, {"metrics": {"a": 2.0}})
        assert read_step(run_dir, 2).equals(table)
        fatal += 1
    names = [name for name, _ in outcomes]
    # the two folders exist; staging folder, part, summary, sums, its fsync, rename, fsync of rollouts/
    assert names == [
        "mkdir",
        "mkdir",
        "mkdir",
        "write",
        "fsync",
        "write",
        "fsync",
        "write",
        "fsync",
        "fsync",
        "replace",
        "fsync",
    ]
    assert [steps for _, steps in outcomes] == [[1]] * 11 + [[1, 2]]


def test_the_first_commit_that_dies_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where the folders do not exist yet."""
    table, fatal = rollout_table(make_batch(1), 1), 0
    while True:
        run_dir = tmp_path / str(fatal)
        run_dir.mkdir()
        with monkeypatch.context() as patch:
            DyingDisk(patch, fatal)
            try:
                commit_step(run_dir, 1, table, {})
                break
            except OSError:
                pass
        if not committed_steps(run_dir):
            commit_step(run_dir, 1, table, {})
        assert read_step(run_dir, 1).equals(table)
        fatal += 1
    assert fatal == 14  # the twelve calls above and an fsync after each of the two new folders


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    """A part that lost its end, and one of another schema version, are errors that name the file."""
    commit_step(tmp_path, 1, rollout_table(make_batch(1), 1), {})
    part = tmp_path / "rollouts" / "step=000001" / "part-0.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(DamagedError, match=r"part-0\.parquet: must have SHA-256"):
        read_step(tmp_path, 1)
    write_sums(part.parent)
    with pytest.raises(DamagedError, match=r"part-0\.parquet: must be a complete Parquet file"):
        read_step(tmp_path, 1)
    pq.write_table(pa.table({"a": [1]}), part)
    write_sums(part.parent)
    with pytest.raises(
        ValueError, match=r"part-0\.parquet: polyphony\.schema_version must be 2, 3, 4 or 5, got none"
    ):
        read_step(tmp_path, 1)


def test_read_steps_in_order(tmp_path: Path) -> None:
    """Columns of all steps, ordered by step and not by name or time; other folders are passed over."""
    for step in (10, 2, 1_000_000):
        commit_step(tmp_path, step, rollout_table(make_batch(step), step), {})
    (tmp_path / "rollouts" / "notes").mkdir()
    table = read_steps(tmp_path, ["step", "group_id"])
    assert table.column("step").to_pylist() == [2, 2, 10, 10, 1_000_000, 1_000_000]
    assert table.column_names == ["step", "group_id"]
    with pytest.raises(ValueError, match="must have at least one committed step"):
        read_steps(tmp_path / "rollouts", ["step"])


# Steps 9 and 10 hold rewards 1, 0, null, 0 and formats code, prose, code, null; entropies 0.5 and 0.25.
PER_STEP = [(9, 1 / 3, 0.5, 0.5), (10, 1 / 3, 0.25, 0.5)]


def commit_two_steps(run_dir: Path) -> None:
    for step, entropy in ((9, 0.5), (10, 0.25)):
        commit_step(run_dir, step, rollout_table(mixed_batch(step), step, entropy), {})


def test_duckdb_reads_reward_entropy_and_format_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one-liners of the store's page, from the run directory, with the step as text and as a number."""
    commit_two_steps(tmp_path)
    monkeypatch.chdir(tmp_path)
    what = """avg(reward) as reward, avg(entropy_mean) as entropy,
              count(*) filter (format_tag = 'code') / count(*) as code"""
    rows = duckdb.execute(
        f"select step, {what} from 'rollouts/*/*.parquet' group by step order by step"
    ).fetchall()
    assert [(int(step), *rest) for step, *rest in rows] == [pytest.approx(row) for row in PER_STEP]
    typed = "read_parquet('rollouts/*/*.parquet', hive_partitioning = false)"
    rows = duckdb.execute(
        f"select step, {what} from {typed} where step >= 9 group by step order by step"
    ).fetchall()
    assert rows == [pytest.approx(row) for row in PER_STEP]
    pruned = duckdb.execute("select count(*) from 'rollouts/*/*.parquet' where step::int = 10").fetchall()
    assert pruned == [(4,)]
    scores = duckdb.execute("select scores['correct'] from 'rollouts/step=000009/*.parquet'").fetchall()
    assert scores == [(1.0,), (0.0,), (None,), (0.0,)]


def test_polars_reads_reward_entropy_and_format_share(tmp_path: Path) -> None:
    """The same with Polars, which keeps the step a number."""
    commit_two_steps(tmp_path)
    frame = (
        pl.scan_parquet(tmp_path / "rollouts" / "*" / "*.parquet")
        .group_by("step")
        .agg(
            pl.col("reward").mean(),
            pl.col("entropy_mean").mean(),
            (pl.col("format_tag") == "code").fill_null(False).mean().alias("code"),
        )
        .sort("step")
        .collect()
    )
    assert frame.rows() == [pytest.approx(row) for row in PER_STEP]
    tokens = (
        pl.read_parquet(tmp_path / "rollouts" / "*" / "*.parquet")
        .filter(pl.col("step") == 10)
        .select("token_ids")
        .to_series()
    )
    assert tokens.list.len().to_list() == [0, 1, 2, 3]


def test_metrics_are_rebuilt_from_the_steps(tmp_path: Path) -> None:
    """The rebuilt file is what appending gave, without lines of steps that never committed or torn ones."""
    metrics = {1: {"reward/mean": 0.5, "x": math.inf}, 2: {"reward/mean": 0.75}}
    for step, values in metrics.items():
        commit_step(tmp_path, step, rollout_table(make_batch(step), step), {"metrics": values})
        append_metrics(tmp_path, step, values)
    appended = (tmp_path / "metrics.jsonl").read_bytes()
    assert [json.loads(line) for line in appended.splitlines()] == [
        {"step": 1, "reward/mean": 0.5, "nonfinite": ["x"]},
        {"step": 2, "reward/mean": 0.75},
    ]
    append_metrics(tmp_path, 3, {"reward/mean": 1.0})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "rew')
    assert rebuild_metrics(tmp_path, 3) == []
    assert (tmp_path / "metrics.jsonl").read_bytes() == appended
    assert rebuild_metrics(tmp_path, 1) == []
    assert (tmp_path / "metrics.jsonl").read_bytes() == appended.splitlines(keepends=True)[0]
    second = tmp_path / "rollouts" / "step=000002"
    (second / "step.json").write_text("[1", encoding="utf-8")
    assert rebuild_metrics(tmp_path, 2) == [2]
    assert (tmp_path / "metrics.jsonl").read_bytes() == appended.splitlines(keepends=True)[0]
    write_sums(second)
    assert rebuild_metrics(tmp_path, 2) == [2]
    (second / "step.json").write_text("{}", encoding="utf-8")
    write_sums(second)
    with pytest.raises(ValueError, match=r"step=000002/step\.json: metrics must be an object"):
        rebuild_metrics(tmp_path, 2)


def test_numpy_metrics_are_numbers(tmp_path: Path) -> None:
    """Metrics come as numpy scalars of any width, which JSON does not know."""
    metrics = {"a": np.float32(0.5), "b": np.int64(3), "c": np.float32("nan")}
    append_metrics(tmp_path, 1, metrics)  # type: ignore[arg-type]
    line = json.loads((tmp_path / "metrics.jsonl").read_text(encoding="utf-8"))
    assert line == {"step": 1, "a": 0.5, "b": 3.0, "nonfinite": ["c"]}


def test_evaluations_are_stored_beside_the_steps(tmp_path: Path) -> None:
    """An evaluation of a step is its own commit, with the columns it has, and is no step."""
    table = pa.Table.from_batches([make_batch(1)])
    commit_eval(tmp_path, 10, table, {"metrics": {"eval/pass@1": 0.5}})
    assert (tmp_path / "eval" / "step=000010" / "part-0.parquet").is_file()
    assert (committed_evals(tmp_path), committed_steps(tmp_path)) == ([10], [])
    assert read_eval(tmp_path, 10).schema.equals(GROUP_SCHEMA)
    summary = json.loads((tmp_path / "eval" / "step=000010" / "step.json").read_text(encoding="utf-8"))
    assert summary["metrics"] == {"eval/pass@1": 0.5}
    with pytest.raises(ValueError, match="committed once"):
        commit_eval(tmp_path, 10, table, {})


def test_a_run_directory_is_new(tmp_path: Path) -> None:
    """Numbered runs take the first free number; a named one refuses a folder in use and says what to do."""
    assert create_run_dir(tmp_path / "runs", "debug", True).name == "debug-1"
    assert create_run_dir(tmp_path / "runs", "debug", True).name == "debug-2"
    (tmp_path / "runs" / "mine").mkdir()
    assert create_run_dir(tmp_path / "runs", "mine", False) == tmp_path / "runs" / "mine"
    with pytest.raises(ValueError, match=r"choose another name \(name=...\), or move or delete that folder"):
        create_run_dir(tmp_path / "runs", "mine", False)
    for name in ("", ".", "..", "a/b", "/etc"):
        with pytest.raises(ValueError, match="name must be a plain folder name"):
            create_run_dir(tmp_path / "runs", name, True)


@pytest.mark.parametrize("numbered", [True, False])
def test_drivers_never_share_a_run_directory(tmp_path: Path, numbered: bool) -> None:
    """Eight drivers at once: each gets a folder of its own, or an error when the name is fixed."""
    (tmp_path / "runs" / "x").mkdir(parents=True)  # found by all of them, empty
    won: list[Path] = []
    refused: list[str] = []
    start = threading.Barrier(8)

    def drive() -> None:
        start.wait()
        try:
            won.append(create_run_dir(tmp_path / "runs", "x", numbered))
        except ValueError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=drive) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(won)) == len(won) == (8 if numbered else 1)
    assert len(refused) == (0 if numbered else 7)
