"""Is damage always detected? `python -m benchmarks.torn_files RUN_DIR` cuts and flips every durable file.

In a copy of the run, each file of checkpoints/, rollouts/, eval/ and journal/ is cut short at 50 places and
has one bit flipped at 200, one change at a time, and is then read as a run reads it. "detected" means that
every reader refused it; "previous used" that resuming skipped the newest checkpoint and used the one before;
"silent" that a reader accepted it. As a control each unchanged file must be accepted. Prints a Markdown table
and writes the counts as JSON; exit code 1 if a change was silent or a control refused, 2 if the folder holds
nothing to try.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rollouts.checkpoints import checkpoint_dir, checkpoint_steps, newest_checkpoint, read_checkpoint
from rollouts.files import Json, write_json_atomic
from rollouts.journal import Journal
from rollouts.store import (
    PART,
    SUMMARY,
    committed_evals,
    committed_steps,
    read_eval,
    read_step,
    read_summary,
    step_dir,
    verify_step,
)
from rollouts.sums import check_sums

AREAS = ("checkpoints", "rollouts", "eval", "journal")
OUTCOMES = ("detected", "previous used", "silent")
Reader = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One file, what it is called in the table, and the readers that must each refuse it.

    `newest_step` is its step if it belongs to the newest checkpoint: resuming reads that one.
    """

    path: Path
    kind: str
    readers: Sequence[Reader] = ()
    newest_step: int | None = None


def subjects(run_dir: Path) -> Iterator[Subject]:
    """Every durable file of a run."""
    checkpoints = checkpoint_steps(run_dir)
    for step in checkpoints:
        newest = step if step == checkpoints[-1] else None
        for path in sorted(checkpoint_dir(run_dir, step).iterdir()):
            name = "*.safetensors" if path.suffix == ".safetensors" else path.name
            kind = f"{'checkpoints' if newest is None else 'newest checkpoint'}: {name}"
            reader = partial(read_checkpoint, run_dir, step)
            yield Subject(path=path, kind=kind, readers=(reader,), newest_step=newest)
    for step in committed_steps(run_dir):
        own = {PART: partial(read_step, run_dir, step), SUMMARY: partial(read_summary, run_dir, step)}
        yield from _step_files(run_dir, "rollouts", step, partial(verify_step, run_dir, step), own)
    for step in committed_evals(run_dir):
        verify = partial(check_sums, step_dir(run_dir, "eval", step))
        yield from _step_files(run_dir, "eval", step, verify, {PART: partial(read_eval, run_dir, step)})
    if (run_dir / "journal").is_dir():
        journal = Journal(run_dir / "journal")
        for index in journal.indexes():
            reader = partial(journal.read, index)
            yield Subject(path=journal.path(index), kind="journal: *.arrow", readers=(reader,))


def _step_files(
    run_dir: Path, area: str, step: int, verify: Reader, own: Mapping[str, Reader]
) -> Iterator[Subject]:
    for path in sorted(step_dir(run_dir, area, step).iterdir()):
        readers = (verify, own[path.name]) if path.name in own else (verify,)
        yield Subject(path=path, kind=f"{area}: {path.name}", readers=readers)


@contextmanager
def cut(path: Path, size: int) -> Iterator[None]:
    """The file is cut to `size` bytes within the block."""
    with path.open("r+b") as file:
        file.seek(size)
        tail = file.read()
        file.truncate(size)
        file.flush()
        yield
        file.seek(size)
        file.write(tail)


@contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """Bit number `bit` of the file is flipped within the block."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        (value,) = os.pread(descriptor, 1, bit // 8)
        os.pwrite(descriptor, bytes([value ^ (1 << bit % 8)]), bit // 8)
        yield
        os.pwrite(descriptor, bytes([value]), bit // 8)
    finally:
        os.close(descriptor)


def outcome(run_dir: Path, subject: Subject) -> str:
    """The outcome of reading the file as it is now."""
    for reader in subject.readers:
        try:
            reader()
        # Every reader must refuse the file: one that takes it would pass the damage on.
        except ValueError:
            continue
        return "silent"
    if subject.newest_step is None:
        return "detected"
    try:
        manifest, messages = newest_checkpoint(run_dir)
    except ValueError:  # there is no other
        return "detected"
    passed_over = manifest is not None and manifest.step < subject.newest_step and messages
    return "previous used" if passed_over else "silent"


def is_read(subject: Subject) -> bool:
    """The control: whether all readers take the file."""
    try:
        for reader in subject.readers:
            reader()
    except ValueError as error:
        print(f"control refused: {error}", file=sys.stderr)
        return False
    return True


def try_file(run_dir: Path, subject: Subject, num_cuts: int, num_flips: int, seed: int) -> Counter[str]:
    """Counts of "<change>/<outcome>" for one file, and "files", "bytes", "controls read"."""
    size = subject.path.stat().st_size
    places = random.Random(f"{seed} {subject.path.relative_to(run_dir)}")
    counts = Counter({"files": 1, "bytes": size, "controls read": int(is_read(subject))})
    # every file is also cut to 0 bytes and by its last byte
    for length in {0, size - 1, *places.sample(range(size), min(size, num_cuts))}:
        with cut(subject.path, length):
            counts[f"cut/{outcome(run_dir, subject)}"] += 1
    for bit in places.sample(range(8 * size), min(8 * size, num_flips)):
        with flipped(subject.path, bit):
            counts[f"flip/{outcome(run_dir, subject)}"] += 1
    # The changes were undone; a file that cannot be read now would spoil the cases after it.
    counts["controls read after"] = int(is_read(subject))
    return counts


def table(kinds: Mapping[str, Counter[str]]) -> str:
    """One row for each kind of file, and their sum."""
    columns = [f"{change}/{name}" for change in ("cut", "flip") for name in OUTCOMES]
    lines = [
        "| file | files | read as they were | "
        + " | ".join(column.replace("/", ", ") for column in columns)
        + " |",
        "|---|" + "---:|" * (len(columns) + 2),
    ]
    for kind, counts in [*kinds.items(), ("all", total(kinds))]:
        cells = [str(counts["files"]), str(counts["controls read"]), *(str(counts[name]) for name in columns)]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def total(kinds: Mapping[str, Counter[str]]) -> Counter[str]:
    """All kinds together."""
    return sum(kinds.values(), Counter())


def torn_files(run_dir: Path, num_cuts: int, num_flips: int, seed: int) -> dict[str, Counter[str]]:
    """Counts by kind of file, measured on a copy that is removed again."""
    kinds: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="torn-files-") as folder:
        copy = Path(folder)
        for area in AREAS:
            if (run_dir / area).is_dir():
                shutil.copytree(run_dir / area, copy / area)
        for subject in subjects(copy):
            counts = try_file(copy, subject, num_cuts, num_flips, seed)
            kinds[subject.kind] = kinds.get(subject.kind, Counter()) + counts
    return kinds


def passed(counts: Counter[str]) -> bool:
    """Nothing silent, and every file read before its changes and after they were taken back."""
    silent = counts["cut/silent"] + counts["flip/silent"]
    return not silent and counts["controls read"] == counts["controls read after"] == counts["files"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and write the JSON; the exit code is the verdict."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--cuts", type=int, default=50, help="places at which each file is cut short")
    parser.add_argument("--flips", type=int, default=200, help="bits of each file that are turned over")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("torn_files.json"), help="where the counts go")
    given = parser.parse_args(arguments)
    kinds = torn_files(given.run_dir, given.cuts, given.flips, given.seed)
    if not kinds:
        print(f"{given.run_dir}: must hold checkpoints, steps or a journal, got none", file=sys.stderr)
        return 2
    print(table(kinds))
    record: dict[str, Json] = {kind: dict(counts) for kind, counts in kinds.items()}
    write_json_atomic(given.json, {"run": str(given.run_dir), "seed": given.seed, "kinds": record})
    return 0 if passed(total(kinds)) else 1


if __name__ == "__main__":
    sys.exit(main())
