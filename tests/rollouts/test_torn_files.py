"""Files cut short and bits turned over: every change is noticed, and the tool itself can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rollout_rows import snapshot
from run_files import make_run

from benchmarks.torn_files import main, torn_files, total
from rollouts import sums


def test_no_damage_is_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every kind of file of a run, each read before and after as a control; the run itself is not touched."""
    run_dir = tmp_path / "run"
    make_run(run_dir)
    before = snapshot(run_dir)
    target = tmp_path / "torn.json"
    assert main([str(run_dir), "--cuts", "3", "--flips", "6", "--json", str(target)]) == 0
    assert snapshot(run_dir) == before
    kinds = json.loads(target.read_text(encoding="utf-8"))["kinds"]
    assert {kind: counts["files"] for kind, counts in kinds.items()} == {
        "checkpoints: *.safetensors": 2,
        "checkpoints: SHA256SUMS": 1,
        "checkpoints: manifest.json": 1,
        "newest checkpoint: *.safetensors": 2,
        "newest checkpoint: SHA256SUMS": 1,
        "newest checkpoint: manifest.json": 1,
        "rollouts: SHA256SUMS": 4,
        "rollouts: part-0.parquet": 4,
        "rollouts: step.json": 4,
        "eval: SHA256SUMS": 3,
        "eval: part-0.parquet": 3,
        "eval: step.json": 3,
        "journal: *.arrow": 2,
    }
    for kind, counts in kinds.items():
        expected = "previous used" if kind.startswith("newest") else "detected"
        assert counts[f"flip/{expected}"] == 6 * counts["files"]
        assert counts[f"cut/{expected}"] >= 3 * counts["files"]
        assert {name for name in counts if "/" in name} == {f"flip/{expected}", f"cut/{expected}"}
    assert "| all | 31 | 31 |" in capsys.readouterr().out


def test_the_tool_sees_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With digests that nobody compares, damage in the learner's files passes, and the tool says so."""
    run_dir = tmp_path / "run"
    make_run(run_dir)
    monkeypatch.setattr(sums, "_check_digest", lambda *_: None)
    counts = torn_files(run_dir, 2, 2, 0)["checkpoints: *.safetensors"]
    assert counts["flip/silent"] == 4
    assert main([str(run_dir), "--cuts", "1", "--flips", "1", "--json", str(tmp_path / "torn.json")]) == 1


def test_a_folder_without_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing to try is no success."""
    assert main([str(tmp_path)]) == 2
    assert "must hold checkpoints, steps or a journal" in capsys.readouterr().err
    assert not total({})
