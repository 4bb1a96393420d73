"""Folders as they come from the hub train on real engines: weights arrive, move, and are exported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub_folders import WEIGHTS, old_llama, qwen3_moe
from safetensors.torch import load_file

from trainer.model.checkpoint_format import check_model

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    *("num_steps=2", "rollout.groups_per_step=4", "rollout.group_size=4", "rollout.max_tokens=16"),
    *("eval.every=0", "scorers.correct=null", "scorers.coin={kind: random, weight: 1.0}", "learner.lr=1e-3"),
)


@pytest.mark.parametrize("make", [old_llama, pytest.param(qwen3_moe, marks=pytest.mark.long)])
def test_a_folder_from_the_hub_trains(tmp_path: Path, make: Callable[[Path], str]) -> None:
    """Two steps: both weight syncs are proven by the probes, and the export has the layout of its source."""
    path = make(tmp_path / "model")
    command = [sys.executable, "-m", "polyphony", "train", "configs/debug.yaml", "name=run"]
    overrides = [f"runs_dir={tmp_path}", f"model.path={path}", *SMALL]
    done = subprocess.run(
        [*command, *overrides], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["sync/probe_gap"] < 1e-4 and line["sync/proven"] == 1.0 for line in lines)
    assert all(line["mismatch/mean_abs_behavior_vs_proximal"] < 1e-3 for line in lines)
    export = tmp_path / "run" / "export"
    check_model(str(export), False)
    before, after = load_file(Path(path) / WEIGHTS), load_file(export / WEIGHTS)
    assert after.keys() == {name for name in before if not name.endswith("inv_freq")}
    assert all(before[name].shape == after[name].shape for name in after)
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
