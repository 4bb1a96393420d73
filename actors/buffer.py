"""The rollout buffer: scored groups in, training batches out, durable in between.

In: one record batch per group (`add`), written to the journal before it can be trained on. Out: an index of
the next groups (`take`), their rows (`shard`), and a committed step (`commit`). Called by the loop and by the
learner ranks, through `cluster`. A plain class, independent of Ray.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.origins import POLICY, SFT
from rollouts.columns import GROUP_SCHEMA, LEARNER_FIELDS, ROLLOUT_SCHEMA
from rollouts.files import Json, fsync_dir
from rollouts.journal import Journal
from rollouts.lock import RunLock
from rollouts.rewind import rewind, saved_groups
from rollouts.schema import as_replay, compact, renamed, to_batch, validate
from rollouts.store import commit_step, committed_steps, read_step, verify_step
from rollouts.sums import DamagedError
from rollouts.versions import NO_VERSION, row_versions, version_tokens
from trainer.step_records import Pick, Restored

_INDEX_COLUMNS: Final = (
    "submission_index",
    "group_id",
    "sample_id",
    "prompt_id",
    "domain",
    "origin",
    "reward",
    "format_tag",
    "tags",
    "answer",
    "answer_ok",
    "finish_reason",
    "spans",
    "scores",
    "score_status",
    "partition_id",
    "partition_size",
    "numbers",
)
_REQUIRED: Final = ("sample_id", "proximal_logprobs", "entropy", "advantage")
LOCK_WAIT_S: Final = 60.0
"""Wait for the lock: the buffer of a killed driver ends within seconds, and releases it then."""


@dataclass(frozen=True, slots=True)
class BufferStatus:
    """What the buffer holds.

    `waiting` are the submission indexes that can be taken, ascending; `bad_files` the damaged journal files
    that were set aside; `num_dropped` the number of groups dropped as too old.
    """

    waiting: tuple[int, ...]
    bad_files: tuple[str, ...]
    num_dropped: int


@dataclass(frozen=True, slots=True)
class _Held:
    """A group in memory. `min_version` is the oldest policy_version of its tokens, or NO_VERSION."""

    group_id: str
    min_version: int
    batch: pa.RecordBatch

    def record(self, submission_index: int) -> dict[str, Json]:
        version = None if self.min_version == NO_VERSION else self.min_version
        return {"submission_index": submission_index, "group_id": self.group_id, "min_version": version}


class BufferActor:
    """The buffer of one run, and the only writer of its `journal/` and `rollouts/`.

    It holds the journal's lock, so that the buffer of a killed driver cannot write at the same time. Step `s`
    (from 0) owns the submissions from s x submissions_per_step to below (s + 1) x submissions_per_step, and
    trains on the first of them. Submissions of earlier steps are committed or dropped. Call `reopen` or
    `rewind` before anything else.

    Raises:
        ValueError: another process still holds the journal after `lock_wait_s`.
    """

    def __init__(
        self, run_dir: str, run_id: str, submissions_per_step: int, lock_wait_s: float = LOCK_WAIT_S
    ) -> None:
        self._run_dir = Path(run_dir)
        self._run_id = run_id
        self._submissions_per_step = submissions_per_step
        self._journal = Journal(self._run_dir / "journal")
        self._lock = RunLock(self._run_dir / "journal" / ".lock", "rollout buffer")
        self._lock.acquire(lock_wait_s)
        self._num_dropped = 0
        self._bad_files: tuple[str, ...] = ()
        self._forget(0)

    def _forget(self, step: int) -> None:
        self._cursor = step * self._submissions_per_step
        self._waiting: dict[int, _Held] = {}
        self._taken: dict[int, _Held] = {}
        self._taken_rows: pa.RecordBatch | None = None
        self._take_arguments: tuple[object, ...] = ()
        self._dropped: list[dict[str, Json]] = []
        self._seen: dict[int, str] = {}

    def ready(self) -> None:
        """Return once this process holds the journal's lock (the constructor takes it)."""

    def reopen(self, step: int) -> tuple[int, ...]:
        """Load the journal's groups of steps after `step`; returns their submission indexes, ascending.

        Raises:
            ValueError: the journal holds groups of another run_id or schema version.
        """
        self._forget(step)
        self._bad_files += tuple(str(path) for path in self._journal.recover())
        indexes = self._journal.indexes()
        # The process may have died after a step's rename, before its journal files were dropped.
        self._journal.drop(index for index in indexes if index < self._cursor)
        for index in indexes:
            if index < self._cursor:
                continue
            batch = self._journal.read(index)
            try:
                self._check_run(batch)
                self._hold(index, batch)
            except ValueError as error:
                raise ValueError(f"{self._journal.path(index)}: {error}") from error
        return tuple(sorted(self._waiting))

    def rewind(self, step: int, attempt: int) -> Restored:
        """Return to the state after `step`: groups of later steps wait again, their folders are set aside."""
        self._forget(step)
        set_aside = tuple(f"{path}: damaged" for path in self._journal.recover())
        rewound = rewind(self._run_dir, step, attempt, self._journal, self._cursor)
        return Restored(
            waiting=self.reopen(step),
            abandoned_steps=rewound.abandoned_steps,
            damaged=(*rewound.damaged, *set_aside),
        )

    def adopt(self, run_dir: str) -> int:
        """Add every group of another run, renumbered from 0 in its order; returns the number of groups.

        Groups that this run already has or has used are not added again.

        Raises:
            ValueError: that run has no groups, or a damaged file.
        """
        self.reopen(self._whole_steps())
        number = -1
        for number, batch in enumerate(saved_groups(Path(run_dir))):
            self.add(_numbered(renamed(batch, self._run_id), number))
        if number < 0:
            raise ValueError(f"{run_dir}: must have rollouts to train on (rollouts/ or journal/), got none")
        return number + 1

    def _whole_steps(self) -> int:
        """The last step such that it and all steps before it are committed and undamaged."""
        for step in committed_steps(self._run_dir):
            try:
                verify_step(self._run_dir, step)
            except DamagedError:
                return step - 1
        return max(committed_steps(self._run_dir), default=0)

    def waiting(self) -> tuple[int, ...]:
        """The submission indexes that can be taken, ascending."""
        return tuple(sorted(self._waiting))

    def rewards(self, first: int, last: int) -> pa.Table:
        """submission_index and reward of waiting policy rows, of submissions from `first` to below `last`."""
        columns = ["submission_index", "reward"]
        indexes = [index for index in self.waiting() if first <= index < last]
        # What a step samples depends on the policy's own answers: refined rows of a group come after them.
        batches = [self._waiting[index].batch for index in indexes]
        mine = [batch.filter(pc.equal(batch.column("origin"), POLICY)).select(columns) for batch in batches]
        return pa.Table.from_batches(mine, pa.schema([GROUP_SCHEMA.field(name) for name in columns]))

    def close(self) -> None:
        """Release the journal's lock."""
        self._lock.release()

    def status(self) -> BufferStatus:
        """What waits, how much was dropped, and which files were set aside."""
        return BufferStatus(tuple(sorted(self._waiting)), self._bad_files, self._num_dropped)

    def add(self, batch: pa.RecordBatch) -> None:
        """Add one group durably: rows of GROUP_SCHEMA with the same submission_index and group_id.

        A group that was added before is ignored, even if it has been committed or dropped since: the call may
        be repeated.

        Raises:
            ValueError: the rows do not fit GROUP_SCHEMA, belong to another run, are not one group, or the
                submission already has another group.
            OSError: the journal could not be written; the group is not added, and may be added again.
        """
        if batch.num_rows == 0:
            raise ValueError("a group must have at least one row, got none")
        index, group_id = batch.column("submission_index")[0].as_py(), batch.column("group_id")[0].as_py()
        if index < self._cursor:
            return
        # The same group may come again: a caller repeats the call when it did not get the answer.
        known = self._seen.get(index)
        if known is not None:
            if known != group_id:
                raise ValueError(f"submission {index} must keep its group {known!r}, got {group_id!r}")
            return
        validate(batch)
        own = compact(batch)
        self._check_run(own)
        self._journal.append(index, own)  # durable first: a group in memory alone must never be trained on
        self._hold(index, own)

    def _check_run(self, batch: pa.RecordBatch) -> None:
        runs = batch.column("run_id").unique().to_pylist()
        if runs != [self._run_id]:
            raise ValueError(f"run_id must be {self._run_id!r} in every row, got {runs[:5]}")

    def _hold(self, index: int, batch: pa.RecordBatch) -> None:
        group_id = batch.column("group_id")[0].as_py()
        self._waiting[index] = _Held(group_id, int(row_versions(batch).min()), batch)
        self._seen[index] = group_id

    def take(
        self,
        num_groups: int,
        min_version: int,
        replay: Sequence[Pick] = (),
        sft: pa.RecordBatch | None = None,
    ) -> pa.Table | None:
        """The index of the next `num_groups` groups in order of submission; None if one of them is missing.

        Groups with a token sampled by a policy older than `min_version` are dropped and counted, here and
        in the next commit; they may be submitted again. The groups of earlier steps in `replay` are added as
        rows of origin replay; missing and damaged ones are left out. The rows of `sft`, of origin sft, come
        last. The index has one row per completion: `row` (for `shard`), submission_index, group_id,
        sample_id, prompt_id, domain, origin, num_prompt_tokens (of the teacher's prompt if it is longer),
        num_tokens, num_loss_tokens, min_version (null without versions), version_tokens (the sum of its loss
        tokens' versions), reward, format_tag, answer, answer_ok, finish_reason, spans, scores, score_status.
        Taken groups stay taken until `commit`; a repeated call with the same arguments returns the same
        index.

        Raises:
            ValueError: num_groups is not positive, other groups are taken and not committed yet, or the rows
                of `sft` do not fit GROUP_SCHEMA, or belong to another run or another origin.
        """
        if num_groups < 1:
            raise ValueError(f"num_groups must be 1 or more, got {num_groups}")
        arguments = (num_groups, min_version, tuple(replay), sft)
        if self._taken:
            # The first answer was lost. Taking the next groups instead would skip these for ever.
            if arguments == self._take_arguments:
                return _index_of(self._open_rows())
            raise ValueError(f"the groups taken before must be committed first, got {len(self._taken)} open")
        added = self._checked_sft(sft)
        self._drop_older(min_version)
        chosen = range(self._cursor, self._cursor + num_groups)
        if not self._waiting.keys() >= set(chosen):
            return None
        self._taken, self._take_arguments = {index: self._waiting.pop(index) for index in chosen}, arguments
        own = [held.batch for held in self._taken.values()]
        self._taken_rows = pa.concat_batches([*own, *self._replayed(replay), *added])
        return _index_of(self._taken_rows)

    def _checked_sft(self, rows: pa.RecordBatch | None) -> tuple[pa.RecordBatch, ...]:
        if rows is None or not rows.num_rows:
            return ()
        validate(rows)
        self._check_run(rows)
        origins = rows.column("origin").unique().to_pylist()
        if origins != [SFT]:
            raise ValueError(f"supervised rows must have origin {SFT}, got {origins}")
        return (rows,)

    def _drop_older(self, min_version: int) -> None:
        old = [index for index, held in self._waiting.items() if held.min_version < min_version]
        for index in old:
            self._dropped.append(self._waiting.pop(index).record(index))
            # Forgotten, so that the submission can be sampled again with newer weights.
            del self._seen[index]
        self._num_dropped += len(old)
        if old:
            self._journal.drop(old)

    def _replayed(self, picks: Sequence[Pick]) -> Iterator[pa.RecordBatch]:
        now = self._cursor // self._submissions_per_step + 1
        for step in sorted({pick.step for pick in picks}):
            try:
                rows = read_step(self._run_dir, step, GROUP_SCHEMA.names)
            except DamagedError:  # the step trains on fewer groups, which the loop reports
                continue
            for pick in picks:
                if pick.step == step:
                    mine = as_replay(
                        rows.filter(pc.equal(rows.column("submission_index"), pick.submission_index)), now
                    )
                    if mine.num_rows:
                        yield mine

    def shard(self, row_numbers: Sequence[int]) -> pa.RecordBatch:
        """A copy of the taken rows with these numbers (`row` in the index), in this order.

        Raises:
            ValueError: nothing is taken, or a number is out of range.
        """
        rows = self._open_rows()
        numbers = np.asarray(row_numbers, dtype=np.int64)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= rows.num_rows):
            raise ValueError(
                f"row numbers must be within 0..{rows.num_rows - 1}, got {numbers.min()}..{numbers.max()}"
            )
        return rows.take(pa.array(numbers))

    def _open_rows(self) -> pa.RecordBatch:
        if self._taken_rows is None:
            raise ValueError("groups must be taken first, got none")
        return self._taken_rows

    def commit(self, step: int, columns: pa.Table, summary: Mapping[str, Json]) -> float:
        """Join the taken rows with the learner's columns and commit them as step `step`; returns seconds.

        `columns` has sample_id, proximal_logprobs, entropy, advantage and any other learner column, with one
        row per trained sample in any order. Absent columns are null; `step` is filled in here. Rows without a
        reward may be missing. `groups_used`, `groups_dropped` and `collection_order` are added to `summary`.
        The journal files of those groups are dropped once the step is durable.

        A step that is already committed is not written again, so the call may be repeated.

        Raises:
            ValueError: nothing is taken, or `columns` does not fit the taken rows.
            OSError: the step could not be written; the groups stay taken, and commit may be called again.
        """
        began = time.perf_counter()
        if step in committed_steps(self._run_dir):  # the first call did commit, but its result was lost
            verify_step(self._run_dir, step)
            # The rename must be durable before `reopen` drops the only other copy of the groups.
            fsync_dir(self._run_dir / "rollouts")
            self.reopen(step)
            return time.perf_counter() - began
        table = _join(self._open_rows(), columns, step)
        validate(table)
        committed = list(self._taken)
        groups: dict[str, Json] = {
            "groups_used": [held.record(index) for index, held in self._taken.items()],
            "groups_dropped": self._dropped,
            "collection_order": committed,
        }
        commit_step(self._run_dir, step, table, {**summary, **groups})
        self._taken, self._taken_rows, self._dropped = {}, None, []
        self._cursor = step * self._submissions_per_step
        self._seen = {index: name for index, name in self._seen.items() if index >= self._cursor}
        self._journal.drop(committed)
        return time.perf_counter() - began


def _numbered(batch: pa.RecordBatch, submission_index: int) -> pa.RecordBatch:
    column = pa.repeat(pa.scalar(submission_index, pa.int64()), batch.num_rows)
    return batch.set_column(batch.schema.get_field_index("submission_index"), "submission_index", column)


def _index_of(rows: pa.RecordBatch) -> pa.Table:
    versions = row_versions(rows)
    columns: dict[str, pa.Array] = {"row": pa.array(np.arange(rows.num_rows, dtype=np.int64))}
    columns |= {name: rows.column(name) for name in _INDEX_COLUMNS}
    prompts = (pc.list_value_length(rows.column(name)) for name in ("prompt_ids", "teacher_prompt_ids"))
    columns["num_prompt_tokens"] = pc.max_element_wise(*prompts)  # nulls are skipped
    columns["num_tokens"] = pc.list_value_length(rows.column("token_ids"))
    masks = rows.column("loss_mask")
    # A sum per row without a loop in Python: a step can have millions of tokens.
    row_of_token = np.repeat(np.arange(rows.num_rows), pc.list_value_length(masks).to_numpy())
    counted = pc.list_flatten(masks).to_numpy(zero_copy_only=False)
    columns["num_loss_tokens"] = pa.array(np.bincount(row_of_token, counted, rows.num_rows).astype(np.int64))
    columns["min_version"] = pa.array(versions, mask=versions == NO_VERSION)
    columns["version_tokens"] = pa.array(version_tokens(rows))
    return pa.table(columns)


def _join(rows: pa.RecordBatch, columns: pa.Table, step: int) -> pa.Table:
    """`rows` with the learner's columns, matched by sample_id. In ROLLOUT_SCHEMA, not yet validated."""
    known = {field.name for field in LEARNER_FIELDS} | {"sample_id"}
    for name in columns.schema.names:
        if name not in known:
            raise ValueError(f"learner columns must be among {', '.join(sorted(known))}, got {name!r}")
    for name in _REQUIRED:
        if name not in columns.schema.names:
            raise ValueError(f"learner columns must include {name}, got {columns.schema.names}")
    given = to_batch(columns)
    ids, scored = rows.column("sample_id"), given.column("sample_id")
    if pc.count_distinct(scored).as_py() != len(scored):
        raise ValueError("learner columns must have one row per sample_id, got one twice")
    unknown = scored.filter(pc.invert(pc.is_in(scored, value_set=ids)))
    if len(unknown):
        raise ValueError(f"learner columns must be of taken samples, got sample_id {unknown[0].as_py()!r}")
    position = pc.index_in(ids, value_set=scored)
    arrays = list(rows.columns)
    for field in LEARNER_FIELDS:
        if field.name == "step":
            arrays.append(pa.repeat(pa.scalar(step, field.type), rows.num_rows))
        elif field.name in given.schema.names:
            # Null for rows that the learner did not get, such as those without a reward.
            arrays.append(_fit(given.column(field.name), field).take(position))
        else:
            arrays.append(pa.nulls(rows.num_rows, field.type))
    return pa.Table.from_arrays(arrays, schema=ROLLOUT_SCHEMA)


def _fit(column: pa.Array, field: pa.Field) -> pa.Array:
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"learner column {field.name} must be {field.type}, got {column.type}: {error}"
        ) from error
