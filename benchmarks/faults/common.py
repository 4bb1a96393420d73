"""What the fault scripts share: runs of the real command, hashes of a run, and a file per case.

A finished case is one small JSON file in the output folder and is not repeated; `--table` prints all of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
from safetensors.numpy import load_file

from rollouts.checkpoints import checkpoint_dir, checkpoint_steps
from rollouts.events import EVENTS
from rollouts.files import Json, write_json_atomic
from rollouts.store import committed_evals, committed_steps, read_eval, read_step
from trainer.metrics import is_timing

ROOT: Final = Path(__file__).resolve().parents[2]
GROUPS: Final = 4
_MARK: Final = "POLYPHONY_FAULTS_MARK"
_LIMIT_S: Final = 900.0


def settings(runs_dir: Path, name: str, num_steps: int, *more: str) -> list[str]:
    """Arguments of the command for a small run of debug.yaml; later ones override earlier ones."""
    fixed = [
        f"name={name}",
        f"runs_dir={runs_dir}",
        f"num_steps={num_steps}",
        f"rollout.groups_per_step={GROUPS}",
        "eval.every=6",
        "eval.num_prompts=4",
        "checkpoint.every=4",
        "checkpoint.keep=2",
    ]
    return ["train", "configs/debug.yaml", *fixed, *more]


# -- processes -----------------------------------------------------------------------------------------------


class Driver:
    """The real command in a process of its own; everything it starts carries `mark` in its environment."""

    def __init__(self, arguments: Sequence[str], log: Path, mark: str, module: str = "polyphony") -> None:
        self.mark = mark
        log.parent.mkdir(parents=True, exist_ok=True)
        # Ray's sockets need short paths; its session folders go with the case's.
        environment = {**os.environ, _MARK: mark, "RAY_TMPDIR": ray_folder(mark)}
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> bool:
        """kill -9; True if the driver was alive until then."""
        if self.process.poll() is not None:
            return False
        os.kill(self.process.pid, signal.SIGKILL)
        return self.process.wait() == -signal.SIGKILL

    def wait(self, limit_s: float = _LIMIT_S) -> int:
        """The exit code; a driver past its limit is killed and gives -9."""
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL


def ray_folder(mark: str) -> str:
    """Where Ray keeps the session of the runs with this mark."""
    return f"/tmp/pf-{mark}"


def marked(mark: str) -> list[int]:
    """Live processes that a run with this mark has started, directly or not."""
    found = []
    wanted = f"{_MARK}={mark}".encode()
    for pid in all_pids():
        with suppress(OSError):
            known = wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if known and pid != os.getpid() and state_of(pid) not in "ZX":
                found.append(pid)
    return found


def all_pids() -> list[int]:
    """Every process of this machine."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def state_of(pid: int) -> str:
    """The one letter of /proc/<pid>/stat (T is stopped, Z a zombie), X if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def command_of(pid: int) -> str:
    """The beginning of the command line of a process, without folders; "gone" if there is none."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "gone"
    return " ".join(word.rpartition("/")[2] for word in words)[:120]


def actor_pids(run_dir: Path) -> dict[str, int]:
    """Label -> process of every live actor of a run in Ray, by the log file that it writes to."""
    logs = f"{run_dir.resolve()}/logs/"
    found: dict[str, int] = {}
    for pid in all_pids():
        with suppress(OSError):
            output = os.readlink(f"/proc/{pid}/fd/1")
            if not output.startswith(logs) or state_of(pid) in "ZX":
                continue
            # an actor's own children write to the same file
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
                found[Path(output).stem] = pid
    return found


def wait_until(condition: Callable[[], bool], limit_s: float, every_s: float = 0.05) -> bool:
    """Whether the condition became true within the limit."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


def end_marked(mark: str, limit_s: float = 30.0) -> list[Json]:
    """Wait until the processes of a run have ended and kill the others; returns what those were."""
    wait_until(lambda: not marked(mark), limit_s, 0.2)
    left: list[Json] = []
    for pid in marked(mark):
        left.append(f"{state_of(pid)}: {command_of(pid)}")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not marked(mark), 10.0, 0.1)
    shutil.rmtree(ray_folder(mark), ignore_errors=True)
    return left


@contextmanager
def workshop() -> Iterator[tuple[Path, str]]:
    """A folder for the runs of a case and a mark for its processes. Both are removed afterwards."""
    mark = uuid.uuid4().hex[:8]
    folder = Path(tempfile.mkdtemp(prefix=f"faults-{mark}-"))
    # a script that is asked to end must still end what it started
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield folder, mark
    finally:
        end_marked(mark, 5.0 if sys.exc_info()[0] else 30.0)
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


# -- what a run is -------------------------------------------------------------------------------------------


def sha256(content: bytes) -> str:
    """In hex."""
    return hashlib.sha256(content).hexdigest()


def rows_hash(table: pa.Table) -> str:
    """Hash of all columns and rows, sorted by sample_id. Bytes below a null do not count."""
    ordered = table.sort_by("sample_id")
    digest = hashlib.sha256()
    for name in sorted(ordered.column_names):
        digest.update(f"{name}\0{ordered.column(name).to_pylist()!r}\0".encode())
    return digest.hexdigest()


def all_rows(run_dir: Path) -> pa.Table:
    """Every column of every committed step."""
    return pa.concat_tables([read_step(run_dir, step) for step in committed_steps(run_dir)])


def metrics_lines(run_dir: Path) -> list[dict[str, Json]]:
    """metrics.jsonl without what depends on the machine."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if not is_timing(key)}
        for line in lines
    ]  # fmt: skip


def fingerprint(run_dir: Path) -> dict[str, str]:
    """A finished run in hashes: final weights, learner's state, metrics, rows, evaluations."""
    last = checkpoint_steps(run_dir)[-1]
    state, random = _learner_hashes(checkpoint_dir(run_dir, last))
    evals = pa.concat_tables(
        [read_eval(run_dir, step) for step in committed_evals(run_dir)] or [pa.table({})]
    )
    return {
        "weights": sha256((run_dir / "export" / "model.safetensors").read_bytes()),
        "learner": f"step {last}: {state}",
        "learner_random": random,
        "metrics": sha256(json.dumps(metrics_lines(run_dir), sort_keys=True).encode()),
        "rows": rows_hash(all_rows(run_dir)),
        "evals": f"{committed_evals(run_dir)}: " + (rows_hash(evals) if evals.num_rows else "none"),
    }


def _learner_hashes(folder: Path) -> tuple[str, str]:
    """Of the learner's weights and moments, and of its random state."""
    state, random = hashlib.sha256(), hashlib.sha256()
    for path in sorted(folder.glob("learner-*.safetensors")):
        for name, values in sorted(load_file(path).items()):
            digest = random if name.startswith("rng") else state
            digest.update(f"{path.name} {name} {values.shape}".encode() + values.tobytes())
    return state.hexdigest(), random.hexdigest()


def equality(run_dir: Path, baseline: Mapping[str, str]) -> dict[str, Json]:
    """Which parts of the run are bitwise equal to the baseline."""
    found = fingerprint(run_dir)
    return {name: found[name] == value for name, value in baseline.items()}


def lost_and_doubled(run_dir: Path, num_steps: int, groups: int = GROUPS) -> tuple[int, int]:
    """(samples missing, samples there more than once) among the committed policy rows of `num_steps` steps.

    A step that trained on another step's groups counts too: step s (from 0) has submissions s x G on.
    """
    seen: Counter[tuple[int, int, str]] = Counter()
    for step in committed_steps(run_dir):
        rows = read_step(run_dir, step, ["submission_index", "sample_id", "origin"]).to_pylist()
        for row in rows:
            if row["origin"] == "policy":
                seen[step, row["submission_index"], row["sample_id"]] += 1
    per_group = Counter((step, index) for step, index, _ in seen)
    size = max(per_group.values(), default=0)
    lost = sum(max(0, size - per_group[index // groups + 1, index]) for index in range(num_steps * groups))
    ids = Counter(sample for _, _, sample in seen.elements())
    return lost, sum(count - 1 for count in ids.values())


def read_events(run_dir: Path) -> list[dict[str, Json]]:
    """The events of a run in order; empty without a file. A last line that was cut short is left out."""
    path = run_dir / EVENTS
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [json.loads(line) for line in whole.splitlines()]


def event_counts(run_dir: Path) -> dict[str, Json]:
    """How often each kind of event was recorded."""
    return dict(sorted(Counter(str(event["kind"]) for event in read_events(run_dir)).items()))


# -- cases ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Records:
    """A folder with a JSON file for each finished case. A failed case is reported and repeated next time."""

    folder: Path
    only: str = ""
    failed: list[str] = field(default_factory=list)

    def wants(self, case: str) -> bool:
        """Whether the case is selected and not finished."""
        return self.only in case and not self._path(case).exists()

    def do(self, case: str, work: Callable[[], Mapping[str, Json]]) -> None:
        """Run a wanted case and store its result."""
        if not self.wants(case):
            return
        began = time.monotonic()
        print(f"{case} ...", flush=True)
        found = {"case": case, **work(), "wall_s": round(time.monotonic() - began, 1)}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json_atomic(self._path(case), found)
        if found.get("ok") is not True:
            self.failed.append(case)
        print(f"{case}: {'ok' if found.get('ok') else found}  ({found['wall_s']} s)", flush=True)

    def all(self) -> list[dict[str, Json]]:
        """Every finished case."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("*.json"))]

    def _path(self, case: str) -> Path:
        return self.folder / (case.replace("/", "_").replace(" ", "_") + ".json")


def arguments_of(text: str | None, name: str) -> argparse.ArgumentParser:
    """The arguments of every script."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.faults.{name}", description=text)
    parser.add_argument("--out", type=Path, required=True, help="folder with a JSON per finished case")
    parser.add_argument("--only", default="", help="do the cases whose name holds this text")
    parser.add_argument("--table", action="store_true", help="print what is there as Markdown, do nothing")
    return parser


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
