"""The preset `darling` on real engines: its columns, and a run that is killed and resumed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.common import metrics_lines
from rollouts.store import committed_steps, read_step

pytestmark = [pytest.mark.engine, pytest.mark.long]
ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 20


def command(runs: Path, name: str) -> list[str]:
    fixed = [f"name={name}", f"runs_dir={runs}", "eval.num_prompts=16", "checkpoint.every=3"]
    return [sys.executable, "-m", "polyphony", "train", "darling", *fixed]


def test_twenty_steps_killed_and_resumed(tmp_path: Path) -> None:
    """Killed after its seventh step; rows, metrics and the export are those of a run left in peace."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = subprocess.run(command(tmp_path, "whole"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with open(tmp_path / "log", "w") as log:
        driver = subprocess.Popen(
            command(tmp_path, "killed"), cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.monotonic() + 600
        while len(committed_steps(killed) if killed.exists() else ()) < 7:
            assert driver.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[
                -3000:
            ]
            time.sleep(0.1)
        driver.kill()
        driver.wait()
    assert len(committed_steps(killed)) < NUM_STEPS
    done = subprocess.run(command(tmp_path, "killed"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert metrics_lines(killed) == metrics_lines(whole)
    for step in range(1, NUM_STEPS + 1):
        rows, twin = (read_step(run, step).drop_columns(["run_id"]) for run in (killed, whole))
        assert rows.equals(twin), f"step {step}"
    for path in (whole / "export").iterdir():
        assert (killed / "export" / path.name).read_bytes() == path.read_bytes(), path.name
    check_columns(whole)


def check_columns(run: Path) -> None:
    """A row is in a class exactly if it is correct; sizes are those of the classes."""
    for step in (1, NUM_STEPS):
        rows = read_step(run, step).to_pylist()
        classes = Counter((row["group_id"], row["partition_id"]) for row in rows)
        for row in rows:
            scores = dict(row["scores"])
            assert (row["partition_id"] is not None) == bool(row["answer_ok"])
            assert row["reward"] == pytest.approx(scores["correct"] * scores["diverse"])
            if row["answer_ok"]:
                members = dict(row["numbers"])["diverse/members"]
                assert row["partition_size"] == classes[row["group_id"], row["partition_id"]] <= members
                edges = json.loads(dict(row["texts"])["diverse/edges"])
                assert sum(edges) == members * (members - 1) / 2
    last: Any = metrics_lines(run)[-1]
    assert last["scorer/diverse/partitions"] >= 1.0 and last["score/diverse"] > 0.0
