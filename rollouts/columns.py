"""The columns of a rollout row: names, Arrow types, and which may be null.

One row is one completion. GROUP_SCHEMA is what is known once a group is sampled and scored; ROLLOUT_SCHEMA
adds what the learner measured. Read by `rollouts.schema` (building and checking rows), the journal, the store
and the buffer. Both schemas carry their version in the metadata key `polyphony.schema_version`.

Shapes: T is the length of `token_ids`, the completion. Every list column marked [T] has exactly T entries;
the prompt is never part of them. Entropies and logprobs are in nats.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

VERSION_KEY: Final = b"polyphony.schema_version"
SCHEMA_VERSION: Final = 5
READABLE_VERSIONS: Final = (2, 3, 4, SCHEMA_VERSION)
"""Versions that can be read. Version 4 added the columns `numbers` and `texts`, version 5 added
`teacher_prompt_ids` (see `with_added_columns`) and `teacher_kl`. In version 2 the column
`advantage_with_bonus`, which no code here reads, was named token_advantage."""
METADATA: Final[dict[bytes, bytes]] = {VERSION_KEY: str(SCHEMA_VERSION).encode()}

IDS: Final = pa.list_(pa.int32())
FLOATS: Final = pa.list_(pa.float32())
TEXT_MAP: Final = pa.map_(pa.string(), pa.string())
SCORE_MAP: Final = pa.map_(pa.string(), pa.float64())
VERSIONS: Final = pa.list_(pa.struct([("start", pa.int32()), ("version", pa.int64())]))
SPANS: Final = pa.list_(pa.struct([("label", pa.string()), ("start", pa.int32()), ("end", pa.int32())]))


def _always(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


GROUP_FIELDS: Final[tuple[pa.Field, ...]] = (
    _always("run_id", pa.string()),
    _always("submission_index", pa.int64()),
    _always("group_id", pa.string()),
    _always("sample_id", pa.string()),
    pa.field("parent_id", pa.string()),  # sample_id of the completion this one refines
    _always("prompt_id", pa.string()),
    _always("domain", pa.string()),
    _always("epoch", pa.int32()),
    _always("origin", pa.string()),  # one of configs.origins.ORIGINS
    _always("seed", pa.int64()),
    _always("prompt_ids", IDS),  # the context the row is trained under
    pa.field("behavior_prompt_ids", IDS),  # the context it was sampled under, if that is another
    _always("token_ids", IDS),  # [T]
    _always("loss_mask", pa.list_(pa.bool_())),  # [T]
    _always("text", pa.string()),
    _always("finish_reason", pa.string()),
    pa.field("behavior_logprobs", FLOATS),  # [T], entries null where masked; null for sft
    _always("versions", VERSIONS),  # policy_version from token `start` on
    _always("temperature", pa.float64()),
    _always("top_p", pa.float64()),
    _always("max_tokens", pa.int32()),
    pa.field("format_tag", pa.string()),
    _always("tags", TEXT_MAP),
    _always("scores", SCORE_MAP),  # null where the status is not ok
    _always("score_status", TEXT_MAP),
    _always("reward_vector", pa.list_(pa.float64())),
    pa.field("reward", pa.float64()),  # null: a score is missing, so the row is not trained on
    _always("spans", SPANS),  # half-open token ranges within [0, T]
    pa.field("answer", pa.string()),
    pa.field("answer_ok", pa.bool_()),
    pa.field("partition_id", pa.int32()),
    pa.field("partition_size", pa.int32()),
    pa.field("critique", pa.string()),
    pa.field("critique_kind", pa.string()),
    pa.field("critique_verdict", pa.string()),
    pa.field("critique_leak", pa.bool_()),
    pa.field("numbers", SCORE_MAP),  # what scorers and rollouters store beside scores; null if nothing
    pa.field("texts", TEXT_MAP),
    pa.field("teacher_prompt_ids", IDS),  # distilled: the prompt under which the teacher scores the tokens
)

LEARNER_FIELDS: Final[tuple[pa.Field, ...]] = (
    _always("step", pa.int64()),
    pa.field("update_count", pa.int64()),  # optimizer updates of this step that used the row
    pa.field("proximal_logprobs", FLOATS),  # [T]; null only where the reward is
    pa.field("ref_logprobs", FLOATS),  # [T]
    pa.field("base_logprobs", FLOATS),  # [T]
    pa.field("entropy", FLOATS),  # [T], at the sampling temperature; null only where the reward is
    pa.field("entropy_mean", pa.float64()),  # over loss_mask; null when the mask is empty
    pa.field("entropy_mean_t1", pa.float64()),  # the same at temperature 1
    pa.field("advantage", pa.float64()),
    # [T], advantage plus bonus, before the transforms of the config's `token_advantage`: those follow the
    # policy of an update and are not stored. Null without a bonus, entries null where masked
    pa.field("advantage_with_bonus", FLOATS),
    pa.field("visit_count", pa.int64()),  # policy: samples of this (prompt, answer) in steps before this one
    pa.field(
        "teacher_kl", pa.float64()
    ),  # distilled: KL(teacher || policy before the step), mean over loss_mask
)

GROUP_SCHEMA: Final = pa.schema(GROUP_FIELDS, metadata=METADATA)
ROLLOUT_SCHEMA: Final = pa.schema(GROUP_FIELDS + LEARNER_FIELDS, metadata=METADATA)

TOKEN_COLUMNS: Final = (
    "loss_mask",
    "behavior_logprobs",
    "proximal_logprobs",
    "ref_logprobs",
    "base_logprobs",
    "entropy",
    "advantage_with_bonus",
)
SCORED_COLUMNS: Final = ("proximal_logprobs", "entropy")
"""Learner columns that every row with a reward must have."""


ADDED_COLUMNS: Final = ("numbers", "texts", "teacher_prompt_ids")
"""Columns that rows of older versions lack."""


def with_added_columns(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Rows of any readable version with the columns added since, null, and the metadata of this version."""
    if (rows.schema.metadata or {}).get(VERSION_KEY) == METADATA[VERSION_KEY]:
        return rows
    place = rows.schema.get_field_index("critique_leak") + 1
    for name in ADDED_COLUMNS:
        if name not in rows.schema.names:
            field = GROUP_SCHEMA.field(name)
            rows = rows.add_column(place, field, pa.nulls(rows.num_rows, field.type))
        place += 1
    return rows.replace_schema_metadata(METADATA)


def check_version(metadata: dict[bytes, bytes] | None, source: str) -> None:
    """Check that `metadata` has a schema version that this code can read.

    Raises:
        ValueError: it has not; the message names `source`.
    """
    version = (metadata or {}).get(VERSION_KEY)
    if version not in [str(readable).encode() for readable in READABLE_VERSIONS]:
        text = version.decode(errors="replace") if version is not None else "none"
        known = f"{', '.join(map(str, READABLE_VERSIONS[:-1]))} or {READABLE_VERSIONS[-1]}"
        raise ValueError(f"{source}: {VERSION_KEY.decode()} must be {known}, got {text}")
