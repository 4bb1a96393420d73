"""One run of `benchmarks.faults.matrix`: a driver that kills or stops its own actors in every phase.

    python -m benchmarks.faults.matrix_run FAULTS.json train configs/debug.yaml ...

FAULTS.json: {"actor": label or "", "signal": "SIGKILL" or "SIGSTOP", "stop_s": seconds, "out": path}. The
phases are those that the run reports. A fault counts as a hit if the actor's process was seen stopped,
exiting or gone during the phase; one that came too late is tried again in a later step.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.faults.common import actor_pids, state_of
from cluster.actor_process import started_at
from cluster.train import train
from configs.load import load_config
from rollouts.files import Json, write_json_atomic

PHASES: Final = ("idle", "generating", "scoring", "learning", "publishing", "committing")
QUIET_STEPS: Final = 3
"""Finished steps between two faults, so that the recovery ends and the usual step time is known."""
_WITHIN: Final = (0.4, 0.15, 0.0)
"""Share of a phase's usual length to wait before the first, second and any later attempt."""
_EXITING: Final = 0x4
_PROOF_S: Final = 2.0


@dataclass(slots=True)
class Hit:
    """One attempted fault. Times are by the wall clock, as in the run's events."""

    phase: str
    step: int
    pid: int
    at: float
    finished: int
    proven: str = ""
    """State of the process seen during the phase; empty if the phase ended first."""
    waited_share: float = 0.0


@dataclass(slots=True)
class Pace:
    """When each step finished, each time if it was trained again, and the length of phases."""

    finished: list[tuple[int, float]] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


class Saboteur:
    """A reporter that injects the faults, on its own thread, when the run reports a phase."""

    def __init__(self, run_dir: Path, actor: str, number: int, stop_s: float) -> None:
        self._run_dir, self._actor, self._number, self._stop_s = run_dir, actor, number, stop_s
        self._todo = list(PHASES) if actor else []
        self._now: tuple[int, str, float] = (0, "", 0.0)
        self._quiet_from = QUIET_STEPS
        self._attempts = 0
        self._victim: tuple[int, int | None] | None = None
        self._thread: threading.Thread | None = None
        self.hits: list[Hit] = []
        self.pace = Pace()

    # -- as a reporter ---------------------------------------------------------------------------------------

    def header(self, *, run_dir: Path, model: str, num_parameters: int = 0) -> None:
        """Nothing to do."""

    def step(self, metrics: Mapping[str, float]) -> None:
        """A step is finished."""
        step = int(metrics["step"])
        self.pace.finished.append((step, time.time()))
        print(f"step {step}", flush=True)

    def note(self, text: str) -> None:
        """Into the log."""
        print(text, flush=True)

    def phase(self, step: int, name: str) -> None:
        """Where the run is now; `idle` is between two steps and has no length, so it is hit at once."""
        was, now = self._now, time.monotonic()
        if was[1] and not self._busy():
            self.pace.phases[was[1]].append(now - was[2])
        self._now = (step, name, now)
        if not self._todo or self._busy() or self._last_finished() < self._quiet_from:
            return
        if name == "idle" or self._victim is None:
            self._victim = self._find()
        if self._victim is None or name != self._todo[0]:
            return
        self._thread = threading.Thread(target=self._inject, args=(step, name), daemon=True)
        self._thread.start()
        if name == "idle":
            time.sleep(0.2)

    # -- injecting -------------------------------------------------------------------------------------------

    def _last_finished(self) -> int:
        return max((step for step, _ in self.pace.finished), default=0)

    def _busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _find(self) -> tuple[int, int | None] | None:
        pid = actor_pids(self._run_dir).get(self._actor)
        return None if pid is None else (pid, started_at(pid))

    def _inject(self, step: int, name: str) -> None:
        share = _WITHIN[min(self._attempts, len(_WITHIN) - 1)] if name != "idle" else 0.0
        usual = statistics.median(self.pace.phases[name]) if self.pace.phases[name] else 0.0
        time.sleep(share * usual)
        victim, self._victim = self._victim, None
        if victim is None or self._now[:2] != (step, name) or started_at(victim[0]) != victim[1]:
            self._attempts += 1
            return
        pid, finished = victim[0], self._last_finished()
        hit = Hit(name, step, pid, time.time(), finished, waited_share=share)
        os.kill(pid, self._number)
        deadline = time.monotonic() + _PROOF_S
        while not (seen := condition(pid)) and time.monotonic() < deadline:
            time.sleep(0.0002)
        hit.proven = seen if self._now[:2] == (step, name) else ""
        self.hits.append(hit)
        self._attempts = 0 if hit.proven else self._attempts + 1
        if hit.proven:
            self._todo.pop(0)
        self._quiet_from = finished + 1 + QUIET_STEPS
        if self._number == signal.SIGSTOP:
            goes_on = time.monotonic() + self._stop_s
            while time.monotonic() < goes_on and started_at(pid) == victim[1]:
                time.sleep(0.05)
            if started_at(pid) == victim[1]:  # else it was replaced
                os.kill(pid, signal.SIGCONT)


def condition(pid: int) -> str:
    """`stopped`, `exiting` or `gone`; empty if the process is none of these."""
    state = state_of(pid)
    if state in "ZX":
        return "gone"
    if state in "Tt":
        return "stopped"
    try:
        flags = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6])
    except OSError:
        return "gone"
    return "exiting" if flags & _EXITING else ""


def main() -> int:
    """Run to the end and write the attempted faults."""
    asked = json.loads(Path(sys.argv[1]).read_text())
    config = load_config(sys.argv[3], sys.argv[4:])
    number = signal.Signals[asked["signal"]] if asked["actor"] else signal.SIGKILL
    run_dir = Path(config.runs_dir) / config.name
    saboteur = Saboteur(run_dir, asked["actor"], number, asked["stop_s"])
    code = train(config, saboteur).exit_code
    found: dict[str, Json] = {
        "hits": [asdict(hit) for hit in saboteur.hits],
        "finished": saboteur.pace.finished,
        "phases": {name: statistics.median(times) for name, times in saboteur.pace.phases.items()},
    }
    write_json_atomic(Path(asked["out"]), found)
    return code


if __name__ == "__main__":
    sys.exit(main())
