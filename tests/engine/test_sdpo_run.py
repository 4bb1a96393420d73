"""The preset `sdpo` on real engines: 20 steps, its rows, and a run that is killed and resumed."""

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
    return [sys.executable, "-m", "polyphony", "train", "sdpo", *fixed]


def run(folder: Path, name: str) -> None:
    done = subprocess.run(
        command(folder, name), capture_output=True, text=True, timeout=1500, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_twenty_steps_and_a_run_that_was_killed(tmp_path: Path) -> None:
    """Distilled rows repeat answers of their group; the killed run, teacher too, ends bit for bit alike."""
    run(tmp_path, "whole")
    whole = tmp_path / "whole"
    for step in committed_steps(whole):
        metrics = cast(dict[str, float], read_summary(whole, step)["metrics"])
        rows = read_step(whole, step).to_pylist()
        taught = [row for row in rows if row["origin"] == "distilled"]
        parents = {row["sample_id"]: row for row in rows if row["origin"] == "policy"}
        assert metrics["distilled/num_rows"] == len(taught) > 0 and metrics["loss/distilled"] > 0
        for row in taught:
            parent, texts, numbers = (
                parents[row["parent_id"]],
                dict(row["texts"] or {}),
                dict(row["numbers"] or {}),
            )
            same = ("prompt_ids", "token_ids", "behavior_logprobs", "versions", "reward")
            assert all(row[name] == parent[name] for name in same)
            assert row["teacher_prompt_ids"] != row["prompt_ids"] and row["teacher_kl"] > 0
            if numbers["teacher/solution"]:
                shown = parents[texts["teacher/solution_of"]]
                assert shown["reward"] == 1.0 and shown["sample_id"] != row["parent_id"]
                assert shown["group_id"] == row["group_id"]
            else:
                assert row["critique"].startswith("wrong") and parent["reward"] == 0.0
        unlearned = [row for row in rows if row["origin"] == "policy" and row["update_count"]]
        assert not unlearned, "the policy loss has weight 0"
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
