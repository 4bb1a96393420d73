"""Kill or stop every kind of actor in every phase of a step: does the run end with the same result?

    python -m benchmarks.faults.matrix --out docs/results/durability/matrix [--only generator] [--table]

{generator, scorer, learner of 1 rank and of 2, buffer} x {idle, generating, scoring, learning, publishing,
committing} x {SIGKILL, SIGSTOP for 20 s and then SIGCONT}, each at least twice: one run per actor, signal and
repetition, with a fault in every phase and quiet steps between. SIGSTOP is repeated under a hang limit of
60 s, within which the actor continues, and under one of 8 s, after which it must be replaced. A fault counts
if it hit during its phase and the run recorded the recovery. At the end weights, metrics, rows and
evaluations must be those of an undisturbed run, bit for bit.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from benchmarks.faults.common import (
    Driver,
    Records,
    arguments_of,
    end_marked,
    equality,
    fingerprint,
    lost_and_doubled,
    markdown,
    read_events,
    settings,
    workshop,
)
from benchmarks.faults.matrix_run import PHASES
from rollouts.files import Json

NAME: Final = "matrix"
STEPS: Final = 36
STOP_S: Final = 20.0
ACTORS: Final = {
    "generator": ("generator-0", ()),
    "scorer": ("scorer-slow-0", ()),
    "learner": ("learner-0", ()),
    "learner of 2": ("learner-1", ("learner.num_ranks=2",)),
    "buffer": ("buffer", ()),
}
FAULTS: Final = {
    "SIGKILL": ("SIGKILL", 60.0),
    "SIGSTOP, waits": ("SIGSTOP", 60.0),
    "SIGSTOP, replaces": ("SIGSTOP", 8.0),
}
REPETITIONS: Final = {"SIGKILL": 2, "SIGSTOP, waits": 1, "SIGSTOP, replaces": 1}
SCORER: Final = (
    "scorers.slow={kind: 'benchmarks.faults.slow_scorer:linger', weight: 0.5, options: {delay_s: 0.04}}"
)
_LIMIT_S: Final = 1800.0


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is missing; 1 if a case failed."""
    arguments = arguments_of(__doc__, "matrix").parse_args(argv)
    records = Records(arguments.out, arguments.only)
    cases = {
        f"{actor}/{fault}/{number}": (actor, fault)
        for actor in ACTORS
        for fault, times in REPETITIONS.items()
        for number in range(1, times + 1)
    }
    baselines: dict[tuple[str, ...], dict[str, str]] = {}
    for case, (actor, fault) in cases.items() if not arguments.table else ():
        if records.wants(case):
            more = ACTORS[actor][1]
            # An undisturbed run is made once for each number of ranks, and only if a case needs it.
            if more not in baselines:
                baselines[more] = undisturbed(more)
            records.do(case, partial(disturbed, actor, fault, baselines[more]))
    print(table(records.all()))
    return 1 if records.failed else 0


def undisturbed(more: tuple[str, ...]) -> dict[str, str]:
    """The fingerprint of an undisturbed run."""
    with workshop() as (folder, mark):
        code, _ = _drive(folder, mark, "", "SIGKILL", more)
        if code:
            said = (folder / "driver.log").read_text()[-800:]
            raise RuntimeError(f"the undisturbed run ended with {code}: {said}")
        return fingerprint(folder / NAME)


def _drive(
    folder: Path, mark: str, label: str, signal_name: str, more: Sequence[str]
) -> tuple[int, dict[str, Any]]:
    """A run with or without faults: its exit code and the record of `matrix_run`."""
    asked, out = folder / "faults.json", folder / "found.json"
    fault = {"actor": label, "signal": signal_name, "stop_s": STOP_S, "out": str(out)}
    asked.write_text(json.dumps(fault))
    fixed = ("allow=[benchmarks]", SCORER, "eval.every=12")
    arguments = [str(asked), *settings(folder, NAME, STEPS, *fixed, *more)]
    driver = Driver(arguments, folder / "driver.log", mark, module="benchmarks.faults.matrix_run")
    code = driver.wait(_LIMIT_S)
    return code, json.loads(out.read_text()) if out.exists() else {}


def disturbed(actor: str, fault: str, baseline: Mapping[str, str]) -> dict[str, Json]:
    """A run with a fault in every phase, compared with one without."""
    label, own = ACTORS[actor]
    signal_name, hang_s = FAULTS[fault]
    more = (*own, f"cluster.hang_timeout_s={hang_s:g}")
    with workshop() as (folder, mark):
        code, found = _drive(folder, mark, label, signal_name, more)
        left = end_marked(mark)
        result: dict[str, Json] = {"exit_code": code, "processes_left": left, "ok": False}
        if code == 0:
            run_dir = folder / NAME
            lost, doubled = lost_and_doubled(run_dir, STEPS)
            equal = equality(run_dir, baseline)
            hits = [_judged(hit, found, run_dir, fault) for hit in found["hits"]]
            counted = {str(hit["phase"]) for hit in hits if hit["counts"]}
            result |= {"lost": lost, "doubled": doubled, "equal": equal, "faults": hits}
            result |= {"phases": found["phases"], "step_s": _step_s(found)}
            whole = counted == set(PHASES) and not (lost or doubled or left)
            result["ok"] = whole and all(equal.values())
        if not result["ok"]:
            result["said"] = (folder / "driver.log").read_text(errors="replace")[-1500:]
        return result


def _judged(hit: Mapping[str, Any], found: Mapping[str, Any], run_dir: Path, fault: str) -> dict[str, Json]:
    """A fault with what the run recorded about it, and the delay that it caused."""
    later = [other["at"] for other in found["hits"] if other["at"] > hit["at"]]
    until = min(later, default=float("inf"))
    kinds = [
        str(event["kind"])
        for event in read_events(run_dir)
        if hit["at"] <= datetime.fromisoformat(str(event["at"])).timestamp() < until
    ]
    mended = {"actor_replaced", "resumed", "actor_answers"} & set(kinds)
    return {
        **hit,
        "at": round(hit["at"], 3),
        "events": kinds,
        "recovery_s": _recovery_s(hit, found),
        "counts": bool(hit["proven"] and mended),
    }


def _recovery_s(hit: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    """Seconds by which the current step or the next one was late, whichever is more."""
    after = [(step, at) for step, at in found["finished"] if at > hit["at"]]
    late = []
    for k in (1, 2):  # the first time: a later fault may have it trained again
        times = [at for step, at in after if step == hit["finished"] + k]
        late += [times[0] - hit["at"] - k * _step_s(found)] if times else []
    return round(max(late), 2)


def _step_s(found: Mapping[str, Any]) -> float:
    """Median seconds between two finished steps: most of them are quiet."""
    times = [at for _, at in found["finished"]]
    return round(statistics.median(b - a for a, b in pairwise(times)), 3)


def table(cases: Sequence[Mapping[str, Any]]) -> str:
    """By actor and signal: runs, faults that count by phase, samples, recovery."""
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for case in cases:
        actor, fault, _ = str(case["case"]).split("/")
        kinds.setdefault((actor, fault), []).append(case)
    rows = []
    for (actor, fault), mine in sorted(kinds.items()):
        faults = [hit for case in mine for hit in case.get("faults", ()) if hit["counts"]]
        times = [hit["recovery_s"] for hit in faults if hit["recovery_s"] is not None]
        differs = sorted({name for case in mine for name, same in case.get("equal", {}).items() if not same})
        rows.append(
            [
                actor,
                fault,
                f"{sum(case['exit_code'] == 0 for case in mine)} of {len(mine)}",
                ", ".join(f"{p} {sum(hit['phase'] == p for hit in faults)}" for p in PHASES),
                ", ".join(str(sum(case.get(name, 0) for case in mine)) for name in ("lost", "doubled")),
                f"{statistics.median(times):.1f}, {max(times):.1f}" if times else "-",
                ", ".join(differs) or "nothing",
            ]
        )
    header = ["actor", "fault", "runs completed", "faults proven and mended"]
    header += ["samples lost, doubled", "recovery s, median and worst", "differs from undisturbed"]
    return markdown(header, rows)


if __name__ == "__main__":
    sys.exit(main())
