"""How well each partition rule agrees with the exact partition when a share of its pairs is judged wrongly.

`python benchmarks/partition_noise.py` prints the tables of docs/results/partition.md; `--groups N` sets the
number of simulated groups, `--out FILE` writes the numbers as JSON. Every pair is flipped independently with
the given probability; the true classes of a group are drawn as under "Groups" below. No model is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rewards.partition_rules import RULES, size_scores  # noqa: E402

Floats = npt.NDArray[np.float64]
FLIPS = (0.0, 0.02, 0.10, 0.32)
"""Shares of wrong pairs; 0.32 is the false positive rate of DARLING's published classifier at a true positive
rate of 0.90 (evals/novelty-bench/roc.ipynb of its repository)."""
GROUPS = {
    "all different": lambda rng, size: list(range(size)),
    "mixed": lambda rng, size: rng.choice(4, size, p=[0.4, 0.3, 0.2, 0.1]).tolist(),
    "all equal": lambda rng, size: [0] * size,
}
"""Groups: name -> the true classes of a group of a size. "mixed" draws from four classes."""
_Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Agreement:
    """Means over groups, each with the half width of its 95 % interval."""

    exact: tuple[float, float]
    """Share of groups whose partition is the true one."""
    rand: tuple[float, float]
    """Share of pairs on which partition and truth agree (Rand index)."""
    merged: tuple[float, float]
    """Share of groups with a single class."""
    diversity: tuple[float, float]
    """Mean of (N - s) / (N - 1)."""
    error: tuple[float, float]
    """Mean over completions of |score - true score|."""


def flipped(
    truth: Sequence[int], rate_same: float, rate_different: float, rng: np.random.Generator
) -> Floats:
    """Pair probabilities of 0 and 1: the true ones, each flipped with the rate of its kind."""
    ids = np.array(truth)
    same_NN = ids[:, None] == ids[None, :]
    rates_NN = np.where(same_NN, rate_same, rate_different)
    upper_NN = np.triu(rng.random(same_NN.shape) < rates_NN, k=1)
    return (same_NN ^ (upper_NN | upper_NN.T)).astype(np.float64)


def agreement(
    rule: str, group: str, size: int, rates: tuple[float, float], num_groups: int, seed: int
) -> Agreement:
    """`rates` are those of pairs that are equivalent, and of pairs that are not."""
    rng = np.random.default_rng([seed, size])
    found: list[tuple[float, ...]] = []
    for _ in range(num_groups):
        truth = GROUPS[group](rng, size)  # type: ignore[no-untyped-call]
        ids = RULES[rule](flipped(truth, *rates, rng), 0.5)
        pairs = np.triu_indices(size, k=1)
        same = [(np.array(each)[:, None] == np.array(each)[None, :])[pairs] for each in (truth, ids)]
        scores, right = size_scores(ids), size_scores(truth)
        agree = float((same[0] == same[1]).mean())
        error = float(np.abs(np.array(scores) - np.array(right)).mean())
        found.append((float(agree == 1.0), agree, float(len(set(ids)) == 1), float(np.mean(scores)), error))
    table = np.array(found)
    half = _Z * table.std(axis=0, ddof=1) / np.sqrt(num_groups)
    return Agreement(
        *((round(float(m), 4), round(float(h), 4)) for m, h in zip(table.mean(axis=0), half, strict=True))
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    results = []
    for group in GROUPS:
        for size in (8, 16):
            for rate in FLIPS:
                for rule in RULES:
                    found = agreement(rule, group, size, (rate, rate), options.groups, options.seed)
                    results.append({"group": group, "size": size, "flip": rate, "rule": rule} | _plain(found))
    print(
        "| true classes | N | wrong pairs | rule | exact | Rand index | one class | mean Div | error of Div |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row in results:
        numbers = " | ".join(_shown(row[name]) for name in ("exact", "rand", "merged", "diversity", "error"))
        print(f"| {row['group']} | {row['size']} | {row['flip']:.0%} | {row['rule']} | {numbers} |")
    if options.out:
        options.out.write_text(json.dumps({"groups": options.groups, "rows": results}, indent=1) + "\n")
    return 0


def _plain(found: Agreement) -> dict[str, tuple[float, float]]:
    return {name: getattr(found, name) for name in Agreement.__dataclass_fields__}


def _shown(value: object) -> str:
    mean, half = value  # type: ignore[misc]
    return f"{mean:.3f} ± {half:.3f}"


if __name__ == "__main__":
    sys.exit(main())
