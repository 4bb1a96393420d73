"""`polyphony compare`: the same run with one thing changed at a time, over seeds, on live engines.

    DIR/runs/<arm>-seed<k>/        an ordinary run each; an interrupted one resumes
    DIR/results/<arm>_seed<k>.json what is kept of one that has finished; it is not run again
    DIR/compare.md, compare.html   written again after every finished run

Called by the command line.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from cluster.series import train_all
from configs.experiment import config_hash
from configs.redact import redact_value
from configs.schema import RunConfig
from lab.arms import Arm, load_arms
from lab.compare_page import Comparison, write_pages
from lab.contrast import check_paired
from lab.results import RunResult, gather, read_result, result_path, write_result
from rollouts.files import make_dir_synced
from rollouts.lock import RunLock
from viewer.terminal import StepReporter

FAILED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked on the command line."""

    config: str
    files: Sequence[str]
    num_seeds: int
    folder: Path
    overrides: Sequence[str]

    def command(self) -> list[str]:
        """The words that ask for it, without secrets."""
        words = ["polyphony", "compare", self.config, "--arms", *self.files]
        words += ["--seeds", str(self.num_seeds), "--out", str(self.folder)]
        pairs = (text.partition("=") for text in self.overrides)
        return words + [f"{key}={redact_value(key, value)}" for key, _, value in pairs]


def compare(request: Request, stream: TextIO) -> int:
    """Run what is missing and write the tables; the exit code: 0, 1 if a run failed, 130 or 143.

    Raises:
        ValueError: an arm cannot be used or compared, or a result in the folder is of other settings; nothing
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


def _make_folder(folder: Path) -> None:
    """Make `folder`, durably.

    Raises:
        ValueError: there is a file of that name, or it cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        make_dir_synced(folder)
    except OSError as error:
        raise ValueError(f"--out must be a folder that can be made, got {error}") from error


def _compare(request: Request, arms: Sequence[Arm], stream: TextIO) -> int:
    # By seeds first: whatever is finished is a comparison, of as many seeds.
    wanted = [
        _Run(arm=arm.name, number=number, config=arm.configs[seed])
        for seed in range(request.num_seeds)
        for number, arm in enumerate(arms, start=1)
    ]
    results = [found for run in wanted if (found := _finished(request.folder, run)) is not None]
    done = {(each.arm, each.seed) for each in results}
    runs = [run for run in wanted if (run.arm, run.config.seed) not in done]
    book = _Book(request, arms, runs, results, stream)
    book.note(
        f"{len(results)} of {len(wanted)} runs have finished before" if results else f"{len(wanted)} runs"
    )
    if results:
        book.write()  # what is there can be compared, and shows whether it can
    code = train_all([run.config for run in runs], book, StepReporter(0, stream))
    book.write()
    book.note(f"comparison: {request.folder / 'compare.html'} and compare.md")
    return code or (FAILED if book.failures else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """A run of the comparison: the seed of an arm, which is the `number`th."""

    arm: str
    number: int
    config: RunConfig


def _finished(folder: Path, run: _Run) -> RunResult | None:
    """The result that is kept of a run; None if there is none.

    Raises:
        ValueError: it is of other settings, or damaged.
    """
    path = result_path(folder, run.arm, run.config.seed)
    if not path.exists():
        return None
    found = read_result(path)
    asked = config_hash(run.config, with_evaluation=True)
    if (found.config_hash, found.num_steps) != (asked, run.config.num_steps):
        same = found.config_hash == asked
        what = f"{found.num_steps} steps, not {run.config.num_steps}" if same else "other settings"
        raise ValueError(
            f"{path}: must be of what is asked for, it is of {what}: ask for what it was made with, "
            f"choose another --out, or delete it and {folder / 'runs' / run.config.name} to make it anew"
        )
    return found


class _Book:
    """Keeps what the runs of a series give, and writes it up; see `cluster.series.Listener`."""

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
        """Lines that begin with the arm and the seed."""
        run = self._runs[index]
        prefix = f"{run.arm} seed {run.config.seed}: "
        return StepReporter(run.config.num_steps, self._stream, prefix)

    def note(self, text: str) -> None:
        """A line of the comparison itself."""
        StepReporter(0, self._stream).note(text)

    def begins(self, index: int) -> None:
        run = self._runs[index]
        arm = f"arm {run.number} of {len(self._arms)}: {run.arm}, seed {run.config.seed}"
        self.note(f"run {index + 1} of {len(self._runs)}, {arm}")
        self._began = time.perf_counter()

    def finished(self, index: int, run_dir: Path) -> None:
        run, wall_s = self._runs[index], time.perf_counter() - self._began
        result = gather(run_dir, run.arm, run.config, wall_s)
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
        """The tables, of what there is."""
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
