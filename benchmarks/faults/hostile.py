"""Does a run survive the reward functions of `hostile_scorers`? All of them at once, beside a normal one.

    python -m benchmarks.faults.hostile --out docs/results/durability/hostile.json

Trains 3 steps of 4 groups x 4 completions with the real command and prints, per scorer, the status of each of
its 48 scores, the time of the steps beside the bound that the limits set, and processes that are left over.
"""

from __future__ import annotations

import argparse
import collections
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rollouts.store import committed_steps, read_step

STEPS, GROUPS, SAMPLES, LIMIT_S, RESTART_S = 3, 4, 4, 0.5, 2.0
HERE = "benchmarks.faults.hostile_scorers"
PER_SAMPLE = ("catastrophic_regex", "ignores_sigterm", "leaves_children", "not_a_number")
EXPECTED = {
    **{name: {"timeout": STEPS * GROUPS * SAMPLES} for name in PER_SAMPLE[:3]},
    "not_a_number": {"invalid": STEPS * GROUPS * SAMPLES},
    "wrong_length": {"invalid": STEPS * GROUPS * SAMPLES},
    "correct": {"ok": STEPS * GROUPS * SAMPLES},
}


def main() -> int:
    """Run, count, print; 0 if everything was as expected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        found = run(Path(folder))
    for name, value in found.items():
        print(f"{name}: {value}")
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if found["as_expected"] else 1


def run(folder: Path) -> dict[str, object]:
    """Run the command once; returns what it left behind."""
    began = time.monotonic()
    done = subprocess.run(command(folder), capture_output=True, text=True, timeout=900, check=False)
    wall_s = time.monotonic() - began
    # Processes of a scorer may take a moment to end after their driver.
    time.sleep(3.0)
    run_dir = folder / "hostile"
    statuses: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for step in committed_steps(run_dir):
        for row in read_step(run_dir, step, ["score_status"]).column("score_status").to_pylist():
            for name, status in row:
                statuses[name][status] += 1
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    # Scorers work side by side, their samples one after the other, each with a fresh process after a kill.
    bound_s = GROUPS * SAMPLES * (LIMIT_S + RESTART_S)
    scoring = [round(line["time/score_s"], 2) for line in lines]
    left = leftovers(str(folder))
    counted = {name: dict(counter) for name, counter in sorted(statuses.items())}
    counted.pop("format", None)
    return {
        "exit_code": done.returncode,
        "steps": len(lines),
        "statuses": counted,
        "scoring_s_per_step": scoring,
        "bound_s": bound_s,
        "wall_s": round(wall_s, 1),
        "processes_left": left,
        "as_expected": done.returncode == 0
        and len(lines) == STEPS
        and counted == EXPECTED
        and max(scoring) <= bound_s
        and not left,
    }


def command(folder: Path) -> list[str]:
    """The training command with all hostile scorers, none of which enters the reward."""
    scorers = [
        f"scorers.{name}={{kind: custom, function: '{HERE}:{name}', weight: 0, limit_s: {LIMIT_S}}}"
        for name in PER_SAMPLE
    ]
    scorers.append(f"scorers.wrong_length={{kind: '{HERE}:wrong_length', weight: 0}}")
    settings = [
        "name=hostile",
        f"runs_dir={folder}",
        f"num_steps={STEPS}",
        "eval.every=0",
        f"rollout.groups_per_step={GROUPS}",
        f"rollout.group_size={SAMPLES}",
        "allow=[benchmarks]",
        "checkpoint.export_last=false",
    ]
    return [sys.executable, "-m", "polyphony", "train", "configs/debug.yaml", *settings, *scorers]


def leftovers(mark: str) -> list[str]:
    """Command lines of processes that name `mark` or are a hostile scorer's child."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if mark in text or "polyphony-hostile-child" in text:
            found.append(text[:120])
    return found


if __name__ == "__main__":
    sys.exit(main())
