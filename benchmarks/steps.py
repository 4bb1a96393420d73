"""Where a step's time goes: `python -m benchmarks.steps RUN_DIR` prints every phase as a Markdown table.

Medians over steps, without steps 1 to 3, where caches are cold. The baseline is the step itself: each row has
its share of it. The last row is the time outside of generation and learning.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from viewer.run_data import read_run

NUM_SKIPPED = 3
STEP = "time/step_s"
WORK = ("time/generate_s", "time/learn_score_s", "time/learn_update_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Seconds per step by phase (`phases`, without the step itself), of whole steps, and tokens per step."""

    phases: Mapping[str, Sequence[float]]
    step: Sequence[float]
    tokens: Sequence[float]


def read_times(run_dir: Path) -> StepTimes:
    """The steps of a run after the first `NUM_SKIPPED`.

    Raises:
        ValueError: the folder is no run, or has no later step with times.
    """
    run = read_run(run_dir)
    later = slice(NUM_SKIPPED, None)
    step = run.curve(STEP)[later]
    if not step or not run.has(STEP):
        raise ValueError(
            f"{run_dir / 'metrics.jsonl'} must have more than {NUM_SKIPPED} steps with {STEP}, "
            f"got {len(run.steps)} steps"
        )
    rate = run.curve("throughput/tokens_per_s")[later]
    return StepTimes(
        phases={
            name: run.curve(name)[later]
            for name in run.curves
            if name.startswith("time/") and name.endswith("_s") and name != STEP
        },
        step=step,
        # A run records tokens per second over the whole step.
        tokens=[per_second * seconds for per_second, seconds in zip(rate, step, strict=True)],
    )


def outside(times: StepTimes) -> list[float]:
    """Per step: the seconds that neither generate nor learn."""
    work = [times.phases[name] for name in WORK if name in times.phases]
    return [whole - math.fsum(parts) for whole, *parts in zip(times.step, *work, strict=True)]


def median(values: Sequence[float]) -> float:
    """Over the finite values: a phase that a step did not have is NaN there."""
    return statistics.median([value for value in values if math.isfinite(value)] or [math.nan])


def table(times: StepTimes) -> str:
    """The Markdown table. Medians are per phase, so their sum may differ a little from the median step."""
    whole = median(times.step)
    medians = {name: median(values) for name, values in times.phases.items()}
    ordered = sorted(medians.items(), key=lambda entry: -entry[1])
    rows = [
        *((name.removeprefix("time/").removesuffix("_s"), value) for name, value in ordered),
        ("sum of the phases", sum(medians.values())),
        ("whole step", whole),
        ("outside generating and learning", median(outside(times))),
    ]
    lines = [
        f"| phase (median of {len(times.step)} steps) | seconds | share of the step |",
        "|---|---:|---:|",
    ]
    lines += [f"| {name} | {value:.3f} | {value / whole:.1%} |" for name, value in rows]
    tokens = median(times.tokens)
    lines.append(f"\n{tokens:,.0f} tokens per step, {tokens / whole:,.0f} tokens/s over the median step.")
    return "\n".join(lines)


def main() -> int:
    """Print the table; exit code 2 where the folder is not a run with steps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    try:
        print(table(read_times(parser.parse_args().run_dir)))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
