"""The preset `critique_grpo` on real engines: 20 steps, its rows, and a run that is killed and resumed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import pytest

from benchmarks.faults.common import metrics_lines
from rollouts.store import committed_evals, committed_steps, read_eval, read_step, read_summary

pytestmark = [pytest.mark.engine, pytest.mark.long]
ROOT = Path(__file__).resolve().parents[2]
STEPS, KILL_AT = 20, 11


def command(folder: Path, name: str) -> list[str]:
    fixed = [f"name={name}", f"runs_dir={folder}", f"num_steps={STEPS}", "checkpoint.every=5"]
    fixed += ["rollout.groups_per_step=8", "eval.num_prompts=8", "checkpoint.export_last=false"]
    return [sys.executable, "-m", "polyphony", "train", "critique_grpo", *fixed]


def run(folder: Path, name: str) -> None:
    done = subprocess.run(
        command(folder, name), capture_output=True, text=True, timeout=1500, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_twenty_steps_and_a_run_that_was_killed(tmp_path: Path) -> None:
    """Refined rows answer failed groups under the original prompt; the killed run ends bit for bit alike."""
    run(tmp_path, "whole")
    whole = tmp_path / "whole"
    kept, fixed = 0, []
    for step in committed_steps(whole):
        metrics = cast(dict[str, float], read_summary(whole, step)["metrics"])
        rows = read_step(whole, step).to_pylist()
        refined = [row for row in rows if row["origin"] == "refined"]
        parents = {row["sample_id"]: row for row in rows if row["origin"] == "policy"}
        for row in refined:
            parent = parents[row["parent_id"]]
            assert row["prompt_ids"] == parent["prompt_ids"] != row["behavior_prompt_ids"]
            assert parent["reward"] == 0.0 and row["critique"].startswith("wrong")
            assert row["critique_kind"] == "rule" and row["critique_verdict"] == "wrong"
        kept += len(refined)
        assert metrics.get("refine/kept", 0.0) == len(refined)
        fixed += [metrics["refine/fixed_share"]] if "refine/fixed_share" in metrics else []
    assert kept >= 8 and sum(fixed) / len(fixed) > 0.3, (kept, fixed)
    for step in committed_evals(whole):
        assert {row["origin"] for row in read_eval(whole, step).to_pylist()} == {"policy"}
    killed = tmp_path / "killed"
    with open(tmp_path / "log", "w") as log:
        driver = subprocess.Popen(
            command(tmp_path, "killed"), cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.monotonic() + 1200
        while len(committed_steps(killed) if killed.exists() else ()) < KILL_AT:
            said = (tmp_path / "log").read_text()[-3000:]
            assert driver.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.1)
        driver.kill()
        driver.wait()
    assert len(committed_steps(killed)) < STEPS
    run(tmp_path, "killed")
    assert metrics_lines(killed) == metrics_lines(whole)
    for step in range(1, STEPS + 1):
        rows, twin = (read_step(each, step).drop_columns(["run_id"]) for each in (killed, whole))
        assert rows.equals(twin), f"step {step}"
