"""The base install, without the extras: every verb works or says what to install, without a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_files import save_step

from polyphony.cli import ENGINE_PACKAGES

ROOT = Path(__file__).resolve().parents[2]
ABSENT = (
    *ENGINE_PACKAGES,
    "huggingface_hub",
    "tokenizers",
    "math_verify",
    "jinja2",
    "scipy",
    "pandas",
    "openai",
)
"""Packages that only the extras bring, directly or by way of others."""
PROGRAM = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from polyphony.cli import main
sys.exit(main(sys.argv[1:]))
"""
INSTALL = 'install the extra for this machine, pip install "polyphony-rl[cpu]" or "polyphony-rl[gpu]"'


def polyphony(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as it would run in an environment that lacks `ABSENT`."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refusal(folder: Path, *arguments: str) -> str:
    done = polyphony(folder, *arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (line,) = done.stderr.strip().splitlines()
    return line


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "debug"),
        ("train", "debug", "--rollout-only"),
        ("compare", "debug", "--arms", "a.yaml"),
        ("lab", "pretrain", "lab/bases/voices.yaml"),
        ("lab", "train-equivalence", "lab/bases/equivalence.yaml"),
    ],
)
def test_verbs_that_need_engines_say_what_to_install(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """One line with the missing packages and the command that brings them."""
    line = refusal(tmp_path, *arguments)
    assert line.startswith(f"polyphony: {arguments[0]}") and INSTALL in line
    assert f"needs {', '.join(ENGINE_PACKAGES)}" in line


@pytest.mark.slow
def test_a_dry_run_checks_what_it_can(tmp_path: Path) -> None:
    """Config, run folder and data are checked as anywhere; then it says what was not, and what to install."""
    line = refusal(tmp_path, "train", "debug", "--dry-run", "eval.num_prompts=8")
    assert INSTALL in line and "training prompts, " in line
    assert "can be used; not checked: model, tokens and room on the disk" in line
    assert "did you mean learner.lr?" in refusal(tmp_path, "train", "debug", "--dry-run", "learner.lrr=1")
    (tmp_path / "mine.jsonl").write_text(json.dumps({"prompt": 3}) + "\n")
    data = "data.train={kind: file, path: mine.jsonl}"
    assert "mine.jsonl, line 1: prompt must be text" in refusal(tmp_path, "train", "debug", "--dry-run", data)
    (tmp_path / "runs").write_text("a file")
    assert "runs_dir and name must be a folder" in refusal(tmp_path, "train", "debug", "--dry-run")


def test_reading_verbs_work(tmp_path: Path) -> None:
    """Configs, reports and n-grams need no engine."""
    assert polyphony(tmp_path, "--help").returncode == 0
    assert "learner:" in polyphony(tmp_path, "config", "print", "debug").stdout
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("{}\n")
    save_step(run, 1)
    report = polyphony(tmp_path, "report", "run")
    assert report.returncode == 0 and (run / "report.html").exists(), report.stderr
    mined = polyphony(tmp_path, "mine", "run", "--out", "grams.json", "--min-documents", "1")
    assert mined.returncode == 0 or "Traceback" not in mined.stderr, mined.stderr


@pytest.mark.slow
def test_rewards_need_no_engine(tmp_path: Path) -> None:
    """Pure rules are listed, tried and measured; math says what it lacks, on one line."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "?", "answer": "7", "completion": "7"}) + "\n")
    assert polyphony(tmp_path, "rewards", "list").returncode == 0
    rules = [f"--scorer={kind}" for kind in ("lab_answer", "format", "language", "repetition", "json_schema")]
    tried = polyphony(tmp_path, "rewards", "try", "rows.jsonl", *rules)
    assert tried.returncode == 0 and "1 completions of 1 prompts" in tried.stdout, tried.stderr
    assert polyphony(tmp_path, "rewards", "bench", "debug", "--seconds=0.1").returncode == 0
    assert "torch" not in refusal(tmp_path, "rewards", "try", "rows.jsonl", "--scorer=maths")


@pytest.mark.slow
def test_a_judge_says_what_to_install(tmp_path: Path) -> None:
    """The client of endpoints is in the extras; the kind itself can be listed and its rubric is checked."""
    row = {"prompt": "2 + 2?", "answer": "4", "completion": "4"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    arguments = ("rewards", "try", "rows.jsonl", "--config", "judge", "--scorer", "judge")
    assert "needs the package openai, which the extras [cpu] and [gpu] have" in refusal(tmp_path, *arguments)
    wrong = refusal(tmp_path, *arguments, "scorers.judge.rubric=none.yaml")
    assert "rubric = 'none.yaml': no such file in " in wrong and "; bundled are correctness, quality" in wrong
    assert "rubric" in polyphony(tmp_path, "rewards", "list", "judge").stdout
