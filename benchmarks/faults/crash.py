"""kill -9 of the driver at every step and inside every sequence of writes; then the same command to the end.

    python -m benchmarks.faults.crash --out docs/results/durability/crash [--only lag0] [--table]

Cases, each compared with an undisturbed run:
    lag0/...    the real command on Ray, killed when a step is committed or while the next one is sampled
    lag1/...    the same at max_lag 1 under both schedules: what was durable must come back as it was
    calls/...   all actors in the driver's process, killed before, within or after each call that changes the
                run's folder, in every sequence of writes
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.faults.common import (
    GROUPS,
    Driver,
    Records,
    actor_pids,
    arguments_of,
    end_marked,
    equality,
    event_counts,
    fingerprint,
    lost_and_doubled,
    markdown,
    rows_hash,
    settings,
    wait_until,
    workshop,
)
from benchmarks.faults.crash_calls import call_cases
from rollouts.columns import GROUP_SCHEMA
from rollouts.files import Json
from rollouts.journal import CorruptJournalError, Journal
from rollouts.store import committed_steps, read_step

STEPS: Final = 12
NAME: Final = "crash"
POINTS: Final = ("committed", "sampling")
SCHEDULES: Final = ("take_turns", "overlap")
_REACH_S: Final = 240.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the missing cases; 1 if a case failed."""
    arguments = arguments_of(__doc__, "crash").parse_args(argv)
    records = Records(arguments.out, arguments.only)
    if arguments.table:
        print(table(records.all()))
        return 0
    step_cases(records)
    call_cases(records, NAME, STEPS)
    print(table(records.all()))
    return 1 if records.failed else 0


# -- at every step -------------------------------------------------------------------------------------------


def step_cases(records: Records) -> None:
    """Every case on Ray."""
    lag0: dict[str, tuple[int, str, tuple[str, ...]]] = {
        f"lag0/step-{k:02d}/{point}": (k, point, ()) for k in range(1, STEPS + 1) for point in POINTS
    }
    lag0 |= {f"lag0/no checkpoint/step-{k:02d}": (k, "sampling", ("checkpoint.every=0",)) for k in (2, 11)}
    lag0 |= {f"lag0/each checkpoint/step-{k:02d}": (k, "committed", ("checkpoint.every=1",)) for k in (3, 12)}
    if any(records.wants(case) for case in lag0):
        with workshop() as (folder, mark):
            baseline = undisturbed(folder, mark)
            for case, (step, point, more) in lag0.items():
                records.do(case, partial(crash_at_step, step, point, more, baseline))
    for schedule in SCHEDULES:
        more = ("rollout.max_lag=1", f"cluster.schedule={schedule}")
        for k in range(1, STEPS + 1):
            point = POINTS[k % 2]
            records.do(f"lag1/{schedule}/step-{k:02d}/{point}", partial(crash_at_step, k, point, more, None))


def undisturbed(folder: Path, mark: str) -> dict[str, str]:
    """The fingerprint of an undisturbed run."""
    driver = Driver(settings(folder, NAME, STEPS), folder / "baseline.log", mark)
    code = driver.wait()
    end_marked(mark)
    if code:
        raise RuntimeError(
            f"the undisturbed run ended with {code}: {(folder / 'baseline.log').read_text()[-800:]}"
        )
    return fingerprint(folder / NAME)


def crash_at_step(
    step: int, point: str, more: Sequence[str], baseline: Mapping[str, str] | None
) -> dict[str, Json]:
    """Kill a run at a step, then run it to its end. At lag 1 there is no baseline: what was durable stays."""
    with workshop() as (folder, mark):
        run_dir, log = folder / NAME, folder / "driver.log"
        arguments = settings(folder, NAME, STEPS, *more)
        driver = Driver(arguments, log, mark)
        reached = wait_until(lambda: at_point(run_dir, step, point), _REACH_S, 0.001)
        killed = driver.kill()
        began, before = time.monotonic(), None
        if baseline is None:
            wait_until(lambda: not actor_pids(run_dir), 60.0)  # what the orphans still write is durable too
            orphans_s = round(time.monotonic() - began, 1)
            before = durable(run_dir)
        finished = committed_steps(run_dir)
        code = Driver(arguments, log, mark).wait()
        left = end_marked(mark)
        found = outcome(run_dir, STEPS, code, baseline)
        found |= {"killed": reached and killed, "steps_before": len(finished), "processes_left": left}
        if before is not None:
            after = durable(run_dir)
            found |= {
                "orphans_s": orphans_s,
                "groups_durable": len(before[0]),
                "groups_changed": sum(after[0].get(index) != digest for index, digest in before[0].items()),
                "steps_changed": sum(after[1].get(number) != digest for number, digest in before[1].items()),
            }
        found["ok"] = bool(
            found["ok"]
            and found["killed"]
            and not left
            and not found.get("groups_changed")
            and not found.get("steps_changed")
        )
        return found | ({} if found["ok"] else {"said": log.read_text()[-1500:]})


def at_point(run_dir: Path, step: int, point: str) -> bool:
    """Whether step `step` is committed, or (sampling) some of its groups are durable."""
    if point == "committed":
        return (run_dir / "rollouts" / f"step={step:06d}").exists()
    return any(
        (run_dir / "journal" / f"{(step - 1) * GROUPS + k:012d}.arrow").exists() for k in range(GROUPS)
    )


def outcome(run_dir: Path, num_steps: int, code: int, baseline: Mapping[str, str] | None) -> dict[str, Json]:
    """How a run ended: exit code, lost and duplicate samples, equality with the baseline."""
    if code:
        return {"ok": False, "exit_code": code}
    lost, doubled = lost_and_doubled(run_dir, num_steps)
    equal = equality(run_dir, baseline) if baseline is not None else {}
    whole = committed_steps(run_dir) == list(range(1, num_steps + 1))
    return {
        "ok": whole and not lost and not doubled and all(equal.values()),
        "exit_code": code,
        "lost": lost,
        "doubled": doubled,
        "equal": equal,
        "events": event_counts(run_dir),
    }


def durable(run_dir: Path) -> tuple[dict[int, str], dict[int, str]]:
    """(submission index -> hash of its sampled rows, step -> hash of all its rows) of what is on disk."""
    groups: dict[int, str] = {}
    steps: dict[int, str] = {}
    tables = []
    for step in committed_steps(run_dir):
        rows = read_step(run_dir, step)
        steps[step] = rows_hash(rows)
        tables.append(rows.select(GROUP_SCHEMA.names))
    journal = Journal(run_dir / "journal")
    for index in journal.indexes():
        try:
            tables.append(pa.Table.from_batches([journal.read(index)]).select(GROUP_SCHEMA.names))
        except CorruptJournalError:
            continue
    for rows in tables:
        for index in rows.column("submission_index").unique().to_pylist():
            mine = rows.filter(pc.equal(rows.column("submission_index"), index))
            groups[index] = rows_hash(mine)
    return groups, steps


# -- what is there -------------------------------------------------------------------------------------------


def table(cases: Sequence[Mapping[str, Json]]) -> str:
    """Cases by kind: number, number without a fault, lost and duplicate samples, and what differed."""
    kinds: dict[str, list[Mapping[str, Json]]] = {}
    for case in cases:
        kind = "/".join(str(case["case"]).split("/")[:2])
        kinds.setdefault("lag0/at a step" if kind.startswith("lag0/step") else kind, []).append(case)
    rows = []
    for kind, mine in kinds.items():
        differs = sorted({str(k) for each in mine for k, same in _equal(each).items() if not same})
        good = sum(each.get("ok") is True for each in mine)
        lost, doubled = (sum(int(str(each.get(name, 0))) for each in mine) for name in ("lost", "doubled"))
        rows.append([kind, f"{good} of {len(mine)}", lost, doubled, ", ".join(differs) or "-"])
    return markdown(["killed", "as they must be", "samples lost", "doubled", "differs"], rows)


def _equal(case: Mapping[str, Json]) -> Mapping[str, Json]:
    equal = case.get("equal", {})
    return equal if isinstance(equal, Mapping) else {}


if __name__ == "__main__":
    sys.exit(main())
