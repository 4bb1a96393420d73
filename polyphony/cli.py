"""The command line: `polyphony COMMAND ...` or `python -m polyphony COMMAND ...`.

In: arguments. Out: an exit code: 0; 1 if a run was stopped by an error; 2, with one message on stderr, for
bad input; 130 or 143 if interrupted. Each command is a small function that imports what it needs when it
runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from viewer.terminal import StepReporter

PACKAGES = ("configs", "rollouts", "rewards", "trainer", "actors", "cluster", "lab", "viewer")
ENGINE_PACKAGES = ("torch", "transformers", "safetensors", "deepspeed", "vllm")
"""Packages of the extras [cpu] and [gpu], which the base install lacks."""
BAD_INPUT = 2
INTERRUPTED = 130
_INPUT_ERRORS = (ValueError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
"""What a wrong argument or a path that cannot be used raises."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; 2 for bad input. Other errors pass through."""
    # Users keep their own modules in the working directory. `python -m` and Ray's workers add it to the path;
    # an installed script does not.
    if sys.path[0] != (here := str(Path.cwd())):
        sys.path.insert(0, here)
    hidden = _hidden_package(Path(__file__).resolve().parents[1])
    if hidden:
        return _refuse(hidden)
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes overrides only in one block; those after an option arrive here as unknown.
    if rest and ("overrides" not in arguments or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return _run(arguments, rest)
    except KeyboardInterrupt:  # a run installs its own handlers; before that nothing has been written
        print("polyphony: interrupted", file=sys.stderr)
        return INTERRUPTED
    except _INPUT_ERRORS as error:
        if arguments.traceback:
            traceback.print_exc()
        return _refuse(str(error))


def print_config(config_path: str, overrides: Sequence[str]) -> int:
    """Print the resolved config as YAML, without secrets."""
    from configs.load import dump_yaml, load_with_sources

    config, sources = load_with_sources(config_path, overrides)
    print(dump_yaml(config), end="")
    for text in sources.left_out:
        print(f"polyphony: {text}", file=sys.stderr)
    return 0


def run_training(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Train; or only sample (`--rollout-only`), only learn (`--train-only RUN`), only check (`--dry-run`)."""
    from configs.load import load_with_sources

    config, sources = load_with_sources(arguments.config, overrides)
    # The base install can still check a config; only then is it said that it cannot train.
    if missing := _missing_packages():
        checked = ""
        if arguments.dry_run:
            from cluster.base_check import check_without_engines

            checked = f" ({check_without_engines(config, sources)})"
        raise _must_install("train", missing, checked)
    from cluster.train import Job, RunError, dry_run, train
    from viewer.terminal import StepReporter

    reporter = StepReporter(config.num_steps, sys.stdout)
    if arguments.dry_run:
        return dry_run(config, reporter, sources)
    source = Path(arguments.train_only) if arguments.train_only else None
    if source is not None and not source.is_dir():
        raise ValueError(f"--train-only must name a run directory, such as runs/debug-1, got {source}")
    try:
        outcome = train(config, reporter, Job(learns=not arguments.rollout_only, rollouts_of=source), sources)
    except RunError as error:
        print(f"polyphony: the run was stopped: {error}", file=sys.stderr)
        _report(Path(config.runs_dir) / config.name, reporter)
        return 1
    _report(outcome.run_dir, reporter)
    if outcome.exit_code > 128:
        name = Signals(outcome.exit_code - 128).name
        reporter.note(f"stopped by {name}; the same command resumes the run: {outcome.run_dir}")
    return outcome.exit_code


def _report(run_dir: Path, reporter: StepReporter) -> None:
    """Write the report of a run, if it has made a step. A report that cannot be written is only a note."""
    from rollouts.store import committed_steps
    from viewer.report import write_report

    try:
        if committed_steps(run_dir):
            reporter.note(f"report: {write_report(run_dir)}")
    except OSError as error:  # the disk may be full: the run itself has ended well, or has said why not
        reporter.note(f"no report was written: {error}; polyphony report {run_dir} writes it")


def run_comparison(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Train a config and its variants over seeds, and compare them."""
    if missing := _missing_packages():
        raise _must_install("compare", missing)
    from lab.compare import Request, compare, dry_run

    request = Request(
        config=arguments.config,
        files=[text for text in arguments.arms if "=" not in text],
        num_seeds=arguments.seeds,
        folder=Path(arguments.out or Path("runs") / f"compare-{Path(arguments.config).stem}"),
        overrides=[*(text for text in arguments.arms if "=" in text), *overrides],
        metrics=arguments.metrics.split(",") if arguments.metrics else (),
    )
    return (dry_run if arguments.dry_run else compare)(request, sys.stdout)


def run_pretraining(config_path: str, overrides: Sequence[str]) -> int:
    """Train a small base model from scratch."""
    if missing := _missing_packages():
        raise _must_install("lab pretrain", missing)
    from lab.pretrain import pretrain

    return pretrain(config_path, overrides)


def train_lab_reward_model(base: str, out: str, seed: int) -> int:
    """Train the lab's reward model, for the preset reward_model."""
    if missing := _missing_packages():
        raise _must_install("lab train-reward-model", missing)
    from lab.reward_model import Training, train_reward_model

    measured = train_reward_model(Path(base), Path(out), Training(seed=seed))
    print(
        f"{out}: on {measured['rows']:.0f} solutions of unseen problems accuracy {measured['accuracy']:.3f}, "
        f"AUC {measured['auc']:.3f} ({measured['share_right']:.2f} of them are right); "
        f"{measured['seconds']:.0f} s"
    )
    return 0


def run_equivalence_training(config_path: str, overrides: Sequence[str]) -> int:
    """Train a small classifier of equivalent solutions, for the scorer `partition`."""
    if missing := _missing_packages():
        raise _must_install("lab train-equivalence", missing)
    from lab.train_equivalence import train_equivalence

    return train_equivalence(config_path, overrides)


def serve_judge(arguments: argparse.Namespace) -> int:
    """Serve the lab's judge until interrupted."""
    from lab.judge_server import FAULTS, Faults, run

    kinds = tuple(arguments.fault_kinds.split(",")) if arguments.fault_kinds else FAULTS
    return run(arguments.port, Faults(share=arguments.faults, kinds=kinds), arguments.gullible)


def mine_runs(runs: Sequence[str], out: str, share: float, min_documents: int) -> int:
    """Mine strategic n-grams (HICRA, arXiv:2509.03646) from the correct completions of runs into a file."""
    from trainer.token_advantages.strategic_ngrams import correct_completions, mine_grams, write_grams

    documents = (document for run in runs for document in correct_completions(Path(run)))
    grams = mine_grams(documents, share, min_documents, [Path(run).name for run in runs])
    write_grams(Path(out), grams)
    print(f"{out}: {len(grams.documents)} n-grams of {grams.num_documents} correct completions")
    return 0


def write_run_report(run: str) -> int:
    """Write a run's report and print its path."""
    from viewer.report import write_report

    print(write_report(Path(run)))
    return 0


def run_rewards(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """List the scorers, or try or measure those of a config on completions that exist already."""
    from polyphony.reward_verbs import run

    return run(arguments, overrides)


def _run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    match arguments.verb:
        case "config":
            return print_config(arguments.config, [*arguments.overrides, *rest])
        case "train":
            return run_training(arguments, [*arguments.overrides, *rest])
        case "compare":
            return run_comparison(arguments, rest)
        case "lab" if arguments.lab_verb == "judge-server":
            return serve_judge(arguments)
        case "lab" if arguments.lab_verb == "train-reward-model":
            return train_lab_reward_model(arguments.base, arguments.out, arguments.seed)
        case "lab":
            train = run_pretraining if arguments.lab_verb == "pretrain" else run_equivalence_training
            return train(arguments.config, [*arguments.overrides, *rest])
        case "mine":
            return mine_runs(arguments.runs, arguments.out, arguments.share, arguments.min_documents)
        case "report":
            return write_run_report(arguments.run)
        case "rewards":
            return run_rewards(arguments, rest)
    raise AssertionError(f"no function for command {arguments.verb}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="polyphony",
        description="Reinforcement-learning post-training for language models, on Ray, vLLM and DeepSpeed.",
    )
    parser.add_argument("--traceback", action="store_true", help="print a traceback for bad input too")
    verbs = parser.add_subparsers(dest="verb", required=True, title="commands", metavar="COMMAND")
    config = verbs.add_parser("config", help="print a resolved config").add_subparsers(
        dest="config_verb", required=True, metavar="COMMAND"
    )
    _add_config(config.add_parser("print", help="print the resolved config as YAML"))
    _add_train(verbs.add_parser("train", help="train a policy, or resume a run"))
    _add_compare(
        verbs.add_parser("compare", help="train a config and variants of it over seeds, and compare")
    )
    lab = verbs.add_parser("lab", help="prepare controlled experiments").add_subparsers(
        dest="lab_verb", required=True, metavar="COMMAND"
    )
    _add_config(lab.add_parser("pretrain", help="train a small base model from scratch"))
    _add_config(lab.add_parser("train-equivalence", help="train a classifier of equivalent solutions"))
    _add_reward_model(lab.add_parser("train-reward-model", help="train the model of the preset reward_model"))
    _add_judge_server(lab.add_parser("judge-server", help="serve the lab's judge, for the preset judge"))
    _add_mine(verbs.add_parser("mine", help="mine strategic n-grams from runs, for the transform hicra"))
    _add_rewards(
        verbs.add_parser("rewards", help="list scorers, try them on completions, measure their speed")
    )
    report = verbs.add_parser("report", help="write the HTML report of a run")
    report.add_argument("run", metavar="RUN", help="run directory, such as runs/debug-1")
    return parser


def _add_reward_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base",
        default=str(Path(__file__).resolve().parents[1] / "lab" / "bases" / "voices"),
        metavar="DIR",
        help="model whose weights it begins with (default: the lab's base)",
    )
    parser.add_argument(
        "--out",
        default="runs/lab-reward-model",
        metavar="DIR",
        help="folder to write (default: runs/lab-reward-model)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the order of its training rows (default: 0)"
    )


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--dry-run", action="store_true", help="check all inputs and print the config; start nothing"
    )
    how.add_argument("--rollout-only", action="store_true", help="generate and score rollouts; do not learn")
    how.add_argument("--train-only", metavar="RUN", help="learn from the rollouts of that run; do not sample")


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="preset name or YAML file: the control arm")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="train seeds 0 to N-1 (default: 3)")
    parser.add_argument("--out", metavar="DIR", help="output folder (default: runs/compare-CONFIG)")
    parser.add_argument(
        "--metrics",
        metavar="NAME,...",
        help="metrics of a step, such as grad/norm, that the table has as well",
    )
    parser.add_argument(
        "--arms",
        nargs="+",
        required=True,
        metavar="FILE.yaml",
        help="the settings that each other arm changes, one file for each arm; "
        "KEY=VALUE after the files applies to all arms",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check all arms and say which runs are missing; start nothing"
    )
    parser.set_defaults(overrides=[])  # overrides after options arrive as unparsed arguments


def _add_judge_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--port", type=int, default=8901, metavar="N", help="port on 127.0.0.1 (default: 8901; 0: any)"
    )
    parser.add_argument(
        "--faults", type=float, default=0.0, metavar="X", help="share of requests that fail (default: 0)"
    )
    parser.add_argument(
        "--fault-kinds",
        default="",
        metavar="KIND,...",
        help="how they fail: 429, 500, nothing, half, refusal, slow, dies (default: all of these)",
    )
    parser.add_argument(
        "--gullible", action="store_true", help="give the verdict that an answer dictates, to try canaries"
    )


def _add_mine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory, such as runs/debug-1")
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON file to write")
    parser.add_argument(
        "--share",
        type=float,
        default=0.2,
        metavar="X",
        help="keep this share of the n-grams, the most frequent ones (default: 0.2)",
    )
    parser.add_argument(
        "--min-documents",
        type=int,
        default=2,
        metavar="N",
        help="drop n-grams that are in fewer than N completions (default: 2)",
    )


def _add_rewards(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="rewards_verb", required=True, metavar="COMMAND")
    listing = verbs.add_parser("list", help="list the kinds of scorers with their options")
    listing.add_argument("kind", metavar="KIND", nargs="?", help="show only this kind")
    trial = verbs.add_parser("try", help="score existing completions with the scorers of a config")
    trial.add_argument(
        "rows", metavar="FILE", help=".jsonl or .parquet with prompts and completions, or a run directory"
    )
    trial.add_argument(
        "--config", metavar="CONFIG", help="preset name or YAML file (default for a run: the run's config)"
    )
    trial.add_argument("--step", type=int, default=0, metavar="N", help="step of a run (default: the last)")
    trial.add_argument(
        "--limit", type=int, default=0, metavar="N", help="read only the first N rows of a file"
    )
    bench = verbs.add_parser("bench", help="measure how many completions a second each scorer scores")
    bench.add_argument("config", metavar="CONFIG", help="preset name or YAML file")
    bench.add_argument(
        "--rows", metavar="FILE", help="completions as for `try` (default: made from data.train)"
    )
    bench.add_argument(
        "--seconds", type=float, default=3.0, metavar="S", help="seconds for each scorer (default: 3)"
    )
    bench.add_argument("--cores", type=int, default=2, metavar="N", help="use N cores (default: 2)")
    for verb in (trial, bench):
        verb.add_argument(
            "--scorer",
            action="append",
            default=[],
            metavar="NAME",
            help="only this scorer of the config; without a config, a kind with its default options",
        )
        verb.add_argument("--json", metavar="FILE", help="write the results as JSON too")
        verb.set_defaults(overrides=[])  # KEY=VALUE after options arrive as unparsed arguments


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="preset name or YAML file")
    parser.add_argument(
        "overrides", metavar="KEY=VALUE", nargs="*", help="settings to change, such as learner.lr=1e-4"
    )


def _hidden_package(root: Path) -> str:
    """An error message if one of our packages would not be imported from `root`, else "".

    A folder `rewards` in the user's working directory, for example, would hide ours. Nothing is imported.
    """
    # Checked before anything is imported: a user's folder of the same name would fail with an odd message.
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is None:
            return f"package {name} must be beside polyphony in {root}, got none: reinstall polyphony"
        places = [Path(place).resolve() for place in spec.submodule_search_locations or [spec.origin or ""]]
        if places[0] != root / name:
            return (
                f"package {name} must be imported from {root / name}, got {places[0]}, which hides it: "
                "rename that folder or file, or run from another directory"
            )
    return ""


def _missing_packages() -> list[str]:
    """Those of `ENGINE_PACKAGES` that are not installed; nothing is imported."""

    def is_installed(name: str) -> bool:
        try:
            return name in sys.modules or find_spec(name) is not None
        except ImportError:
            return False

    return [name for name in ENGINE_PACKAGES if not is_installed(name)]


def _must_install(verb: str, missing: Sequence[str], checked: str = "") -> ValueError:
    return ValueError(
        f"{verb} needs {', '.join(missing)}, which the base install does not have: install the extra for "
        'this machine, pip install "polyphony-rl[cpu]" or "polyphony-rl[gpu]" (in a clone, '
        f'pip install -e ".[cpu]"){checked}'
    )


def _refuse(message: str) -> int:
    print(f"polyphony: {message}", file=sys.stderr)
    return BAD_INPUT
