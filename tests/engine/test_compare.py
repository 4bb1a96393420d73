"""The comparison from the command to its pages, once on real engines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.results import read_result, result_path

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]


def test_two_arms_from_end_to_end(tmp_path: Path) -> None:
    """One start of engines, a result and a page for both; the same command again starts nothing. An arm that
    cannot be scored fails alone, and exits with 1."""
    (tmp_path / "bonus.yaml").write_text("entropy: {coef: 0.02}\n")
    (tmp_path / "no_scorer.py").write_text(
        "class NoScorer:\n    def __init__(self, options):\n        raise RuntimeError('no licence')\n"
        "    def score(self, prompt, completions): ...\n"
    )
    (tmp_path / "broken.yaml").write_text("scorers: {other: {kind: 'no_scorer:NoScorer', weight: 1.0}}\n")
    small = ["num_steps=2", "rollout.groups_per_step=2", "rollout.group_size=2", "sync.num_probes=2"]
    small += ["eval.num_prompts=2", "eval.num_samples=4", "eval.pass_at=[1,4]", "allow=[no_scorer]"]
    files = [str(tmp_path / "broken.yaml"), str(tmp_path / "bonus.yaml")]
    command = [sys.executable, "-m", "polyphony", "compare", "debug", "--arms", *files]
    command += ["--seeds", "1", "--out", str(tmp_path / "out"), *small]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr[-2000:]
    assert sum(line.startswith("bonus seed 0: step ") for line in done.stdout.splitlines()) == 2
    assert "run 3 of 3, arm 3 of 3: bonus, seed 0" in done.stdout
    control = read_result(result_path(tmp_path / "out", "control", 0))
    bonus = read_result(result_path(tmp_path / "out", "bonus", 0))
    assert len(control.prompts) == 2 and control.prompts[0].num_samples == 4 and control.steps == (1, 2)
    assert control.last["token entropy"] > 0 and bonus.last["KL to base"] > 0
    assert control.curves["reward"][0] == bonus.curves["reward"][0], (
        "the first step samples alike in all arms"
    )
    assert result_path(tmp_path / "out", "bonus", 0).stat().st_size < 30_000
    assert not result_path(tmp_path / "out", "broken", 0).exists()
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "2 of 3 runs have finished" in text and "Failed: broken seed 0" in text and "no licence" in text
    again = subprocess.run(
        [*command[:6], files[1], *command[8:]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert again.returncode == 0 and "starting actors" not in again.stdout, again.stdout + again.stderr
