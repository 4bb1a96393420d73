"""A run killed within a write ends like one left alone."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from benchmarks.faults.common import (
    equality,
    fingerprint,
    lost_and_doubled,
    settings,
)
from benchmarks.faults.stops import Stop
from benchmarks.faults.warm import Warm
from rollouts.checkpoints import checkpoint_steps
from rollouts.store import committed_steps

pytestmark = pytest.mark.engine
STEPS = 3
SMALL = ("rollout.group_size=4", "eval.every=0", "checkpoint.every=1")


def test_a_run_killed_within_its_writes_ends_like_one_left_alone(tmp_path: Path) -> None:
    """Before a step's rename, and with half of a checkpoint's file written: the same end, bit for bit."""
    with Warm() as warm:

        def drive(runs_dir: Path, stop: Stop | None = None, calls: str = "") -> int:
            runs_dir.mkdir(exist_ok=True)
            arguments = settings(runs_dir, "killed", STEPS, *SMALL)
            return warm.run(arguments, runs_dir / "killed", runs_dir / "log", stop, calls)

        alone, run = tmp_path / "alone", tmp_path / "run"
        assert drive(alone, None, str(tmp_path / "calls.json")) == 0, (alone / "log").read_text()[-2000:]
        calls = json.loads((tmp_path / "calls.json").read_text())
        rename = next(k for k, call in enumerate(calls["commit@2"]) if call.startswith("replace"))
        assert drive(run, Stop(sequence="commit@2", number=rename, when="before")) == -signal.SIGKILL
        assert committed_steps(run / "killed") == [1]
        write = next(k for k, call in enumerate(calls["checkpoint@3"]) if call.startswith("write"))
        assert drive(run, Stop(sequence="checkpoint@3", number=write, when="torn")) == -signal.SIGKILL
        assert committed_steps(run / "killed") == [1, 2, 3] and checkpoint_steps(run / "killed") == [1, 2]
        assert drive(run) == 0, (run / "log").read_text()[-2000:]
    expected = fingerprint(alone / "killed")
    del expected["learner_random"]  # in one process the engine draws from the same state
    assert all(equality(run / "killed", expected).values())
    assert lost_and_doubled(run / "killed", STEPS) == (0, 0)
