"""Score hostile answers as a run does, and watch the machine. In: families. Out: a `Trial` per answer."""

from __future__ import annotations

import asyncio
import glob
import json
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from actors.requests import CallStuckError
from actors.scorer import CANCEL_S, ScorerActor
from benchmarks.hostile.answers import answers
from benchmarks.hostile.bait import VARIABLE, Bait
from benchmarks.hostile.programs import Case, programs
from configs.kinds.scorers import SCORERS
from rewards.code.inside_files import HARNESS, PREFIX
from rollouts.records import Completion

CODE_OPTIONS: Final[Mapping[str, Any]] = {
    "wall_s": 2.0,
    "total_s": 4.0,
    "cpu_s": 1.0,
    "memory_mb": 256,
    "files_mb": 8,
    "bare": False,
}
NUM_WORKERS: Final = 2
_SETTLE_S: Final = 6.0


@dataclass(slots=True)
class Trial:
    """What became of one answer."""

    family: str
    name: str
    score: float | None
    status: str
    outcome: str
    wall_s: float
    limit_s: float
    may_be_missing: bool
    breaches: list[str] = field(default_factory=list)

    def problem(self) -> str:
        """What went wrong, in words; "" if nothing did."""
        found = list(self.breaches)
        if self.score is not None and self.score > 0.5:
            found.append(f"score {self.score:g}")
        if self.is_stuck():
            found.append(f"stuck for {self.wall_s:.1f} s")
        if self.is_missing() and not self.may_be_missing:
            found.append(f"no score ({self.outcome})")
        return ", ".join(found)

    def is_stuck(self) -> bool:
        """Whether the scorer did not answer within its limit and what a cancelled call may take."""
        return self.status == "stuck" or self.wall_s > self.limit_s + CANCEL_S

    def is_missing(self) -> bool:
        """Whether it has no score."""
        return self.score is None

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "wall_s": round(self.wall_s, 3), "problem": self.problem()}


class Scorers:
    """One scorer for each kind and options, as many workers of the scorer `code` as are used at a time."""

    def __init__(self, options: Mapping[str, Any], num_workers: int) -> None:
        self.num_workers = num_workers
        self._code = [ScorerActor("code", dict(options)) for _ in range(num_workers)]
        self._others: dict[str, ScorerActor] = {}
        self._lock = threading.Lock()

    def of(self, case: Case, worker: int) -> ScorerActor:
        """The scorer of a case, for worker number `worker`."""
        if case.scorer == "code":
            return self._code[worker]
        key = json.dumps([case.scorer, case.options], sort_keys=True)
        with self._lock:
            if key not in self._others:
                self._others[key] = ScorerActor(case.scorer, dict(case.options))
            return self._others[key]

    def close(self) -> None:
        """End their processes."""
        for actor in (*self._code, *self._others.values()):
            actor.close()


def run_cases(
    families: Sequence[str],
    options: Mapping[str, Any],
    *,
    every: int = 1,
    answers_too: bool = True,
    num_workers: int = NUM_WORKERS,
) -> list[Trial]:
    """Score every `every`-th program of `families` with `options` of `code`, and answers to rule scorers.

    `num_workers` are at work at a time.
    """
    # New in each run, so that a program cannot know it and a leftover of another run does not count.
    token = str(secrets.randbelow(9 * 10**11) + 10**11)
    os.environ[VARIABLE] = token
    with (
        tempfile.TemporaryDirectory(prefix="polyphony-hostile-") as folder,
        Bait(Path(folder), token) as bait,
    ):
        scorers = Scorers(options, num_workers)
        trials: list[Trial] = []
        try:
            for family in families:
                cases = list(programs([family], token, _places(bait), options))[::every]
                trials += _run_family(cases, scorers, bait)
            if answers_too:
                for cases in _grouped(answers(options)):
                    trials += _run_family(cases[::every], scorers, bait)
        finally:
            scorers.close()
        return trials


def _places(bait: Bait) -> dict[str, str]:
    """What stands for @NAME@ in the snippets."""
    return {
        "SECRET": str(bait.secret),
        "OUT": str(bait.out),
        "HOME": os.path.expanduser("~"),
        "HARNESS": str(HARNESS),
        "VARIABLE": VARIABLE,
        "PORT": str(bait.port),
        "PID": str(os.getpid()),
        "WORKER": str(next(iter(_workers()), os.getpid())),
    }


def _grouped(cases: Iterator[Case]) -> Iterator[list[Case]]:
    families: dict[str, list[Case]] = {}
    for case in cases:
        families.setdefault(case.family, []).append(case)
    yield from families.values()


def _run_family(cases: Sequence[Case], scorers: Scorers, bait: Bait) -> list[Trial]:
    """The trials of one family; what is found on the machine afterwards is charged to its last one."""
    # By family and not by answer: a look at all processes takes longer than most answers.
    workers, changed, before = set(_workers()), bait.state(), {pid for pid, _ in _processes()}
    with ThreadPoolExecutor(scorers.num_workers) as threads:
        shares = [cases[number :: scorers.num_workers] for number in range(scorers.num_workers)]
        done = threads.map(lambda each: [_run(case, scorers, each[0]) for case in each[1]], enumerate(shares))
        trials = [trial for share in done for trial in share]
    if trials:
        trials[-1].breaches += bait.changes(changed)
        if left := _left_processes(before):
            trials[-1].breaches.append(f"processes left: {left}")
        if any(case.scorer == "code" for case in cases) and (gone := workers - set(_workers())):
            trials[-1].breaches.append(f"scoring processes killed: {sorted(gone)}")
        for pid in workers:
            if folders := glob.glob(os.path.join(tempfile.gettempdir(), f"{PREFIX}{pid}-*")):
                trials[-1].breaches.append(f"folders left: {folders}")
    return trials


def _run(case: Case, scorers: Scorers, worker: int) -> Trial:
    kind = SCORERS[case.scorer]
    per_sample = kind.options(**case.options).limit_s if kind.isolated else 20.0  # type: ignore[attr-defined]
    limit_s = per_sample + 5.0  # the time to replace a killed process
    completion = Completion(
        sample_id=case.name,
        seed=0,
        token_ids=(1,),
        text=case.text,
        finish_reason="stop",
        behavior_logprobs=(0.0,),
        versions=((0, 0),),
    )
    actor, started = scorers.of(case, worker), time.monotonic()
    try:
        (found,) = asyncio.run(actor.score(case.prompt, [completion], limit_s))
    except CallStuckError:
        wall_s = time.monotonic() - started
        return Trial(case.family, case.name, None, "stuck", "", wall_s, limit_s, case.may_be_missing)
    outcome = found.tags.get("code", "") if found.score is not None else f"{found.status}: {found.detail}"
    wall_s = time.monotonic() - started
    return Trial(
        case.family, case.name, found.score, found.status, outcome, wall_s, limit_s, case.may_be_missing
    )


def _workers() -> list[int]:
    """The processes that score, among the children of this one."""
    return sorted(
        pid
        for pid, command in _processes()
        if "actors.sandbox_worker" in command and _status(pid, "PPid") == [str(os.getpid())]
    )


def _left_processes(before: Collection[int]) -> list[str]:
    """New processes of sandboxes that are there all the time for a while: others are those of another run."""
    deadline = time.monotonic() + _SETTLE_S
    left = {
        pid: command[:60]
        for pid, command in _processes()
        if pid not in before and _is_of_a_sandbox(pid, command)
    }
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = {pid: left[pid] for pid, _ in _processes() if pid in left}
    return [f"{pid} {command}" for pid, command in left.items()]


def _is_of_a_sandbox(pid: int, command: str) -> bool:
    scripts = any(script in command for script in ("program.py", "serve.py", "check.py"))
    # A process with several ids lives in a namespace of its own.
    return scripts or len(_status(pid, "NSpid")) > 1


def _status(pid: int, name: str) -> list[str]:
    """The words of an entry of a process's status; none if it has ended."""
    try:
        status = Path("/proc", str(pid), "status").read_text(encoding="utf-8")
    except OSError:
        return []
    return status.partition(f"{name}:")[2].split("\n")[0].split()


def _processes() -> Iterator[tuple[int, str]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield int(path.parent.name), path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
