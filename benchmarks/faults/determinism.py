"""Does the same seed give the same run? Three runs as they are, then runs with scorers of random delay.

    python -m benchmarks.faults.determinism --out docs/results/durability/determinism

Every case is a 12-step run of the real command at lag 0; its hashes cover the final weights, the learner's
state, every row of every step and evaluation, and the metrics without timings. The delayed scorer is part of
the reward. Its delay of up to 200 ms for each group, drawn anew in every run, changes the order in which
groups finish.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.faults.common import Driver, Records, arguments_of, fingerprint, markdown, settings, workshop
from rollouts.files import Json

STEPS = 12
KIND = "benchmarks.faults.slow_scorer:linger"
SCORER = f"scorers.slow={{{{kind: '{KIND}', weight: 0.5, options: {{{{delay_s: 0.0, jitter_s: {{}}}}}}}}}}"
CASES: Mapping[str, tuple[str, ...]] = {
    "seed 0, first": (SCORER.format(0.0),),
    "seed 0, second": (SCORER.format(0.0),),
    "seed 0, third": (SCORER.format(0.0),),
    "seed 0, delayed scorer, first": (SCORER.format(0.2),),
    "seed 0, delayed scorer, second": (SCORER.format(0.2),),
    "seed 0, two engines": (SCORER.format(0.0), "generator.num_engines=2"),
    "seed 1": (SCORER.format(0.0), "seed=1"),
}


def main() -> int:
    """Run what is missing; print the hashes."""
    asked = arguments_of(__doc__, "determinism").parse_args()
    records = Records(asked.out, asked.only)
    for case, more in CASES.items() if not asked.table else ():
        records.do(case, lambda more=more: run(more))  # type: ignore[misc]
    found = records.all()
    parts = ("weights", "learner", "metrics", "rows", "evals")
    rows = [
        [record["case"], *(str(record["hashes"][part]).rpartition(" ")[2][:12] for part in parts)]  # type: ignore[index, call-overload]
        for record in found
    ]
    print(markdown(["run", *parts], rows))
    return 1 if records.failed else 0


def run(more: tuple[str, ...]) -> dict[str, Json]:
    """One run in hashes."""
    with workshop() as (folder, mark):
        arguments = settings(folder, "same", STEPS, "allow=[benchmarks]", *more)
        code = Driver(arguments, folder / "driver.log", mark).wait()
        if code:
            raise RuntimeError(f"exit code {code}: {(folder / 'driver.log').read_text()[-2000:]}")
        return {"ok": True, "settings": list(more), "hashes": dict(fingerprint(Path(folder / "same")))}


if __name__ == "__main__":
    sys.exit(main())
