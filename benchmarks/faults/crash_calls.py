"""The cases of `benchmarks.faults.crash` that end a driver at each call that changes its run's folder.

A first run lists the calls of every sequence. Then the driver is ended at each of them, from a copy of a run
that is shortly before it: before the call, after it if it is the last of its sequence, and in the middle of a
write.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.faults.common import Records, equality, fingerprint, lost_and_doubled, settings, workshop
from benchmarks.faults.stops import Stop
from benchmarks.faults.warm import Warm
from rollouts.files import Json

_PLACES: Final = {"start": "", "after-4": "journal@16", "after-6": "journal@24", "after-8": "journal@32"}
"""The state of a run before the fault: at its start, or killed as it was about to journal a group."""
_SEQUENCES: Final = {
    "start": ("claim", "config", "eval@0"),
    "after-4": ("journal@22", "commit@6", "log@6", "eval@6", "checkpoint@8"),
    "after-6": ("claim", "config", "rewind@4", "rebuild@4"),
    "after-8": ("checkpoint@12", "export"),
}


@dataclass(frozen=True, slots=True)
class _Bench:
    """The forking process, a folder, and the runs to start from."""

    warm: Warm
    folder: Path
    name: str
    num_steps: int

    def run(self, runs_dir: Path, stop: Stop | None = None, calls: str = "") -> int:
        """The command on `runs_dir`."""
        arguments = settings(runs_dir, self.name, self.num_steps)
        return self.warm.run(arguments, runs_dir / self.name, runs_dir / "driver.log", stop, calls)

    def copy(self, place: str, target: Path) -> None:
        """A run that is at `place`, in `target`, which must not exist."""
        source = self.folder / place
        if place == "start":
            target.mkdir()
            return
        if not source.exists():
            source.mkdir()
            code = self.run(source, Stop(sequence=_PLACES[place], number=0, when="before"))
            if code != -9:
                raise RuntimeError(f"must be killed at {_PLACES[place]}, ended with {code}: {_said(source)}")
        shutil.copytree(source, target)


def call_cases(records: Records, name: str, num_steps: int) -> None:
    """Run all missing cases; nothing is started if there are none."""
    listing = records.folder / "calls-listed" / "calls.json"
    if listing.exists() and not any(records.wants(case) for case in _cases(json.loads(listing.read_text()))):
        return
    if records.only and not records.only.startswith("calls"):
        return
    with workshop() as (folder, _), Warm() as warm:
        bench = _Bench(warm, folder, name, num_steps)
        (folder / "baseline").mkdir()
        if code := bench.run(folder / "baseline"):
            raise RuntimeError(f"the undisturbed run ended with {code}: {_said(folder / 'baseline')}")
        baseline = fingerprint(folder / "baseline" / name)
        # the learner draws nothing, and in one process what it keeps is the state that the engine draws from
        del baseline["learner_random"]
        calls = {place: _listed(bench, place) for place in _PLACES}
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text(json.dumps(calls, indent=1) + "\n")
        for case, (place, stop) in _cases(calls).items():
            records.do(case, partial(_crash_at_call, bench, place, stop, baseline))


def _listed(bench: _Bench, place: str) -> dict[str, list[str]]:
    """The calls of each sequence in a run that resumes from `place`."""
    runs_dir, calls = bench.folder / f"list-{place}", bench.folder / f"{place}.json"
    bench.copy(place, runs_dir)
    if code := bench.run(runs_dir, None, str(calls)):
        raise RuntimeError(f"going on from {place} ended with {code}: {_said(runs_dir)}")
    shutil.rmtree(runs_dir)
    listed = json.loads(calls.read_text())
    return {sequence: listed[sequence] for sequence in _SEQUENCES[place]}


def _cases(calls: Mapping[str, Mapping[str, list[str]]]) -> dict[str, tuple[str, Stop]]:
    """Case -> the run it starts from and where it ends."""
    cases = {}
    for place, sequences in calls.items():
        for sequence, listed in sequences.items():
            for number, call in enumerate(listed):
                kind = call.split()[0]
                last = ("after",) if number == len(listed) - 1 else ()
                for when in ("before", *(("torn",) if kind == "write" else ()), *last):
                    case = f"calls/{sequence} {place}/{number:03d}-{kind}-{when}"
                    cases[case] = (place, Stop(sequence=sequence, number=number, when=when))
    return cases


def _crash_at_call(bench: _Bench, place: str, stop: Stop, baseline: Mapping[str, str]) -> dict[str, Json]:
    runs_dir = bench.folder / "case"
    # Each case starts from a copy, so that no case depends on what another left.
    shutil.rmtree(runs_dir, ignore_errors=True)
    bench.copy(place, runs_dir)
    killed = bench.run(runs_dir, stop) == -9
    code = bench.run(runs_dir)
    found: dict[str, Json] = {"killed": killed, "exit_code": code, "ok": False}
    if code == 0:
        lost, doubled = lost_and_doubled(runs_dir / bench.name, bench.num_steps)
        equal = equality(runs_dir / bench.name, baseline)
        whole = killed and not lost and not doubled and all(equal.values())
        found |= {"lost": lost, "doubled": doubled, "equal": equal, "ok": whole}
    return found if found["ok"] else found | {"said": _said(runs_dir)}


def _said(runs_dir: Path) -> str:
    return (runs_dir / "driver.log").read_text(errors="replace")[-1500:]
