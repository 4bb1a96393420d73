"""The fault harness: what it counts and compares is right."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

from run_files import make_run

from benchmarks.faults.common import (
    Records,
    lost_and_doubled,
    rows_hash,
    state_of,
    wait_until,
)
from benchmarks.faults.matrix_run import condition
from rollouts.store import committed_steps, read_step, step_dir


def test_lost_and_doubled_samples_are_counted(tmp_path: Path) -> None:
    """A step that is missing is lost; one that is there under two numbers is doubled."""
    run_dir = tmp_path / "run"
    make_run(run_dir)
    steps = committed_steps(run_dir)
    table = read_step(run_dir, steps[0])
    groups = table.column("submission_index").unique().to_pylist()
    rows = table.filter(table["origin"].to_numpy(zero_copy_only=False) == "policy").num_rows
    assert lost_and_doubled(run_dir, len(steps), len(groups)) == (0, 0)
    shutil.copytree(step_dir(run_dir, "rollouts", steps[0]), step_dir(run_dir, "rollouts", 90))
    assert lost_and_doubled(run_dir, len(steps), len(groups)) == (0, rows)
    shutil.rmtree(step_dir(run_dir, "rollouts", 90))
    shutil.rmtree(step_dir(run_dir, "rollouts", steps[0]))
    assert lost_and_doubled(run_dir, len(steps), len(groups)) == (rows, 0)


def test_a_table_hash_knows_values_but_not_order(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    table = read_step(tmp_path / "run", committed_steps(tmp_path / "run")[0])
    assert rows_hash(table) == rows_hash(table.take(list(reversed(range(table.num_rows)))))
    place = table.schema.get_field_index("seed")
    other = table.set_column(place, "seed", [[1] * table.num_rows])
    assert rows_hash(other) != rows_hash(table)


def test_a_finished_case_is_not_done_again(tmp_path: Path) -> None:
    records = Records(tmp_path / "out", only="wanted")
    done: list[str] = []
    for case in ("wanted/1", "other/1", "wanted/1", "wanted/2"):
        records.do(case, lambda case=case: done.append(case) or {"ok": case.endswith("1")})  # type: ignore[misc, func-returns-value]
    assert done == ["wanted/1", "wanted/2"] and records.failed == ["wanted/2"]
    assert [record["case"] for record in records.all()] == ["wanted/1", "wanted/2"]


def test_the_proof_of_a_fault_is_what_the_kernel_says() -> None:
    """Running, stopped, going on again, gone."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert wait_until(lambda: state_of(process.pid) == "S", 30.0) and condition(process.pid) == ""
        process.send_signal(signal.SIGSTOP)
        assert wait_until(lambda: condition(process.pid) == "stopped", 30.0)
        process.send_signal(signal.SIGCONT)
        assert wait_until(lambda: condition(process.pid) == "", 30.0)
        process.kill()
        assert wait_until(lambda: condition(process.pid) == "gone", 30.0)
    finally:
        process.kill()
        process.wait()
    assert condition(process.pid) == "gone"
