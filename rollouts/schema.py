"""Build and check rows of the rollout schema: groups and supervised examples in, Arrow batches out.

`group_to_batch` is called by the rollout producer, `sft_batch` by pretraining, `validate` before rows become
durable (by the buffer), `compact` before a batch is sent to another process. `as_group`, `as_replay` and
`renamed` turn committed rows into rows to train on again: when a run returns to a checkpoint, when a step
replays groups of earlier ones, and when a run trains on another's rollouts. `named_for_step` gives supervised
rows the ids of a step. The columns are in `rollouts.columns`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from configs.origins import ORIGINS, REPLAY, SFT, origins_where
from rollouts.columns import (
    GROUP_SCHEMA,
    ROLLOUT_SCHEMA,
    SCHEMA_VERSION,
    SCORED_COLUMNS,
    TOKEN_COLUMNS,
    check_version,
    with_added_columns,
)
from rollouts.records import Group, Sample

__all__ = [
    "GROUP_SCHEMA",
    "ROLLOUT_SCHEMA",
    "SCHEMA_VERSION",
    "as_group",
    "as_replay",
    "compact",
    "group_to_batch",
    "named_for_step",
    "renamed",
    "sft_batch",
    "to_batch",
    "validate",
]

IntArray = npt.NDArray[np.int64]
# Arrow arrays, made once: inferring the type of Python strings in each call costs more than the comparison.
_ORIGINS = pa.array(ORIGINS, pa.string())
_SAMPLED = pa.array(origins_where(lambda spec: spec.sampled == "same_context"), pa.string())
"""Origins whose tokens a policy of the run sampled: they have behavior logprobs and versions."""
_NOT_SAMPLED = pa.array(origins_where(lambda spec: spec.sampled == "no"), pa.string())
_JOURNALED = pa.array(origins_where(lambda spec: spec.journaled), pa.string())
_TAUGHT = pa.array(origins_where(lambda spec: spec.taught), pa.string())
_REPLAYABLE = pa.array(origins_where(lambda spec: spec.replayable), pa.string())
_Values = Mapping[str, Sequence[object] | pa.Array]


def group_to_batch(group: Group, run_id: str) -> pa.RecordBatch:
    """The G samples of `group` as G rows of GROUP_SCHEMA, in order.

    Tokens are in the loss unless `Completion.loss_mask` is false; there behavior_logprobs are null. A row of
    origin sft has no behavior_logprobs at all.

    Raises:
        ValueError: a value does not fit its column (a token id over 31 bits, text that is not Unicode, ...).
    """
    submission, samples = group.submission, group.samples
    prompt, sampling, num_rows = submission.prompt, submission.sampling, len(samples)
    repeated: dict[str, object] = {
        "run_id": run_id,
        "submission_index": submission.submission_index,
        "group_id": submission.group_id,
        "prompt_id": prompt.prompt_id,
        "domain": prompt.domain,
        "epoch": prompt.epoch,
        "prompt_ids": submission.prompt_ids,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
    }
    columns: dict[str, Sequence[object]] = {name: [value] * num_rows for name, value in repeated.items()}
    columns |= _sample_columns(samples)
    return _from_values(columns, num_rows, f"group {submission.group_id}")


def _sample_columns(samples: Sequence[Sample]) -> dict[str, Sequence[object]]:
    completions = [sample.completion for sample in samples]
    return {
        "sample_id": [c.sample_id for c in completions],
        "parent_id": [s.parent_id for s in samples],
        "behavior_prompt_ids": [s.behavior_prompt_ids for s in samples],
        "origin": [s.origin for s in samples],
        "seed": [c.seed for c in completions],
        "token_ids": [c.token_ids for c in completions],
        "loss_mask": [c.loss_mask or [True] * len(c.token_ids) for c in completions],
        "text": [c.text for c in completions],
        "finish_reason": [c.finish_reason for c in completions],
        "behavior_logprobs": [_behavior_logprobs(sample) for sample in samples],
        "versions": [
            [{"start": start, "version": version} for start, version in c.versions] for c in completions
        ],
        "format_tag": [s.tags.get("format") for s in samples],
        "tags": [list(s.tags.items()) for s in samples],
        "scores": [list(s.scores.items()) for s in samples],
        "score_status": [list(s.score_status.items()) for s in samples],
        "reward_vector": [s.reward_vector for s in samples],
        "reward": [s.reward for s in samples],
        "spans": [[{"label": p.label, "start": p.start, "end": p.end} for p in s.spans] for s in samples],
        "answer": [s.answer for s in samples],
        "answer_ok": [s.answer_ok for s in samples],
        "partition_id": [s.partition.partition_id if s.partition else None for s in samples],
        "partition_size": [s.partition.size if s.partition else None for s in samples],
        "critique": [s.critique.text if s.critique else None for s in samples],
        "critique_kind": [s.critique.kind if s.critique else None for s in samples],
        "critique_verdict": [(s.critique.verdict or None) if s.critique else None for s in samples],
        "critique_leak": [s.critique.leaked if s.critique else None for s in samples],
        "numbers": [list(s.numbers.items()) or None for s in samples],
        "texts": [list(s.texts.items()) or None for s in samples],
        "teacher_prompt_ids": [s.teacher_prompt_ids for s in samples],
    }


def _behavior_logprobs(sample: Sample) -> Sequence[float | None] | None:
    """None for a completion that was not sampled; entries are None where `loss_mask` is false."""
    completion = sample.completion
    # Null for the whole row, not a row of zeros: a probability of 1 for each token would be read as a fact.
    if ORIGINS[sample.origin].sampled == "no" or (
        ORIGINS[sample.origin].sampled == "other_context" and not completion.versions
    ):
        return None
    if completion.loss_mask is None:
        return completion.behavior_logprobs
    pairs = zip(completion.behavior_logprobs, completion.loss_mask, strict=True)
    return [logprob if sampled else None for logprob, sampled in pairs]


def sft_batch(
    run_id: str,
    *,
    prompt_ids: Sequence[Sequence[int]],
    token_ids: Sequence[Sequence[int]],
    text: Sequence[str],
    domain: Sequence[str],
    format_tag: Sequence[str | None],
    prompt_id: Sequence[str] | None = None,
    first_index: int = 0,
    epoch: int = 0,
) -> pa.RecordBatch:
    """N supervised examples as rows of GROUP_SCHEMA with origin sft; every sequence has N entries.

    Row i is a group by itself, with submission_index `first_index + i` and ids "sft-<submission_index>";
    `prompt_id` gives other names to the prompts. Rows have no behavior logprobs, no versions, no scores and
    no reward, and temperature 1.

    Raises:
        ValueError: the sequences differ in length, or a value does not fit its column.
    """
    num_rows = len(token_ids)
    names = [f"sft-{index}" for index in range(first_index, first_index + num_rows)]
    given = {"prompt_ids": prompt_ids, "text": text, "domain": domain, "format_tag": format_tag}
    given["prompt_id"] = names if prompt_id is None else prompt_id
    _check_lengths(given, num_rows)
    tokens = pa.array(token_ids, GROUP_SCHEMA.field("token_ids").type)
    ids = pa.array(names, pa.string())
    columns: dict[str, Sequence[object] | pa.Array] = {
        **_sft_constants(run_id, epoch, num_rows),
        **given,
        "submission_index": pa.array(np.arange(first_index, first_index + num_rows, dtype=np.int64)),
        "group_id": ids,
        "sample_id": ids,
        "token_ids": tokens,
        "loss_mask": _all_true_like(tokens),
        "max_tokens": pc.list_value_length(tokens),
        "tags": [[] if tag is None else [("format", tag)] for tag in format_tag],
    }
    return _from_values(columns, num_rows, "sft rows")


def _sft_constants(run_id: str, epoch: int, num_rows: int) -> dict[str, Sequence[object] | pa.Array]:
    """The columns that have the same value in every supervised row."""
    constants: dict[str, object] = {
        "run_id": run_id,
        "epoch": epoch,
        "origin": SFT,
        "seed": 0,
        "finish_reason": "stop",
        "temperature": 1.0,
        "top_p": 1.0,
    }
    columns = {
        name: pa.repeat(pa.scalar(value, GROUP_SCHEMA.field(name).type), num_rows)
        for name, value in constants.items()
    }
    empty: Sequence[object] = [[]] * num_rows
    return columns | dict.fromkeys(("versions", "scores", "score_status", "reward_vector", "spans"), empty)


def _check_lengths(given: Mapping[str, Sequence[object]], num_rows: int) -> None:
    for name, values in given.items():
        if len(values) != num_rows:
            raise ValueError(f"{name} must have {num_rows} entries like token_ids, got {len(values)}")


def _all_true_like(lists: pa.ListArray) -> pa.ListArray:
    """A list<bool> array with the lengths of `lists` (which has no nulls and no offset), all true."""
    return pa.ListArray.from_arrays(lists.offsets, pa.array(np.ones(len(lists.values), dtype=np.bool_)))


def _from_values(columns: _Values, num_rows: int, source: str) -> pa.RecordBatch:
    """Rows of GROUP_SCHEMA; a column not given is null."""
    arrays = []
    for field in GROUP_SCHEMA:
        values = columns.get(field.name)
        if values is None:
            assert field.nullable, f"no values for {field.name}"
            arrays.append(pa.nulls(num_rows, field.type))
            continue
        try:
            arrays.append(values if isinstance(values, pa.Array) else pa.array(values, field.type))
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{source}: column {field.name} must be {field.type}: {error}") from error
    return pa.RecordBatch.from_arrays(arrays, schema=GROUP_SCHEMA)


def as_group(rows: pa.Table | pa.RecordBatch) -> pa.RecordBatch:
    """The groups in committed rows as they were in the journal: GROUP_SCHEMA, in the same order.

    Rows that were added by the step (replay, sft) and learner columns are left out.

    Raises:
        ValueError: a column of GROUP_SCHEMA is missing or has another type, or another schema version.
    """
    batch = to_batch(rows) if isinstance(rows, pa.Table) else rows
    check_version(batch.schema.metadata, "rows")
    # Rows of an earlier version lack the columns that were added since.
    batch = with_added_columns(batch)
    own = batch.select([name for name in GROUP_SCHEMA.names if name in batch.schema.names])
    _check_schema(own.schema, GROUP_SCHEMA)
    kept = own.filter(pc.is_in(own.column("origin"), value_set=_JOURNALED))
    return pa.RecordBatch.from_arrays(kept.columns, schema=GROUP_SCHEMA)


def as_replay(rows: pa.Table | pa.RecordBatch, step: int) -> pa.RecordBatch:
    """Committed rows as rows of origin replay, to be trained on again in step `step`.

    parent_id is the sample they repeat; sample_id and group_id become "replay-<step>-<original id>", so that
    a group that several steps replay has different ids in each. Behavior logprobs, versions, scores, tags,
    rewards and submission_index do not change. Only rows of replayable origins are kept: refined rows were
    sampled under another context, so there is no importance ratio to their sampler.

    Raises:
        ValueError: as `as_group`.
    """
    groups = as_group(rows)
    batch = groups.filter(pc.is_in(groups.column("origin"), value_set=_REPLAYABLE))
    names = {name: _prefixed(f"replay-{step}-", batch.column(name)) for name in ("sample_id", "group_id")}
    origin = pa.repeat(pa.scalar(REPLAY, pa.string()), batch.num_rows)
    return _with_columns(batch, {**names, "parent_id": batch.column("sample_id"), "origin": origin})


def named_for_step(rows: pa.RecordBatch, step: int) -> pa.RecordBatch:
    """Rows of origin sft with sample_id and group_id "sft-<step>-<submission_index>".

    An example that several steps train on has different ids in each.
    """
    names = _prefixed(f"sft-{step}-", rows.column("submission_index").cast(pa.string()))
    return _with_columns(rows, {"sample_id": names, "group_id": names})


def renamed(batch: pa.RecordBatch, run_id: str) -> pa.RecordBatch:
    """The same rows with another `run_id`."""
    return _with_columns(batch, {"run_id": pa.repeat(pa.scalar(run_id, pa.string()), batch.num_rows)})


def _prefixed(prefix: str, names: pa.StringArray) -> pa.StringArray:
    return pc.binary_join_element_wise(pa.scalar(prefix, pa.string()), names, pa.scalar("", pa.string()))


def _with_columns(batch: pa.RecordBatch, columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
    arrays = [columns.get(name, batch.column(name)) for name in batch.schema.names]
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


def compact(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A copy of the rows in new buffers.

    A slice shares its parent's buffers, and all of them are serialized with it: call this before a batch is
    sent to another process.
    """
    # Arrow has no copy of a slice; `take` always writes new buffers.
    return batch.take(pa.array(np.arange(batch.num_rows, dtype=np.int64)))


def to_batch(table: pa.Table) -> pa.RecordBatch:
    """All rows of `table` as one record batch, which may be empty."""
    columns = []
    for column in table.columns:
        joined = column.combine_chunks()
        columns.append(pa.concat_arrays(joined.chunks) if isinstance(joined, pa.ChunkedArray) else joined)
    return pa.RecordBatch.from_arrays(columns, schema=table.schema)


def validate(batch: pa.RecordBatch | pa.Table) -> None:
    """Check rows against ROLLOUT_SCHEMA if they have a `step` column, else against GROUP_SCHEMA.

    Raises:
        ValueError: a rule is broken; the message names the column and the first row, with its sample_id.
    """
    rows = to_batch(batch) if isinstance(batch, pa.Table) else batch
    expected = ROLLOUT_SCHEMA if "step" in rows.schema.names else GROUP_SCHEMA
    _check_schema(rows.schema, expected)
    for field, column in zip(expected, rows.columns, strict=True):
        if not field.nullable and column.null_count:
            _fail(rows, field.name, column.is_null(), "must not be null")
    _check_ids(rows)
    lengths = _lengths(rows.column("token_ids"))
    _check_token_columns(rows, lengths)
    _check_behavior(rows)
    _check_rewards(rows)
    _check_versions(rows, lengths)
    _check_spans(rows, lengths)
    _check_teacher(rows)
    if expected is ROLLOUT_SCHEMA:
        for name in SCORED_COLUMNS:
            missing = pc.and_(rows.column(name).is_null(), rows.column("reward").is_valid())
            _fail(rows, name, missing, "must not be null where there is a reward")


def _check_schema(schema: pa.Schema, expected: pa.Schema) -> None:
    check_version(schema.metadata, "rows")
    if schema.equals(expected):
        return
    for field in expected:
        if field.name not in schema.names:
            raise ValueError(f"column {field.name} must be present, got columns {schema.names}")
        kind = schema.field(field.name).type
        if not kind.equals(field.type):
            raise ValueError(f"column {field.name} must have type {field.type}, got {kind}")
    unknown = [name for name in schema.names if name not in expected.names]
    if unknown:
        raise ValueError(f"column {unknown[0]} must be one of rollouts/columns.py, got an unknown name")
    if schema.names != expected.names:
        raise ValueError(f"columns must be in the order of rollouts/columns.py, got {schema.names}")


def _check_ids(rows: pa.RecordBatch) -> None:
    unknown = pc.invert(pc.is_in(rows.column("origin"), value_set=_ORIGINS))
    _fail(rows, "origin", unknown, f"must be one of {', '.join(ORIGINS)}")
    names = rows.column("sample_id")
    if pc.count_distinct(names).as_py() != rows.num_rows:
        first = pc.index_in(names, value_set=names).to_numpy()
        _fail(rows, "sample_id", pa.array(first != np.arange(rows.num_rows)), "must be unique")


def _check_token_columns(rows: pa.RecordBatch, lengths: IntArray) -> None:
    for name in TOKEN_COLUMNS:
        if name not in rows.schema.names:
            continue
        column = rows.column(name)
        wrong = (_lengths(column) != lengths) & column.is_valid().to_numpy(zero_copy_only=False)
        _fail(rows, name, pa.array(wrong), "must have as many entries as token_ids")


def _check_behavior(rows: pa.RecordBatch) -> None:
    column, origin = rows.column("behavior_logprobs"), rows.column("origin")
    extra = pc.and_(column.is_valid(), pc.is_in(origin, value_set=_NOT_SAMPLED))
    _fail(rows, "behavior_logprobs", extra, f"must be null for {' and '.join(_NOT_SAMPLED.to_pylist())}")
    missing = pc.and_(column.is_null(), pc.is_in(origin, value_set=_SAMPLED))
    _fail(rows, "behavior_logprobs", missing, f"must not be null for {', '.join(_SAMPLED.to_pylist())}")
    present = pc.indices_nonzero(column.is_valid())
    kept = column if len(present) == rows.num_rows else column.take(present)
    masks = rows.column("loss_mask")
    masks = masks if len(present) == rows.num_rows else masks.take(present)
    wrong = pc.not_equal(pc.list_flatten(kept).is_valid(), pc.list_flatten(masks)).fill_null(True)
    if pc.any(wrong).as_py():
        parents = np.repeat(present.to_numpy(), _lengths(kept))
        row = int(parents[pc.index(wrong, True).as_py()])
        raise _row_error(rows, "behavior_logprobs", row, "must be null exactly where loss_mask is false")


def _check_rewards(rows: pa.RecordBatch) -> None:
    infinite = pc.invert(pc.is_finite(rows.column("reward"))).fill_null(False)
    _fail(rows, "reward", infinite, "must be finite or null")


def _check_versions(rows: pa.RecordBatch, lengths: IntArray) -> None:
    column = rows.column("versions")
    parents = np.repeat(np.arange(rows.num_rows), _lengths(column))
    starts = pc.struct_field(pc.list_flatten(column), "start").to_numpy(zero_copy_only=False)
    is_first = np.diff(parents, prepend=-1) != 0
    wrong = np.where(is_first, starts != 0, np.diff(starts, prepend=0) <= 0)
    wrong |= starts >= np.maximum(lengths[parents], 1)
    if wrong.any():
        row = int(parents[int(np.argmax(wrong))])
        raise _row_error(rows, "versions", row, "must start at token 0, ascend, and stay within token_ids")
    sampled = pc.is_in(rows.column("origin"), value_set=_SAMPLED).to_numpy(zero_copy_only=False)
    bare = sampled & (lengths > 0) & (_lengths(column) == 0)
    _fail(rows, "versions", pa.array(bare), "must name the policy_version of sampled tokens")


def _check_spans(rows: pa.RecordBatch, lengths: IntArray) -> None:
    column = rows.column("spans")
    parents = np.repeat(np.arange(rows.num_rows), _lengths(column))
    if not len(parents):
        return
    flat = pc.list_flatten(column)
    starts = pc.struct_field(flat, "start").to_numpy(zero_copy_only=False)
    ends = pc.struct_field(flat, "end").to_numpy(zero_copy_only=False)
    wrong = ~((starts >= 0) & (starts <= ends) & (ends <= lengths[parents]))
    if wrong.any():
        row = int(parents[int(np.argmax(wrong))])
        raise _row_error(rows, "spans", row, "must satisfy 0 <= start <= end <= number of tokens")


def _check_teacher(rows: pa.RecordBatch) -> None:
    column = rows.column("teacher_prompt_ids")
    taught = pc.is_in(rows.column("origin"), value_set=_TAUGHT)
    names = ", ".join(_TAUGHT.to_pylist())
    bare = pc.and_(taught, pa.array(_lengths(column) == 0))
    _fail(rows, "teacher_prompt_ids", bare, f"must have the teacher's prompt for {names}")
    extra = pc.and_(pc.invert(taught), column.is_valid())
    _fail(rows, "teacher_prompt_ids", extra, f"must be null for origins other than {names}")


def _lengths(column: pa.ListArray) -> IntArray:
    """Entries of each row, int64 [N]; 0 for a null row."""
    return pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def _fail(rows: pa.RecordBatch, column: str, wrong: pa.BooleanArray, rule: str) -> None:
    """Raise a ValueError for the first row where `wrong` is true, if there is one."""
    row = pc.index(wrong, True).as_py()
    if row >= 0:
        raise _row_error(rows, column, row, rule)


def _row_error(rows: pa.RecordBatch, column: str, row: int, rule: str) -> ValueError:
    value = repr(rows.column(column)[row].as_py())
    value = value if len(value) <= 120 else value[:117] + "..."
    sample_id = rows.column("sample_id")[row].as_py()
    return ValueError(f"row {row} (sample_id {sample_id!r}), column {column}: {rule}, got {value}")
