"""A long run in which a process is killed every minute: does it lose samples or leak resources?

    python -m benchmarks.faults.soak --out docs/results/durability/soak --minutes 60 --kill-every 60

A stretch without faults comes first (`--quiet-minutes`), then every `--kill-every` seconds a random actor,
and every fifth time the driver, gets SIGKILL; a killed driver is started again by the same command. Every ten
seconds a line of samples.jsonl records memory, files and threads of each process. summary.json is written at
the end from that file and the run; `--table` prints it. The run itself stays in a temporary folder.

Memory: the slope of resident memory over time per kind of process with its 95 % interval. In the quiet
stretch time is also the process's age. Among kills no process lives long, so there resident memory is fitted
on age and on time together, and the slope over time shows whether later processes are larger than earlier
ones.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.faults.common import (
    Driver,
    actor_pids,
    arguments_of,
    event_counts,
    lost_and_doubled,
    markdown,
    marked,
    ray_folder,
    settings,
    wait_until,
)
from rollouts.files import append_line, write_json_atomic
from rollouts.store import committed_steps, read_summary

EVERY_S: Final = 10.0
YOUNG_S: Final = 60.0
"""The first minute of a process is start-up, in which allocators fill: it says nothing about leaks."""
DRIVER_TURN: Final = 5
_SEED: Final = 7


def main() -> int:
    """Run, or print what a finished one found."""
    parser = arguments_of(__doc__, "soak")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--quiet-minutes", type=float, default=10.0)
    parser.add_argument("--kill-every", type=float, default=60.0)
    asked = parser.parse_args()
    summary = asked.out / "summary.json"
    if not asked.table and not summary.exists():
        asked.out.mkdir(parents=True, exist_ok=True)
        Soak(asked.out, asked.minutes * 60, asked.quiet_minutes * 60, asked.kill_every).work()
    print(table(json.loads(summary.read_text())))
    return 0


class Soak:
    """One soak test: the running driver and the faults injected so far."""

    def __init__(self, out: Path, total_s: float, quiet_s: float, kill_every_s: float) -> None:
        self._out, self._total_s, self._quiet_s, self._kill_every_s = out, total_s, quiet_s, kill_every_s
        self._mark = f"soak{os.getpid()}"
        self._folder = Path(f"/tmp/{self._mark}")
        self._run_dir = self._folder / "soak"
        self._chance = random.Random(_SEED)
        self._faults: list[dict[str, Any]] = []
        self._began = time.monotonic()

    def work(self) -> None:
        """Start, sample and kill until the time is up; stop in order; write the summary."""
        (self._out / "samples.jsonl").unlink(missing_ok=True)
        driver = self._start()
        # No kill at the very start: a run that has no step yet shows only that it starts.
        next_sample, next_kill = 0.0, max(self._quiet_s, self._kill_every_s)
        while (now := time.monotonic() - self._began) < self._total_s:
            if driver.process.poll() is not None:
                self._faults.append({"at_s": now, "victim": "driver", "ended": driver.process.returncode})
                driver = self._start()
            if now >= next_sample:
                self._sample(now, driver)
                # From the planned time and not from now, so that delays do not add up.
                next_sample += EVERY_S
            if now >= next_kill:
                self._kill(now, driver)
                next_kill += self._kill_every_s
            time.sleep(0.2)
        driver.process.send_signal(signal.SIGTERM)
        code = driver.wait(300.0)
        wait_until(lambda: not marked(self._mark), 30.0, 0.5)
        left = [
            Path(f"/proc/{pid}/cmdline").read_bytes()[:80].decode(errors="replace")
            for pid in marked(self._mark)
        ]
        self._summarise(code, left)
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.rmtree(ray_folder(self._mark), ignore_errors=True)

    def _start(self) -> Driver:
        more = ("eval.every=0", "checkpoint.every=10", "num_steps=1000000", "cluster.max_restarts=10")
        arguments = settings(self._folder, "soak", 1, *more)
        return Driver(arguments, self._out / "driver.log", self._mark)

    def _kill(self, now: float, driver: Driver) -> None:
        pids = actor_pids(self._run_dir)
        # In turn and not by chance: the driver is one of many processes, but the costliest to lose.
        is_drivers_turn = (len(self._faults) + 1) % DRIVER_TURN == 0
        fault: dict[str, Any] = {"at_s": round(now, 1), "steps": len(committed_steps(self._run_dir))}
        if is_drivers_turn or not pids:
            fault |= {"victim": "driver", "hit": driver.kill()}
        else:
            victim = self._chance.choice(sorted(pids))
            os.kill(pids[victim], signal.SIGKILL)
            fault |= {"victim": victim, "hit": True}
        self._faults.append(fault)
        print(fault, flush=True)

    def _sample(self, now: float, driver: Driver) -> None:
        pids = {"driver": driver.process.pid, **actor_pids(self._run_dir)}
        line: dict[str, Any] = {
            "at_s": round(now, 1),
            "steps": len(committed_steps(self._run_dir)),
            "run_bytes": folder_bytes(self._run_dir),
            "shm_bytes": shutil.disk_usage("/dev/shm").used,
            "processes": {},
        }
        for label, pid in pids.items():
            # A process may end between the listing and the reading.
            with suppress(OSError, ProcessLookupError, IndexError):
                line["processes"][label] = {"pid": pid, **holdings(pid)}
        append_line(self._out / "samples.jsonl", json.dumps(line))

    def _summarise(self, code: int, left: Sequence[str]) -> None:
        lines = [json.loads(text) for text in (self._out / "samples.jsonl").read_text().splitlines()]
        steps = committed_steps(self._run_dir)
        lost, doubled = lost_and_doubled(self._run_dir, len(steps))
        num_rows = sum(int(str(read_summary(self._run_dir, step)["num_rows"])) for step in steps)
        per_sample = folder_bytes(self._run_dir / "rollouts") / max(1, num_rows)
        write_json_atomic(
            self._out / "summary.json",
            {
                "minutes": self._total_s / 60,
                "quiet_minutes": self._quiet_s / 60,
                "kill_every_s": self._kill_every_s,
                "exit_code_after_sigterm": code,
                "processes_left": list(left),
                "steps": len(steps),
                "steps_contiguous": steps == list(range(1, len(steps) + 1)),
                "samples": num_rows,
                "samples_lost": lost,
                "samples_doubled": doubled,
                "faults": self._faults,
                "events": event_counts(self._run_dir),
                "rollout_bytes_per_sample": round(per_sample, 1),
                "shm_bytes_first_last": [lines[0]["shm_bytes"], lines[-1]["shm_bytes"]],
                "kinds": kinds(lines, self._quiet_s),
            },
        )


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size
    return total


def holdings(pid: int) -> dict[str, float]:
    """Resident bytes, open files, threads and age in seconds of a process."""
    # After the last parenthesis: the name of the program may contain spaces and parentheses.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    up_s = float(Path("/proc/uptime").read_text().split()[0])
    return {
        "rss": int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        "fds": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(fields[17]),
        "age_s": round(up_s - int(fields[19]) / os.sysconf("SC_CLK_TCK"), 1),
    }


def kinds(lines: Sequence[Mapping[str, Any]], quiet_s: float) -> dict[str, Any]:
    """Per kind of process: memory slopes with intervals, and the spread of open files and threads."""
    seen: dict[str, list[tuple[float, Mapping[str, float]]]] = defaultdict(list)
    for line in lines:
        for label, held in line["processes"].items():
            if held["age_s"] >= YOUNG_S / 2:
                seen[label].append((line["at_s"], held))
    found = {}
    for label, points in sorted(seen.items()):
        quiet = [(at, held) for at, held in points if at < quiet_s and held["age_s"] >= YOUNG_S]
        later = [(at, held) for at, held in points if at >= quiet_s]
        found[label] = {
            "rss_mb_median": round(float(np.median([held["rss"] for _, held in points])) / 2**20, 1),
            "quiet_mb_per_hour": slope([at for at, _ in quiet], [held["rss"] for _, held in quiet]),
            "kills_mb_per_hour": slope(
                [at for at, _ in later],
                [held["rss"] for _, held in later],
                [held["age_s"] for _, held in later],
            ),
            "fds": [min(held["fds"] for _, held in points), max(held["fds"] for _, held in points)],
            "threads": [min(h["threads"] for _, h in points), max(h["threads"] for _, h in points)],
        }
    return found


def slope(
    at_s: Sequence[float], rss: Sequence[float], age_s: Sequence[float] | None = None
) -> list[float] | None:
    """[MiB per hour, half the 95 % interval] by least squares; with ages, beside log age. None if too few.

    The factor is Student's, to within 1 % for the numbers of samples here.
    """
    columns = [np.ones(len(at_s)), np.asarray(at_s) / 3600]
    if age_s is not None:
        # Memory grows fast when a process is young and then ever more slowly.
        columns.append(np.log(np.maximum(age_s, 1.0)))
    design, values = np.stack(columns, axis=1), np.asarray(rss) / 2**20
    freedom = len(values) - design.shape[1]
    if freedom < 5 or np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    found, *_ = np.linalg.lstsq(design, values, rcond=None)
    variance = ((values - design @ found) ** 2).sum() / freedom
    error = float(np.sqrt(variance * np.linalg.inv(design.T @ design)[1, 1]))
    return [round(float(found[1]), 2), round(error * (1.96 + 2.4 / freedom), 2)]


def table(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown."""
    hits = [fault for fault in summary["faults"] if fault.get("hit")]
    head = (
        f"{summary['minutes']:g} minutes, the first {summary['quiet_minutes']:g} quiet, then a kill every "
        f"{summary['kill_every_s']:g} s: {len(hits)} kills, {summary['steps']} steps "
        f"(contiguous: {summary['steps_contiguous']}), {summary['samples']} samples, "
        f"{summary['samples_lost']} lost, {summary['samples_doubled']} doubled; exit code "
        f"{summary['exit_code_after_sigterm']} after SIGTERM, {len(summary['processes_left'])} processes "
        "left; "
        f"{summary['rollout_bytes_per_sample']:g} bytes of rollouts per sample.\n\n"
    )

    def shown(pair: Sequence[float] | None) -> str:
        return "-" if pair is None else f"{pair[0]:+.1f} +- {pair[1]:.1f}"

    rows = [
        [
            label,
            kind["rss_mb_median"],
            shown(kind["quiet_mb_per_hour"]),
            shown(kind["kills_mb_per_hour"]),
            "-".join(map(str, kind["fds"])),
            "-".join(map(str, kind["threads"])),
        ]
        for label, kind in summary["kinds"].items()
    ]
    header = ["process", "RSS MiB", "MiB/h quiet", "MiB/h among kills", "open files", "threads"]
    return head + markdown(header, rows)


if __name__ == "__main__":
    sys.exit(main())
