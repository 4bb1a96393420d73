"""How the scorers stand hostile answers: escapes, missing scores, stuck workers, seconds.

    python -m benchmarks.hostile [OUT.json] [--isolation namespaces] [--processes 1] [--families a b]

Each answer is scored as in a run, by a `ScorerActor`. An escape is any of: a score above 0.5, which no answer
here deserves, such as for the token that a program can only find outside its sandbox; a connection to the
port, a file written, the secret file changed, a process left, the scorer's process killed. Exits with 1 if
there is one, if a worker is stuck, or if a program made its own score missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.faults.common import markdown
from benchmarks.hostile.programs import family_names
from benchmarks.hostile.run import CODE_OPTIONS, run_cases
from benchmarks.hostile.summary import failed, summary, totals


def main() -> int:
    """Run, print a table, and store every outcome."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--isolation", default="auto")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--families", nargs="*", default=family_names())
    parser.add_argument("--every", type=int, default=1, help="only each n-th program")
    parser.add_argument("--no-answers", action="store_true", help="only programs, no answers to rule scorers")
    given = parser.parse_args()
    options = {**CODE_OPTIONS, "isolation": given.isolation, "processes": given.processes}
    trials = run_cases(given.families, options, every=given.every, answers_too=not given.no_answers)
    rows = [*summary(trials), totals(trials)]
    print(markdown(list(rows[0]), [list(row.values()) for row in rows]))
    for trial in failed(trials):
        print(f"{trial.family}: {trial.name}: {trial.problem()}")
    if given.out:
        given.out.write_text(json.dumps([trial.described() for trial in trials], indent=1), encoding="utf-8")
    return 1 if failed(trials) else 0


if __name__ == "__main__":
    sys.exit(main())
