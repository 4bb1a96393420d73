"""The store of committed steps: one folder per step, which appears by one rename and never changes again.

    runs/<name>/rollouts/step=000012/part-0.parquet   all columns of every completion of the step
    runs/<name>/rollouts/step=000012/step.json        metrics, groups used and dropped, collection order
    runs/<name>/rollouts/step=000012/SHA256SUMS       digests of the two; every reader here checks them
    runs/<name>/eval/step=000010/                     the same for an evaluation
    runs/<name>/metrics.jsonl                         one line per step, rebuilt from the step.json files

`commit_step` is called by the buffer, `commit_eval` and `append_metrics` by the loop, `create_run_dir` by the
command line, the readers by the viewer and by analyses. Other tools can read the files; in the run directory:

    duckdb.sql("select step, avg(reward) from 'rollouts/*/*.parquet' group by step order by step")
    polars.scan_parquet("rollouts/*/*.parquet").group_by("step").agg(polars.col("reward").mean())

`step` is both a column and part of the path. Polars reads it as an integer; DuckDB uses the text of the path,
'000012', unless called with `read_parquet(..., hive_partitioning = false)`. With PyArrow use `read_steps`, or
a dataset of the files with `partitioning=None`.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from rollouts.columns import ADDED_COLUMNS, GROUP_SCHEMA, METADATA, check_version
from rollouts.files import (
    Json,
    append_line,
    encode_json,
    fresh_dir,
    fsync_dir,
    make_dir_synced,
    rename_dir_synced,
    write_bytes_atomic,
    write_bytes_synced,
)
from rollouts.sums import DamagedError, check_sums, digest_bytes, read_summed, write_sums

STAGING: Final = ".staging"
PART: Final = "part-0.parquet"
SUMMARY: Final = "step.json"
METRICS: Final = "metrics.jsonl"
_STEP_NAME: Final = re.compile(r"step=(\d{6,})")


def create_run_dir(runs_dir: Path, name: str, numbered: bool) -> Path:
    """Create a new run directory and return it.

    With `numbered` it is the first free of name-1, name-2, ...; otherwise `name`. If several drivers call
    this at the same time, each gets a different directory or an error, because `mkdir` is atomic.

    Raises:
        ValueError: `name` is not a plain folder name, or (not numbered) the run exists already.
    """
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"name must be a plain folder name, got {name!r}")
    runs_dir.mkdir(parents=True, exist_ok=True)
    if not numbered:
        return _claim(runs_dir / name)
    # `mkdir` and not a listing of the folder: two drivers that start together see the same free number.
    number = 1
    while True:
        path = runs_dir / f"{name}-{number}"
        try:
            os.mkdir(path)
        except FileExistsError:
            number += 1
            continue
        fsync_dir(runs_dir)
        return path


def check_run_free(path: Path) -> None:
    """Check that `path` is new or empty, without claiming it (`create_run_dir` does).

    Raises:
        ValueError: it has content.
    """
    if path.is_dir() and os.listdir(path):
        raise _taken(path)


def _taken(path: Path) -> ValueError:
    return ValueError(
        f"run directory {path} must be new or empty, got one with content: "
        f"choose another name (name=...), or move or delete that folder"
    )


def _claim(path: Path) -> Path:
    make_dir_synced(path)
    check_run_free(path)
    try:
        # `mkdir` is atomic: of two drivers that see the same empty directory, only one can make this folder.
        os.mkdir(path / "journal")
    except FileExistsError as error:
        raise _taken(path) from error
    return path


def commit_step(run_dir: Path, step: int, table: pa.Table, summary: Mapping[str, Json]) -> None:
    """Write step `step` durably: its rows and its summary appear together as `rollouts/step=<step>`.

    `summary["metrics"]`, name -> number, becomes the step's line in metrics.jsonl; values that are not
    finite are dropped, and their names listed under `nonfinite`. The rest of `summary` is stored unchanged.

    Raises:
        ValueError: the step is already committed, a column has an extension type, `step` differs from that
            of the rows, or the summary cannot be encoded as JSON.
        OSError: a write failed; partial files are removed.
    """
    _commit(run_dir, "rollouts", step, table, summary)


def commit_eval(run_dir: Path, step: int, table: pa.Table, summary: Mapping[str, Json]) -> None:
    """As `commit_step`, for an evaluation of step `step`: `eval/step=<step>`."""
    _commit(run_dir, "eval", step, table, summary)


def _commit(run_dir: Path, area: str, step: int, table: pa.Table, summary: Mapping[str, Json]) -> None:
    final = step_dir(run_dir, area, step)
    if final.exists():
        fsync_dir(final.parent)  # an earlier call may have failed between its rename and its fsync
        raise ValueError(f"{final}: a step must be committed once, got it again")
    _check_table(table, step)
    # Both are encoded in memory before the first write, so that a value that cannot be stored leaves no
    # files.
    record = encode_json(_summary_record(step, table.num_rows, summary), f"{area} {final.name} {SUMMARY}")
    content = _encode_parquet(table)
    for folder in (run_dir / area, run_dir / STAGING):
        make_dir_synced(folder)
    staging = run_dir / STAGING / f"{area}-{final.name}"
    try:
        fresh_dir(staging)
        write_bytes_synced(staging / PART, content)
        write_bytes_synced(staging / SUMMARY, record)
        write_sums(staging, {PART: digest_bytes(content), SUMMARY: digest_bytes(record)})
        fsync_dir(staging)
        rename_dir_synced(staging, final)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def step_dir(run_dir: Path, area: str, step: int) -> Path:
    """The folder of a step of `area` ("rollouts" or "eval"), which need not exist."""
    if step < 0:
        raise ValueError(f"step must be 0 or more, got {step}")
    return run_dir / area / f"step={step:06d}"


def _check_table(table: pa.Table, step: int) -> None:
    for field in table.schema:
        if _has_extension(field.type):
            raise ValueError(
                f"column {field.name} must have a plain Arrow type, got extension type {field.type}"
            )
    if "step" in table.schema.names:
        # The path has the step too, and readers take either: they must agree.
        steps = table.column("step").unique().to_pylist()
        if steps not in ([], [step]):
            raise ValueError(f"column step must be {step} in every row, got {steps[:5]}")


def _has_extension(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return True
    if pa.types.is_dictionary(kind):
        return _has_extension(kind.value_type)
    return any(_has_extension(kind.field(number).type) for number in range(kind.num_fields))


def _encode_parquet(table: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata({**(table.schema.metadata or {}), **METADATA}), sink, compression="zstd"
    )
    return memoryview(sink.getvalue())


def _summary_record(step: int, num_rows: int, summary: Mapping[str, Json]) -> dict[str, Json]:
    metrics = summary.get("metrics", {})
    if not isinstance(metrics, Mapping):
        raise ValueError(f"summary: metrics must map names to numbers, got {metrics!r}")
    finite, nonfinite = _split_finite(metrics)
    return {"step": step, "num_rows": num_rows, **summary, "metrics": finite, "nonfinite": nonfinite}


def _split_finite(metrics: Mapping[str, Json]) -> tuple[dict[str, float], list[str]]:
    """The finite metrics, and the names of the others."""
    finite: dict[str, float] = {}
    nonfinite: list[str] = []
    for name, value in metrics.items():
        if not isinstance(value, Real):  # includes numpy's numbers
            raise ValueError(f"metric {name} must be a number, got {value!r}")
        number = value if isinstance(value, int) else float(value)
        # JSON has no NaN, and a metric that is NaN must not stop a run from being stored.
        if math.isfinite(number):
            finite[name] = number
        else:
            nonfinite.append(name)
    return finite, nonfinite


def append_metrics(run_dir: Path, step: int, metrics: Mapping[str, float]) -> None:
    """Append one line, {"step": ..., <name>: <value>, ...}, to metrics.jsonl.

    Values that are not finite are dropped and their names listed under `nonfinite`, so that the line is valid
    JSON.
    """
    append_line(run_dir / METRICS, _metrics_line(step, *_split_finite(metrics)))


def _metrics_line(step: int, finite: Mapping[str, float], nonfinite: Sequence[str]) -> str:
    record: dict[str, Json] = {"step": step, **finite}
    if nonfinite:
        record["nonfinite"] = list(nonfinite)
    return json.dumps(record, allow_nan=False)


def rebuild_metrics(run_dir: Path, upto: int) -> list[int]:
    """Rebuild metrics.jsonl, atomically, from the step.json files of steps 1 to `upto`.

    Returns:
        The steps that are left out because their step.json is damaged, ascending.

    Raises:
        ValueError: the metrics of a step.json do not have the form that `commit_step` writes.
    """
    lines, damaged = [], []
    for step in committed_steps(run_dir):
        if step > upto:
            break
        try:
            summary = read_summary(run_dir, step)
        except DamagedError:
            damaged.append(step)
            continue
        metrics, lost = summary.get("metrics"), summary.get("nonfinite")
        if not isinstance(metrics, dict) or not isinstance(lost, list):
            path = step_dir(run_dir, "rollouts", step) / SUMMARY
            raise ValueError(
                f"{path}: metrics must be an object and nonfinite a list, got {metrics!r}, {lost!r}"
            )
        lines.append(_metrics_line(step, metrics, lost) + "\n")
    write_bytes_atomic(run_dir / METRICS, "".join(lines).encode())
    return damaged


def committed_steps(run_dir: Path) -> list[int]:
    """The steps that are committed, ascending."""
    return _steps(run_dir / "rollouts")


def committed_evals(run_dir: Path) -> list[int]:
    """The steps that have a committed evaluation, ascending."""
    return _steps(run_dir / "eval")


def _steps(parent: Path) -> list[int]:
    if not parent.is_dir():
        return []
    matches = (_STEP_NAME.fullmatch(name) for name in os.listdir(parent))
    return sorted(int(match.group(1)) for match in matches if match)


def verify_step(run_dir: Path, step: int) -> None:
    """Check every byte of a committed step.

    Raises:
        ValueError: the step is not committed.
        DamagedError: a file is missing, unknown or not what was written.
    """
    _verify(step_dir(run_dir, "rollouts", step))


def _verify(folder: Path) -> None:
    try:
        check_sums(folder)
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: no such committed step") from error


def read_step(run_dir: Path, step: int, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one committed step, with `columns` or all of them.

    Raises:
        ValueError: the step is not committed, a column does not exist, or another schema version.
        DamagedError: the file is not what was written.
    """
    return _read_part(step_dir(run_dir, "rollouts", step) / PART, columns)


def read_eval(run_dir: Path, step: int, columns: Sequence[str] | None = None) -> pa.Table:
    """As `read_step`, for the evaluation of step `step`."""
    return _read_part(step_dir(run_dir, "eval", step) / PART, columns)


def read_steps(run_dir: Path, columns: Sequence[str]) -> pa.Table:
    """These columns of all committed steps, in order of step.

    Raises:
        ValueError: as `read_step`, or nothing is committed yet.
    """
    steps = committed_steps(run_dir)
    if not steps:
        raise ValueError(f"{run_dir}: must have at least one committed step, got none")
    # Columns are asked for by name, because all columns of a long run do not fit into memory.
    return pa.concat_tables([read_step(run_dir, step, columns) for step in steps])


def _read_part(path: Path, columns: Sequence[str] | None) -> pa.Table:
    content = _read_summed(path)
    try:
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            check_version(file.schema_arrow.metadata, str(path))
            names = file.schema_arrow.names
            # Rows written before these columns existed have none of their values.
            missing = [name for name in ADDED_COLUMNS if name not in names]
            for name in columns or ():
                if name not in [*names, *missing]:
                    raise ValueError(f"{path}: column must be one of {', '.join(names)}, got {name!r}")
            table = file.read(columns=None if columns is None else list(columns))
            for name in missing:
                kind = GROUP_SCHEMA.field(name).type
                table = table.append_column(name, pa.nulls(table.num_rows, kind))
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"{path}: must be a complete Parquet file: {error}") from error
    return table if columns is None else table.select(list(columns))


def read_summary(run_dir: Path, step: int) -> dict[str, Json]:
    """The step.json of one committed step.

    Raises:
        ValueError: the step is not committed.
        DamagedError: its step.json is not what was written.
    """
    return _read_json(step_dir(run_dir, "rollouts", step) / SUMMARY)


def _read_json(path: Path) -> dict[str, Json]:
    try:
        value = json.loads(_read_summed(path))
    except json.JSONDecodeError as error:
        raise DamagedError(f"{path}: must be a JSON object: {error}") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{path}: must be a JSON object, got {type(value).__name__}")
    return value


def _read_summed(path: Path) -> bytes:
    try:
        return read_summed(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such committed step") from error
