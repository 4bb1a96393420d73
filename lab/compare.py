"""`polyphony compare`: train a config and variants of it over seeds, on the same actors, and compare them.

    DIR/runs/<arm>-seed<k>/        an ordinary run; an interrupted one resumes
    DIR/results/<arm>_seed<k>.json the result of a finished run, which is not run again
    DIR/compare.md, compare.html   rewritten after every finished run

Called by the command line.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from cluster.checks import InputChecks, device_without_cluster
from cluster.series import train_all
from configs.experiment import config_hash
from configs.redact import redact_value
from configs.schema import RunConfig
from configs.sources import Provenance
from lab.arms import Arm, load_arms
from lab.compare_page import Comparison, change_text, write_pages
from lab.contrast import check_paired
from lab.results import RunResult, gather, read_result, result_path, write_result
from rollouts.files import make_dir_synced
from rollouts.lock import RunLock
from viewer.terminal import StepReporter

FAILED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments of the command line."""

    config: str
    files: Sequence[str]
    num_seeds: int
    folder: Path
    overrides: Sequence[str]
    metrics: Sequence[str] = ()
    """Metrics of a step that the table has as well."""

    def command(self) -> list[str]:
        """The command line, without secrets."""
        words = ["polyphony", "compare", self.config, "--arms", *self.files]
        words += ["--seeds", str(self.num_seeds), "--out", str(self.folder)]
        words += ["--metrics", ",".join(self.metrics)] if self.metrics else []
        pairs = (text.partition("=") for text in self.overrides)
        return words + [f"{key}={redact_value(key, value)}" for key, _, value in pairs]


def compare(request: Request, stream: TextIO) -> int:
    """Make the runs that are missing and write the tables.

    Returns the exit code: 0, 1 if a run failed, 130 (SIGINT) or 143 (SIGTERM).

    Raises:
        ValueError: an arm cannot be used or compared, or a result in the folder has other settings; nothing
            was started.
    """
    arms = load_arms(request.config, request.files, request.overrides, request.num_seeds, request.folder)
    _make_folder(request.folder)
    lock = RunLock(request.folder / "lock", "polyphony compare")
    try:
        lock.acquire()
    except OSError as error:
        raise ValueError(f"--out must be a folder that can be written and locked, got {error}") from error
    try:
        return _compare(request, arms, stream)
    finally:
        lock.release()


def dry_run(request: Request, stream: TextIO) -> int:
    """Check all arms as a run would be, and say what the comparison would do. Starts and writes nothing.

    Returns the exit code 0.

    Raises:
        ValueError: as `compare`, or the inputs of an arm cannot be used.
    """
    arms = load_arms(request.config, request.files, request.overrides, request.num_seeds, request.folder)
    runs = _runs(arms, request.num_seeds)
    results = [result for run in runs if (result := _finished(request.folder, run)) is not None]
    check_paired(results)
    out = StepReporter(0, stream)
    for arm in arms:
        of_arm = StepReporter(0, stream, f"{arm.name}: ")
        checked = InputChecks(of_arm.note).check(arm.configs[0], sources=arm.sources)
        placement = checked.on(device_without_cluster(arm.configs[0]), of_arm).placement
        for key, pair in arm.told_changes().items():
            of_arm.note(f"{key}: {change_text(pair)}")
        of_arm.note(f"on {placement.device} a run asks for {placement.describe()}")
    steps = arms[0].configs[0].num_steps
    todo = f"{len(runs) - len(results)} of {len(runs)} runs to make, of {steps} steps each"
    out.note(f"{len(arms)} arms, seeds 0 to {request.num_seeds - 1}: {todo}, into {request.folder}")
    return 0


def _make_folder(folder: Path) -> None:
    """Create `folder` durably, unless it exists.

    Raises:
        ValueError: there is a file of that name, or the folder cannot be created.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        make_dir_synced(folder)
    except OSError as error:
        raise ValueError(f"--out must be a folder that can be made, got {error}") from error


def _compare(request: Request, arms: Sequence[Arm], stream: TextIO) -> int:
    all_runs = _runs(arms, request.num_seeds)
    results = [result for run in all_runs if (result := _finished(request.folder, run)) is not None]
    done = {(each.arm, each.seed) for each in results}
    runs = [run for run in all_runs if (run.arm, run.config.seed) not in done]
    progress = _Progress(request, arms, runs, results, stream)
    progress.note(
        f"{len(results)} of {len(all_runs)} runs have finished before" if results else f"{len(all_runs)} runs"
    )
    if results:
        progress.write()  # before any run starts: raises now if the earlier results cannot be compared
    sources = [run.sources for run in runs]
    code = train_all([run.config for run in runs], progress, StepReporter(0, stream), sources)
    progress.write()
    progress.note(f"comparison: {request.folder / 'compare.html'} and compare.md")
    return code or (FAILED if progress.failures else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """A run of the comparison: one seed of an arm. `number` is the arm's number, from 1."""

    arm: str
    number: int
    config: RunConfig
    sources: Provenance


def _runs(arms: Sequence[Arm], num_seeds: int) -> list[_Run]:
    """All runs of a comparison, in their order."""
    # All arms of a seed before the next seed: an interrupted comparison then has complete seeds to compare.
    return [
        _Run(arm=arm.name, number=number, config=arm.configs[seed], sources=arm.sources)
        for seed in range(num_seeds)
        for number, arm in enumerate(arms, start=1)
    ]


def _finished(folder: Path, run: _Run) -> RunResult | None:
    """The stored result of a run; None if there is none.

    Raises:
        ValueError: it has other settings, or is damaged.
    """
    path = result_path(folder, run.arm, run.config.seed)
    if not path.exists():
        return None
    result = read_result(path)
    # A result that was made with other settings is refused and not run again: it may have cost hours.
    hashed = config_hash(run.config, with_evaluation=True)
    if (result.config_hash, result.num_steps) != (hashed, run.config.num_steps):
        same = result.config_hash == hashed
        got = f"{result.num_steps} steps, not {run.config.num_steps}" if same else "other settings"
        raise ValueError(
            f"{path}: must be a result of these settings, got {got}: use the settings that it was made with, "
            f"choose another --out, or delete it and {folder / 'runs' / run.config.name} to run it again"
        )
    return result


class _Progress:
    """Collects the results of the runs of a series and writes the tables; a `cluster.series.Listener`."""

    def __init__(
        self,
        request: Request,
        arms: Sequence[Arm],
        runs: Sequence[_Run],
        results: Sequence[RunResult],
        stream: TextIO,
    ) -> None:
        self._request, self._arms, self._runs, self._stream = request, arms, runs, stream
        self._results = list(results)
        self._began = time.perf_counter()
        self.failures: dict[tuple[str, int], str] = {}

    def reporter(self, index: int) -> StepReporter:
        """A reporter whose lines begin with the arm and the seed."""
        run = self._runs[index]
        prefix = f"{run.arm} seed {run.config.seed}: "
        return StepReporter(run.config.num_steps, self._stream, prefix)

    def note(self, text: str) -> None:
        """Print a line about the comparison itself."""
        StepReporter(0, self._stream).note(text)

    def begins(self, index: int) -> None:
        run = self._runs[index]
        arm = f"arm {run.number} of {len(self._arms)}: {run.arm}, seed {run.config.seed}"
        self.note(f"run {index + 1} of {len(self._runs)}, {arm}")
        self._began = time.perf_counter()

    def finished(self, index: int, run_dir: Path) -> None:
        run, wall_s = self._runs[index], time.perf_counter() - self._began
        result = gather(run_dir, run.arm, run.config, wall_s, self._request.metrics)
        # Before it is written: a result that cannot be compared must not be found by the next call.
        check_paired([*self._results, result])
        write_result(result_path(self._request.folder, run.arm, run.config.seed), result)
        self._results.append(result)
        self.write()
        self.note(f"{run.arm} seed {run.config.seed} has finished, in {wall_s:.1f} s")

    def failed(self, index: int, reason: str) -> None:
        run = self._runs[index]
        self.failures[run.arm, run.config.seed] = reason
        self.write()
        self.note(f"{run.arm} seed {run.config.seed} failed: {reason}")

    def write(self) -> None:
        """Write the tables of all results so far."""
        order = {arm.name: number for number, arm in enumerate(self._arms)}
        comparison = Comparison(
            command=self._request.command(),
            arms=self._arms,
            num_seeds=self._request.num_seeds,
            pass_at=self._arms[0].configs[0].eval.pass_at,
            results=sorted(self._results, key=lambda each: (each.seed, order[each.arm])),
            failures=self.failures,
        )
        write_pages(self._request.folder, comparison)
