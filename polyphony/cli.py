"""The command line: `polyphony VERB ...` or `python -m polyphony VERB ...`.

In: arguments. Out: an exit code: 0, or 2 with one message on stderr for input that cannot be used. A verb is
a small function that imports what it needs when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from viewer.terminal import StepReporter

PACKAGES = ("configs", "rollouts", "rewards", "trainer", "actors", "cluster", "lab", "viewer")
ENGINE_PACKAGES = ("torch", "transformers", "safetensors", "deepspeed", "vllm")
"""What the extras [cpu] and [gpu] bring and the base install lacks."""
BAD_INPUT = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; 2 for bad input. Errors of any other kind pass through."""
    # As `python -m` does, and Ray for its workers: a user's own modules are in the working directory.
    if sys.path[0] != (here := str(Path.cwd())):
        sys.path.insert(0, here)
    hidden = _hidden_package(Path(__file__).resolve().parents[1])
    if hidden:
        return _refuse(hidden)
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and ("overrides" not in arguments or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return _run(arguments, rest)
    except KeyboardInterrupt:  # before a run installs its handlers: nothing has been written yet
        print("polyphony: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, FileNotFoundError) as error:
        if arguments.traceback:
            traceback.print_exc()
        return _refuse(str(error))


def print_config(config_path: str, overrides: Sequence[str]) -> int:
    """Print the resolved config, without secrets, as YAML."""
    from configs.load import dump_yaml, load_config

    print(dump_yaml(load_config(config_path, overrides)), end="")
    return 0


def run_training(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Train, do one half of it (`--rollout-only`, `--train-only RUN`), or only validate (`--dry-run`)."""
    from configs.load import load_config

    config = load_config(arguments.config, overrides)
    if missing := _missing_packages():
        checked = ""
        if arguments.dry_run:
            from cluster.base_check import check_without_engines

            checked = f" ({check_without_engines(config)})"
        raise _must_install("train", missing, checked)
    from cluster.train import Job, RunError, dry_run, train
    from viewer.terminal import StepReporter

    reporter = StepReporter(config.num_steps, sys.stdout)
    if arguments.dry_run:
        return dry_run(config, reporter)
    source = Path(arguments.train_only) if arguments.train_only else None
    if source is not None and not source.is_dir():
        raise ValueError(f"--train-only must name a run directory, such as runs/debug-1, got {source}")
    try:
        outcome = train(config, reporter, Job(learns=not arguments.rollout_only, rollouts_of=source))
    except RunError as error:
        print(f"polyphony: the run was stopped: {error}", file=sys.stderr)
        with suppress(OSError):  # a full disk may be what stopped it
            _report(Path(config.runs_dir) / config.name, reporter)
        return 1
    _report(outcome.run_dir, reporter)
    if outcome.exit_code > 128:
        name = Signals(outcome.exit_code - 128).name
        reporter.note(f"stopped by {name}; the same command resumes the run: {outcome.run_dir}")
    return outcome.exit_code


def _report(run_dir: Path, reporter: StepReporter) -> None:
    """Write the report of a run that has made a step."""
    from rollouts.store import committed_steps
    from viewer.report import write_report

    if committed_steps(run_dir):
        reporter.note(f"report: {write_report(run_dir)}")


def run_comparison(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Train a config and its arms over seeds, and compare them."""
    if missing := _missing_packages():
        raise _must_install("compare", missing)
    from lab.compare import Request, compare

    request = Request(
        config=arguments.config,
        files=[text for text in arguments.arms if "=" not in text],
        num_seeds=arguments.seeds,
        folder=Path(arguments.out or Path("runs") / f"compare-{Path(arguments.config).stem}"),
        overrides=[*(text for text in arguments.arms if "=" in text), *overrides],
    )
    return compare(request, sys.stdout)


def run_pretraining(config_path: str, overrides: Sequence[str]) -> int:
    """Make a small base model from scratch."""
    if missing := _missing_packages():
        raise _must_install("lab pretrain", missing)
    from lab.pretrain import pretrain

    return pretrain(config_path, overrides)


def mine_runs(runs: Sequence[str], out: str, share: float, min_documents: int) -> int:
    """Mine strategic n-grams from runs' correct completions into a file for the shape hicra."""
    from trainer.token_advantages.strategic_ngrams import correct_completions, mine_grams, write_grams

    documents = (document for run in runs for document in correct_completions(Path(run)))
    grams = mine_grams(documents, share, min_documents, [Path(run).name for run in runs])
    write_grams(Path(out), grams)
    print(f"{out}: {len(grams.documents)} n-grams of {grams.num_documents} correct completions")
    return 0


def write_run_report(run: str) -> int:
    """Write a run's report and print where it is."""
    from viewer.report import write_report

    print(write_report(Path(run)))
    return 0


def _run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    match arguments.verb:
        case "config":
            return print_config(arguments.config, [*arguments.overrides, *rest])
        case "train":
            return run_training(arguments, [*arguments.overrides, *rest])
        case "compare":
            return run_comparison(arguments, rest)
        case "lab":
            return run_pretraining(arguments.config, [*arguments.overrides, *rest])
        case "mine":
            return mine_runs(arguments.runs, arguments.out, arguments.share, arguments.min_documents)
        case "report":
            return write_run_report(arguments.run)
    raise AssertionError(f"no function for verb {arguments.verb}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="polyphony", description="Reinforcement-learning post-training that keeps a model's many voices."
    )
    parser.add_argument("--traceback", action="store_true", help="show where bad input was refused")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    config = verbs.add_parser("config", help="look at a config").add_subparsers(
        dest="config_verb", required=True, metavar="VERB"
    )
    _add_config(config.add_parser("print", help="print the resolved config"))
    train = verbs.add_parser("train", help="train a policy")
    _add_config(train)
    how = train.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="show what would run, start nothing")
    how.add_argument(
        "--rollout-only", action="store_true", help="generate and judge all rollouts, learn nothing"
    )
    how.add_argument("--train-only", metavar="RUN", help="learn from the rollouts of another run")
    compare = verbs.add_parser("compare", help="train a config and variants of it over seeds, and compare")
    compare.add_argument("config", metavar="CONFIG", help="a preset name or a YAML file: the arm control")
    compare.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (default 3)")
    compare.add_argument("--out", metavar="DIR", help="where all of it goes (default runs/compare-CONFIG)")
    compare.add_argument(
        "--arms",
        nargs="+",
        required=True,
        metavar="FILE.yaml",
        help="what each other arm changes; KEY=VALUE after them applies to all arms",
    )
    compare.set_defaults(overrides=[])  # overrides after options arrive as unparsed arguments
    lab = verbs.add_parser("lab", help="controlled experiments").add_subparsers(
        dest="lab_verb", required=True, metavar="VERB"
    )
    _add_config(lab.add_parser("pretrain", help="make a small base model from scratch"))
    _add_mine(verbs.add_parser("mine", help="mine strategic n-grams from runs, for the shape hicra"))
    report = verbs.add_parser("report", help="write a run's report")
    report.add_argument("run", metavar="RUN", help="a run directory, such as runs/debug")
    return parser


def _add_mine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, such as runs/debug-1")
    parser.add_argument("--out", required=True, metavar="FILE", help="the JSON file to write")
    parser.add_argument(
        "--share", type=float, default=0.2, help="of the n-grams, by document frequency (default 0.2)"
    )
    parser.add_argument(
        "--min-documents", type=int, default=2, metavar="N", help="an n-gram is in at least N (default 2)"
    )


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a preset name or a YAML file")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="such as learner.lr=1e-4")


def _hidden_package(root: Path) -> str:
    """What is wrong if a package of ours would be imported from another place than `root`, else "".

    A folder of the user's own named `rewards` in the working directory would hide ours. Nothing is imported.
    """
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is None:
            return f"package {name} must stand beside polyphony in {root}, found none"
        places = [Path(place).resolve() for place in spec.submodule_search_locations or [spec.origin or ""]]
        if places[0] != root / name:
            return f"package {name} must be imported from {root / name}, got {places[0]}, which hides it"
    return ""


def _missing_packages() -> list[str]:
    """Those of `ENGINE_PACKAGES` that cannot be imported; nothing is imported."""

    def is_installed(name: str) -> bool:
        try:
            return name in sys.modules or find_spec(name) is not None
        except ImportError:
            return False

    return [name for name in ENGINE_PACKAGES if not is_installed(name)]


def _must_install(verb: str, missing: Sequence[str], checked: str = "") -> ValueError:
    return ValueError(
        f"{verb} needs {', '.join(missing)}, which the base install does not bring: install the extra for "
        'this machine, pip install "polyphony-rl[cpu]" or "polyphony-rl[gpu]" (in a clone, '
        f'pip install -e ".[cpu]"){checked}'
    )


def _refuse(message: str) -> int:
    print(f"polyphony: {message}", file=sys.stderr)
    return BAD_INPUT
