"""Which arms of a comparison stayed inside bands of token and format entropy, and at what cost in reward.

    python -m benchmarks.bands docs/results/panel --arm controller --families kl_weak,kl_anchor sft_refresh

Per arm and seed: the mean of each block of steps over the mean of the first steps, for both entropies; an arm
is inside if every block is. `--families` are arms that are one fixed setting at one or more strengths; with
control as strength 0 they give reward as a function of format entropy, by linear interpolation, and `--arm`
is compared with that at its own format entropy, seed by seed. Reward and format entropy are those of the
held-out evaluation after the last step. Token entropy is taken at temperature 1, which is what a controller
sees where `rollout.temperature` is 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lab.bootstrap import entropy, t_interval
from lab.results import RunResult, read_result

CONTROL = "control"
Results = dict[str, dict[int, RunResult]]
"""By arm and seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bands:
    """Bounds as multiples of the mean of the first `baseline` steps; blocks begin after step `after`."""

    token: tuple[float, float] = (0.5, 1.1)
    format: tuple[float, float] = (0.8, float("inf"))
    baseline: int = 3
    after: int = 10
    block: int = 10


def read_results(folder: Path) -> Results:
    """All results of a comparison's folder."""
    found: Results = {}
    for path in sorted((folder / "results").glob("*_seed*.json")):
        result = read_result(path)
        found.setdefault(result.arm, {})[result.seed] = result
    return found


def blocks(curve: Sequence[float], bands: Bands) -> np.ndarray:
    """Means of the whole blocks over the mean of the first steps."""
    values = np.array(curve, np.float64)
    later = values[bands.after :]
    # A shorter last block would be noisier, and leave the band by chance.
    whole = later[: len(later) // bands.block * bands.block].reshape(-1, bands.block)
    if not len(whole):
        raise SystemExit(f"runs must have {bands.after + bands.block} steps or more, got {len(values)}")
    return np.nanmean(whole, axis=1) / np.nanmean(values[: bands.baseline])


def is_inside(result: RunResult, bands: Bands) -> bool:
    """Whether every block of both entropies is within its band."""
    checks = (("token entropy", bands.token), ("format entropy", bands.format))
    return all(
        bool(np.all((low <= found) & (found <= high)))
        for name, (low, high) in checks
        for found in (blocks(result.curves[name], bands),)
    )


def held_out(result: RunResult) -> tuple[float, float]:
    """(format entropy in nats, mean reward) of the evaluation after the last step."""
    tags = sorted({tag for prompt in result.prompts for tag in prompt.formats})
    counts = np.array([sum(prompt.formats.get(tag, 0) for prompt in result.prompts) for tag in tags], float)
    rewarded = max(1, sum(prompt.num_rewarded for prompt in result.prompts))
    return float(entropy(counts)), sum(prompt.reward_sum for prompt in result.prompts) / rewarded


def reward_at(points: Sequence[tuple[float, float]], format_entropy: float) -> float:
    """Reward at a format entropy on the line through (format entropy, reward) points, held at its ends."""
    ordered = sorted(points)
    # Held at its ends and not extended: nothing was measured beyond the strongest setting.
    return float(np.interp(format_entropy, [x for x, _ in ordered], [y for _, y in ordered]))


def arm_line(arm: str, runs: Mapping[int, RunResult], bands: Bands) -> str:
    """One line of the first table."""
    inside = sum(is_inside(run, bands) for run in runs.values())
    tokens = [blocks(run.curves["token entropy"], bands) for run in runs.values()]
    formats = [blocks(run.curves["format entropy"], bands) for run in runs.values()]
    ends = np.array([held_out(run) for run in runs.values()])
    cells = [
        f"{inside} of {len(runs)}",
        ", ".join(f"{found.min():.2f}" for found in formats),
        ", ".join(f"{found.min():.2f}-{found.max():.2f}" for found in tokens),
        f"{ends[:, 0].mean():.3f}",
        f"{ends[:, 1].mean():.3f}",
    ]
    return f"| {arm} | " + " | ".join(cells) + " |"


def family_line(results: Results, arm: str, family: Sequence[str]) -> str:
    """One line of the second table: `arm` minus the family at the arm's format entropy."""
    seeds = sorted(set.intersection(*(set(results[name]) for name in (arm, CONTROL, *family))))
    differences, within = [], 0
    for seed in seeds:
        points = [held_out(results[name][seed]) for name in (CONTROL, *family)]
        at, reward = held_out(results[arm][seed])
        # How often the comparison is an interpolation and not the value at an end.
        within += min(points)[0] <= at <= max(points)[0]
        differences.append(reward - reward_at(points, at))
    found = t_interval(differences)
    told = f"{found.low:+.3f} to {found.high:+.3f}" if found else "-"
    mean = float(np.mean(differences))
    return f"| {', '.join(family)} | {len(seeds)} | {within} of {len(seeds)} | {mean:+.3f} | {told} |"


def report(results: Results, arm: str, families: Sequence[Sequence[str]], bands: Bands) -> str:
    """Both tables."""
    lines = [
        "| arm | seeds inside | format: lowest block, by seed | token: lowest-highest block, by seed "
        "| format entropy, held out | reward, held out |",
        "|---|---|---|---|---|---|",
        *(arm_line(name, runs, bands) for name, runs in sorted(results.items())),
    ]
    if families:
        lines += [
            "",
            f"| {arm} minus | seeds | within the family's range | reward | t over seeds 95 % |",
            "|---|---|---|---|---|",
            *(family_line(results, arm, family) for family in families),
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="--out of polyphony compare")
    parser.add_argument("--arm", default="controller")
    parser.add_argument("--families", nargs="*", default=[], metavar="ARM[,ARM]")
    parser.add_argument("--token", nargs=2, type=float, default=Bands().token, metavar=("LOW", "HIGH"))
    parser.add_argument("--format", nargs=2, type=float, default=Bands().format, metavar=("LOW", "HIGH"))
    parser.add_argument("--after", type=int, default=Bands().after, help="steps before the first block")
    given = parser.parse_args()
    bands = Bands(token=tuple(given.token), format=tuple(given.format), after=given.after)
    families = [each.split(",") for each in given.families]
    results = read_results(given.folder)
    unknown = {given.arm, CONTROL, *(arm for family in families for arm in family)} - set(results)
    if families and unknown:
        parser.error(f"{given.folder / 'results'} must have results of {', '.join(sorted(unknown))}")
    print(report(results, given.arm, families, bands))


if __name__ == "__main__":
    main()
