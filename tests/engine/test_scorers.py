"""Scorers with secrets and several groups in flight, in a real run: who has the value; no file does."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pytest
from leftovers import processes_mentioning

from rollouts.journal import Journal

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
VALUE = "sk-live-0123456789abcdef"


def _command(runs: Path) -> list[str]:
    entry = "kind: 'scorer_forms:{}', weight: 1.0, concurrency: 4, secrets: [{}]"
    return [
        *(sys.executable, "-m", "polyphony", "train", "debug", "--rollout-only"),
        *(f"runs_dir={runs}", "name=kept", "scorers.correct=null"),
        *("num_steps=1", "rollout.groups_per_step=4", "rollout.group_size=2", "allow=[scorer_forms]"),
        f"scorers.sync={{{entry.format('tells_secret', 'JUDGE_API_KEY')}}}",
        f"scorers.async={{{entry.format('tells_secret_async', 'JUDGE_API_KEY')}, replicas: 2}}",
        f"scorers.without={{{entry.format('tells_other', 'OTHER_API_KEY')}}}",
    ]


def _files_with(value: str, folder: Path) -> list[str]:
    """Every file below a folder that holds `value`."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [str(path.relative_to(folder)) for path in files if value.encode() in path.read_bytes()]


def _command_line(pid: int) -> bytes:
    """The command line of a process; empty if it has ended or is inside `exec`."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class _Exposed:
    """Processes other than the driver that hold a value in their environment or command line.

    Between `fork` and `exec`, each process that the driver starts is still a copy of the driver. Such a copy
    counts only if it is still there after `PATIENCE_S`; any other command line counts at once.
    """

    PATIENCE_S = 5.0

    def __init__(self, driver: int) -> None:
        self.found: set[int] = set()
        self._driver = driver
        self._copies: dict[int, float] = {}

    def look(self) -> None:
        now, copies = time.monotonic(), (b"", _command_line(self._driver))
        for pid in set(processes_mentioning(VALUE)) - {self._driver}:
            since = self._copies.setdefault(pid, now)
            if _command_line(pid) not in copies or now - since > self.PATIENCE_S:
                self.found.add(pid)


def test_a_secret_reaches_its_scorer_and_no_file(tmp_path: Path) -> None:
    """Scored with it in the sandbox and in the actor. Not in the run's folder, Ray's own files, the output or
    the environment and command line of any process but the driver, where it was exported."""
    helpers = f"{ROOT}{os.pathsep}{ROOT / 'tests/helpers'}"
    with tempfile.TemporaryDirectory(prefix="ray-") as ray_folder:
        environment = {**os.environ, "PYTHONPATH": helpers, "RAY_TMPDIR": ray_folder}
        environment |= {"JUDGE_API_KEY": VALUE, "OTHER_API_KEY": "another-secret-of-its-own"}
        driver = subprocess.Popen(
            _command(tmp_path),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        exposed = _Exposed(driver.pid)
        end = time.monotonic() + 240.0
        while driver.poll() is None and time.monotonic() < end:
            exposed.look()
            time.sleep(0.2)
        driver.kill()
        output = driver.stdout.read() if driver.stdout else ""
        assert driver.returncode == 0, output
        assert _files_with(VALUE, Path(ray_folder)) == []
    assert exposed.found == set() and VALUE not in output
    assert _files_with(VALUE, tmp_path) == []
    journal = Journal(tmp_path / "kept" / "journal")
    rows = pa.Table.from_batches([journal.read(index) for index in journal.indexes()]).to_pylist()
    scores = {name: {dict(row["scores"])[name] for row in rows} for name in ("sync", "async", "without")}
    assert scores == {"sync": {float(len(VALUE))}, "async": {float(len(VALUE))}, "without": {0.0}}
    assert len(rows) == 8 and VALUE not in str(rows) and all("***" in str(row["answer"]) for row in rows)
    logs = {path.name: path.read_text() for path in (tmp_path / "kept").rglob("scorer-*.log")}
    assert {"scorer-sync-0.log", "scorer-async-0.log", "scorer-async-1.log"} <= set(logs)
    assert "out: ***" in logs["scorer-sync-0.log"] and "out: ***" in logs["scorer-async-0.log"]
