"""How far runs narrowed: first and last steps of each run directory side by side, as a Markdown table.

    python -m benchmarks.narrowing runs/debug-1 runs/debug-random ...

Per run: mean reward, share of the format that led at the end, entropies, and KL to the base, over the first
and the last 5 steps, and the part of the other formats' share that was lost.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

Metrics = list[dict[str, float]]


def read_metrics(run: Path) -> Metrics:
    """The run's metrics, one dict per step."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def mean_of(steps: Metrics, name: str) -> float:
    """Mean over steps; a metric that is absent counts as 0 if it is a share (the format was not seen)."""
    absent = 0.0 if name.startswith("format/share/") else float("nan")
    return float(np.mean([step.get(name, absent) for step in steps]))


def leading_format(steps: Metrics) -> str:
    """The format with the largest share."""
    names = {name for step in steps for name in step if name.startswith("format/share/") and "@" not in name}
    return max(names, key=lambda name: mean_of(steps, name))


def row(run: Path, window: int) -> str:
    """One line of the table."""
    metrics = read_metrics(run)
    first, last = metrics[:window], metrics[-window:]
    leader = leading_format(last)
    before, after = mean_of(first, leader), mean_of(last, leader)
    cells = [
        f"{mean_of(first, 'reward/mean'):.3f} → {mean_of(last, 'reward/mean'):.3f}",
        f"{leader.rpartition('/')[2]} {before:.2f} → {after:.2f}",
        f"{(after - before) / (1 - before):.0%}",
    ]
    cells += [
        f"{mean_of(first, name):.3f} → {mean_of(last, name):.3f}"
        for name in ("entropy/token_mean", "entropy/format", "kl/k3_policy_vs_base")
    ]
    step_s = float(np.median([step["time/step_s"] for step in metrics[3:] or metrics]))
    return f"| {run.name} | {len(metrics)} | " + " | ".join(cells) + f" | {step_s:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--window", type=int, default=5, help="steps at each end")
    arguments = parser.parse_args()
    print(
        "| run | steps | reward | leading format | others lost "
        "| token entropy | format entropy | KL to base | s/step |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for run in arguments.runs:
        print(row(run, arguments.window))


if __name__ == "__main__":
    main()
