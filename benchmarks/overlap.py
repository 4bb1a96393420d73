"""What overlap brings: `python -m benchmarks.overlap OUT.json` times whole runs of each lag and schedule.

Four arms do the same work on the same two cores. The baseline generates and learns in turn with one thread
each (`max_lag=0`, schedule `overlap`: engine and learner pinned to a core of their own); the others let them
work at the same time, and take turns with both cores. Repetitions are interleaved, each ratio is to the
baseline of its own repetition, and steps 1 to 3 are left out.

The work is balanced, as only then there is much to overlap: a fresh model of the size of `debug`'s, which
seldom ends by itself, 24 completions of up to 256 tokens per step, a coin flip as reward, no base logprobs.
With short completions in large batches, as in `debug`, generation takes a fraction of the time of learning,
and overlap gains little. The table has the balance of the two, which should be between 0.7 and 1.3.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.bare import ROOT
from benchmarks.steps import NUM_SKIPPED, read_times
from lab.base_model import ModelShape, make_base
from rollouts.files import write_json_atomic
from viewer.run_data import read_run

NUM_CORES = 2
SHARE_GOAL, RATIO_GOAL = 0.70, 0.85
BALANCE = (0.7, 1.3)
ARMS: Mapping[str, tuple[str, ...]] = {
    "lag 0, one thread each": ("rollout.max_lag=0", "cluster.schedule=overlap"),
    "lag 1, one thread each": ("rollout.max_lag=1", "cluster.schedule=overlap"),
    "lag 0, both cores in turn": ("rollout.max_lag=0", "cluster.schedule=take_turns"),
    "lag 1, both cores in turn": ("rollout.max_lag=1", "cluster.schedule=take_turns"),
}
BASELINE, OVERLAP, *_ = ARMS
SHAPE = ModelShape(num_layers=4, intermediate_size=416, max_length=384)
WORK = (
    "rollout.groups_per_step=3",
    "rollout.group_size=8",
    "rollout.max_tokens=256",
    "learner.base_logprobs=false",
    "eval.every=0",
    "checkpoint.every=0",
    "checkpoint.export_last=false",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One run: medians over its later steps in seconds, and the share of all the learner's busy time during
    which an engine had work."""

    step_s: float
    generate_s: float
    learn_s: float
    tokens: float
    generating_share: float


def read_figures(run_dir: Path) -> Figures:
    """The figures of a run.

    Raises:
        ValueError: the folder is no run, or has no later step with times.
    """
    times = read_times(run_dir)
    halves = zip(times.phases["time/learn_score_s"], times.phases["time/learn_update_s"], strict=True)
    learn = [math.fsum(pair) for pair in halves]
    shares = read_run(run_dir).curve("overlap/generating_share")[NUM_SKIPPED:]
    # Runs that never overlap do not record the share.
    known = [value if math.isfinite(value) else 0.0 for value in shares]
    overlapped = math.fsum(share * seconds for share, seconds in zip(known, learn, strict=True))
    return Figures(
        step_s=statistics.median(times.step),
        generate_s=statistics.median(times.phases["time/generate_s"]),
        learn_s=statistics.median(learn),
        tokens=statistics.median(times.tokens),
        generating_share=overlapped / math.fsum(learn),
    )


def train(arm: str, repetition: int, folder: Path, num_steps: int) -> Figures:
    """One run of an arm, in processes of its own.

    Raises:
        RuntimeError: the run failed; the message ends with what it said last.
    """
    name = f"{list(ARMS).index(arm)}-{repetition}"
    own = (
        f"runs_dir={folder / 'runs'}",
        f"name={name}",
        f"num_steps={num_steps}",
        f"model.path={folder / 'base'}",
    )
    done = subprocess.run(
        [sys.executable, "-m", "polyphony", "train", "debug_random", *WORK, *ARMS[arm], *own],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{arm}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}")
    return read_figures(folder / "runs" / name)


def spread(values: Sequence[float], unit: str) -> str:
    """The median, and from the least to the greatest."""
    return f"{statistics.median(values):{unit}} ({min(values):{unit}} to {max(values):{unit}})"


def table(results: Mapping[str, Sequence[Figures]]) -> str:
    """The Markdown table and its goals; an arm's n-th run is paired with the n-th baseline."""
    base = results[BASELINE]
    lines = [
        f"| arm (median and range of {len(base)}) | step, s | of the baseline | generating while learning |",
        "|---|---:|---:|---:|",
    ]
    ratios = {}
    for arm, runs in results.items():
        ratios[arm] = [run.step_s / beside.step_s for run, beside in zip(runs, base, strict=True)]
        shares = [run.generating_share for run in runs]
        cells = (
            spread([run.step_s for run in runs], ".3f"),
            spread(ratios[arm], ".2f"),
            spread(shares, ".0%"),
        )
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    balance = [run.generate_s / run.learn_s for run in base]
    share = statistics.median([run.generating_share for run in results[OVERLAP]])
    ratio = statistics.median(ratios[OVERLAP])
    fastest = min(ratios, key=lambda arm: statistics.median(ratios[arm]))
    balanced = BALANCE[0] <= statistics.median(balance) <= BALANCE[1]
    lines += [
        "",
        f"Balance (generating over learning, baseline): {spread(balance, '.2f')}, {_verdict(balanced)}; "
        f"{statistics.median([run.tokens for run in base]):,.0f} tokens per step.",
        f"{OVERLAP}: generating during {share:.0%} of learning (goal {SHARE_GOAL:.0%}: "
        f"{_verdict(share >= SHARE_GOAL)}), {ratio:.2f} of the baseline's step (goal {RATIO_GOAL}: "
        f"{_verdict(ratio <= RATIO_GOAL)}).",
        f"Fastest: {fastest}.",
    ]
    return "\n".join(lines)


def _verdict(held: bool) -> str:
    return "met" if held else "NOT met"


def main() -> int:
    """Run all arms in turn, print the table, write every run's figures; 1 if a run failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT.json")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--steps", type=int, default=23)
    arguments = parser.parse_args()
    # Actors count the cores they may use: with more, the learner's one thread would become several.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:NUM_CORES])
    results: dict[str, list[Figures]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory(prefix="overlap-") as name:
        folder = Path(name)
        make_base(SHAPE, folder / "base")
        for repetition in range(arguments.repetitions):
            for arm in ARMS if repetition % 2 == 0 else reversed(list(ARMS)):
                try:
                    figures = train(arm, repetition, folder, arguments.steps)
                except RuntimeError as error:
                    print(error, file=sys.stderr)
                    return 1
                results[arm].append(figures)
                print(f"{repetition + 1}: {arm}: {json.dumps(asdict(figures))}", file=sys.stderr, flush=True)
    print(table(results))
    runs = {arm: [asdict(each) for each in figures] for arm, figures in results.items()}
    write_json_atomic(arguments.out, {"work": list(WORK), "steps": arguments.steps, "runs": runs})
    return 0


if __name__ == "__main__":
    sys.exit(main())
