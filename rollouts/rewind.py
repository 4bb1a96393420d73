"""Return to an earlier step without losing what was sampled since: groups go back to the journal.

The buffer, the only writer of rollouts/ and journal/, calls `rewind` when a run resumes from a checkpoint.
`saved_groups` reads all groups that a run has sampled, in order, to train on them without generating.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from configs.origins import POLICY
from rollouts.checkpoints import ABANDONED
from rollouts.files import make_dir_synced, move_dir_synced
from rollouts.journal import CorruptJournalError, Journal
from rollouts.schema import as_group
from rollouts.store import committed_evals, committed_steps, read_step, step_dir, verify_step
from rollouts.sums import DamagedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewound:
    """What `rewind` did: groups put back into the journal, steps set aside, and messages about damage."""

    groups_returned: int
    abandoned_steps: tuple[int, ...]
    damaged: tuple[str, ...]


def rewind(run_dir: Path, step: int, attempt: int, journal: Journal, cursor: int) -> Rewound:
    """Make `step` the last committed one, and `cursor` the first submission that may still be trained on.

    The sampled groups of every later step are written to `journal`; then the step's folder moves to
    abandoned/attempt_<attempt>/rollouts/, the last step first. Later evaluations move to its eval/. Groups of
    a damaged step are not put back, and must be sampled again. If it is killed at any point, calling it again
    completes it.

    Raises:
        ValueError: the journal has another group under the index of a returned one, or a step has another
            schema version.
        OSError: a write failed; call it again.
    """
    returned, abandoned, damaged = 0, [], []
    # The last step first, so that what remains committed never has a gap, wherever this is killed.
    for later in reversed(committed_steps(run_dir)):
        if later <= step:
            break
        try:
            verify_step(run_dir, later)
            groups = _groups_of(read_step(run_dir, later))
        except DamagedError as error:
            damaged.append(str(error))
            groups = {}
        # The journal first, the folder second: killed in between, a group is in both places and not in none.
        for index, batch in groups.items():
            if index >= cursor:
                _put_back(journal, index, batch)
                returned += 1
        _abandon(run_dir, "rollouts", later, attempt)
        abandoned.append(later)
    for later in reversed(committed_evals(run_dir)):
        if later > step:
            _abandon(run_dir, "eval", later, attempt)
    # The steps up to `step` have used or dropped these groups.
    journal.drop(index for index in journal.indexes() if index < cursor)
    return Rewound(groups_returned=returned, abandoned_steps=tuple(sorted(abandoned)), damaged=tuple(damaged))


def _groups_of(table: pa.Table) -> dict[int, pa.RecordBatch]:
    """submission_index -> the rows sampled for it, as they were journaled, ascending."""
    batch = as_group(table)
    column = batch.column("submission_index").to_numpy()
    return {int(index): batch.take(pa.array(np.flatnonzero(column == index))) for index in np.unique(column)}


def _put_back(journal: Journal, index: int, batch: pa.RecordBatch) -> None:
    # The rows of the step were verified, so a damaged file of the same group is replaced by them.
    try:
        journal.append(index, batch)
    except CorruptJournalError:
        path = journal.path(index)
        os.replace(path, path.with_name(path.name + ".bad"))
        journal.append(index, batch)


def _abandon(run_dir: Path, area: str, step: int, attempt: int) -> None:
    parent = run_dir / ABANDONED / f"attempt_{attempt}" / area
    for folder in (parent.parent.parent, parent.parent, parent):
        make_dir_synced(folder)
    move_dir_synced(step_dir(run_dir, area, step), parent)


def saved_groups(run_dir: Path) -> Iterator[pa.RecordBatch]:
    """Every sampled group that a run still has, as GROUP_SCHEMA rows: of its steps, then of its journal.

    Both in order of submission, which is also the order of training. Tempered groups are left out, because a
    step that trains on another run's rollouts does not use them.

    Raises:
        DamagedError: a step or a journal file is not what was written.
        ValueError: one has another schema version.
    """
    seen: set[int] = set()
    for step in committed_steps(run_dir):
        groups = _groups_of(read_step(run_dir, step))
        seen |= groups.keys()
        yield from filter(_has_policy_rows, groups.values())
    if (run_dir / "journal").is_dir():
        journal = Journal(run_dir / "journal")
        rest = (journal.read(index) for index in journal.indexes() if index not in seen)
        yield from filter(_has_policy_rows, rest)


def _has_policy_rows(group: pa.RecordBatch) -> bool:
    return POLICY in group.column("origin").to_pylist()
