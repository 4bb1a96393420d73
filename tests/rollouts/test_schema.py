"""The row contract: what goes in comes out, and rows that break a rule are named."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from rollout_rows import RUN, groups, make_batch, make_group, make_sample

from rollouts.columns import GROUP_SCHEMA, ROLLOUT_SCHEMA, SCHEMA_VERSION, VERSION_KEY, with_added_columns
from rollouts.journal import Journal, encode_batch
from rollouts.records import Critique, Group, Partition
from rollouts.schema import (
    as_group,
    as_replay,
    compact,
    group_to_batch,
    renamed,
    sft_batch,
    to_batch,
    validate,
)

JOURNALED = ("policy", "refined", "distilled", "tempered")
CONTRACT = frozenset(
    """
run_id step update_count submission_index group_id sample_id parent_id prompt_id domain epoch origin seed
prompt_ids behavior_prompt_ids token_ids loss_mask text finish_reason
behavior_logprobs proximal_logprobs ref_logprobs base_logprobs versions temperature top_p max_tokens
entropy entropy_mean entropy_mean_t1 format_tag tags scores score_status reward_vector reward advantage
advantage_with_bonus spans answer answer_ok partition_id partition_size
critique critique_kind critique_verdict critique_leak numbers texts teacher_prompt_ids visit_count teacher_kl
""".split()  # noqa: SIM905 - reads like the page it is copied from
)


def with_column(batch: pa.RecordBatch, name: str, values: list[object]) -> pa.RecordBatch:
    """`batch` with one column replaced."""
    position = batch.schema.get_field_index(name)
    field = batch.schema.field(name)
    return batch.set_column(position, field, pa.array(values, field.type))


def test_the_columns_are_the_contract() -> None:
    """Exactly the names of the architecture page, and a version that travels with them."""
    assert sorted(ROLLOUT_SCHEMA.names) == sorted(CONTRACT)
    assert ROLLOUT_SCHEMA.names[: len(GROUP_SCHEMA.names)] == GROUP_SCHEMA.names
    assert make_batch(0).schema.metadata == {b"polyphony.schema_version": str(SCHEMA_VERSION).encode()}


@given(groups())
def test_any_group_survives_as_rows(group: Group) -> None:
    """Empty completions, odd Unicode, null scores and rewards: all comes back, and is valid."""
    batch = group_to_batch(group, RUN)
    validate(batch)
    assert batch.num_rows == len(group.samples)
    for row, sample in zip(batch.to_pylist(), group.samples, strict=True):
        completion = sample.completion
        assert row["token_ids"] == list(completion.token_ids)
        assert row["loss_mask"] == [True] * len(completion.token_ids)
        assert (row["text"], row["seed"], row["answer"]) == (completion.text, completion.seed, sample.answer)
        expected = None if sample.origin == "sft" else list(completion.behavior_logprobs)
        assert row["behavior_logprobs"] == expected
        assert [(v["start"], v["version"]) for v in row["versions"]] == list(completion.versions)
        assert dict(row["scores"]) == dict(sample.scores)
        assert dict(row["tags"]) == dict(sample.tags)
        assert row["format_tag"] == sample.tags.get("format")
        assert row["reward"] == sample.reward
        assert row["reward_vector"] == list(sample.reward_vector)
        assert [(s["label"], s["start"], s["end"]) for s in row["spans"]] == [
            (s.label, s.start, s.end) for s in sample.spans
        ]


def test_a_value_that_does_not_fit_names_its_column() -> None:
    """A token id over 31 bits is an error, never a wrapped number."""
    sample = make_sample("s", 1)
    too_big = replace(sample, completion=replace(sample.completion, token_ids=(2**31,)))
    with pytest.raises(ValueError, match="group g4: column token_ids"):
        group_to_batch(make_group(4, (too_big,)), RUN)


# make_batch(0): row 0 (g0-0) has 1 token, row 1 (g0-1) has 2 tokens
BROKEN: list[tuple[str, list[object], int, str]] = [
    ("loss_mask", [[True], [True]], 1, "as many entries as token_ids"),
    ("behavior_logprobs", [[-0.5, -0.5], [-0.5, -0.5]], 0, "as many entries as token_ids"),
    ("behavior_logprobs", [[-0.5], [-0.5, None]], 1, "null exactly where loss_mask is false"),
    ("behavior_logprobs", [[-0.5], None], 1, "must not be null for policy, distilled, replay, tempered"),
    ("loss_mask", [[False], [True, True]], 0, "null exactly where loss_mask is false"),
    ("origin", ["sft", "policy"], 0, "must be null for sft"),
    ("origin", ["policy", "dream"], 1, "one of policy, refined, distilled, replay, tempered, sft"),
    ("sample_id", ["a", "a"], 1, "unique"),
    ("text", [None, "x"], 0, "must not be null"),
    ("reward", [0.0, float("nan")], 1, "finite or null"),
    ("reward", [float("inf"), None], 0, "finite or null"),
    ("versions", [[{"start": 0, "version": 1}], [{"start": 1, "version": 1}]], 1, "start at token 0"),
    ("versions", [[{"start": 0, "version": 1}, {"start": 0, "version": 2}]] * 2, 0, "ascend"),
    ("versions", [[{"start": 0, "version": 1}, {"start": 1, "version": 2}]] * 2, 0, "within token_ids"),
    ("versions", [[{"start": 0, "version": 1}], []], 1, "name the policy_version"),
    ("spans", [[], [{"label": "x", "start": 0, "end": 3}]], 1, "number of tokens"),
    ("spans", [[{"label": "x", "start": 1, "end": 0}], []], 0, "start <= end"),
    ("spans", [[{"label": "x", "start": None, "end": 0}], []], 0, "start <= end"),
]


@pytest.mark.parametrize(("column", "values", "row", "rule"), BROKEN)
def test_a_broken_row_is_named(column: str, values: list[object], row: int, rule: str) -> None:
    """Each rule of the contract refuses a row that breaks it, naming row, column and rule."""
    broken = with_column(make_batch(0), column, values)
    with pytest.raises(ValueError) as caught:
        validate(broken)
    message = str(caught.value)
    assert message.startswith(f"row {row} ("), message
    assert rule in message, message


def test_masked_tokens_need_no_behavior_logprob() -> None:
    """Environment tokens have loss_mask false and a null logprob: legal without a migration."""
    batch = with_column(make_batch(0), "loss_mask", [[True], [True, False]])
    validate(with_column(batch, "behavior_logprobs", [[-0.5], [-0.5, None]]))


def test_rules_hold_in_a_slice() -> None:
    """Offsets of a slice must not shift the row that is blamed, nor hide a bad one before it."""
    batch = make_batch(0, num_rows=4)
    masks = batch.column("loss_mask").to_pylist()
    broken = with_column(batch, "loss_mask", [[True, True], *masks[1:3], [True]])
    validate(broken.slice(1, 2))
    with pytest.raises(ValueError, match=r"^row 2 \(sample_id 'g0-3'\), column loss_mask"):
        validate(broken.slice(1, 3))


def test_other_columns_or_versions_are_refused() -> None:
    """A missing, extra or retyped column, and rows of another schema version, are errors."""
    batch = make_batch(0)
    with pytest.raises(ValueError, match="column text must be present"):
        validate(batch.drop_columns(["text"]))
    with pytest.raises(ValueError, match="column mood must be one of rollouts"):
        validate(batch.append_column("mood", pa.array(["a", "b"])))
    position = batch.schema.get_field_index("epoch")
    with pytest.raises(ValueError, match="column epoch must have type int32, got string"):
        validate(batch.set_column(position, "epoch", pa.array(["0", "0"])))
    with pytest.raises(ValueError, match="schema_version must be 2, 3, 4 or 5, got 99"):
        validate(batch.replace_schema_metadata({"polyphony.schema_version": "99"}))


def test_learner_columns_are_checked_too() -> None:
    """A row with a reward must have been scored; one without may lack it; lengths must agree."""
    batch = make_batch(0)
    nulls = {name: [None, None] for name in ROLLOUT_SCHEMA.names[len(GROUP_SCHEMA.names) :]}
    logprobs: list[object] = [[-1.0], [-1.0, -2.0]]
    values = nulls | {"step": [3, 3], "proximal_logprobs": logprobs, "entropy": logprobs}

    def rollout(**changed: list[object]) -> pa.RecordBatch:
        columns = values | changed
        arrays = [
            pa.array(columns[field.name], field.type) for field in list(ROLLOUT_SCHEMA)[batch.num_columns :]
        ]
        return pa.RecordBatch.from_arrays([*batch.columns, *arrays], schema=ROLLOUT_SCHEMA)

    validate(rollout())
    validate(pa.Table.from_batches([rollout()]))
    with pytest.raises(ValueError, match=r"row 1 .*column entropy: must not be null where there is a reward"):
        validate(rollout(entropy=[[-1.0], None]))
    validate(with_column(rollout(entropy=[[-1.0], None]), "reward", [1.0, None]))
    with pytest.raises(ValueError, match=r"row 0 .*column ref_logprobs: must have as many entries"):
        validate(rollout(ref_logprobs=[[], None]))
    with pytest.raises(ValueError, match=r"row 1 .*column step: must not be null"):
        validate(rollout(step=[3, None]))


def test_a_compact_slice_carries_only_its_rows() -> None:
    """A slice holds its parent's buffers; its compact copy holds a few rows' worth."""
    batch = make_batch(0, num_rows=200)
    part = batch.slice(100, 1)
    assert part.get_total_buffer_size() == batch.get_total_buffer_size()
    own = compact(part)
    assert own.equals(part)
    assert own.get_total_buffer_size() < batch.get_total_buffer_size() / 20
    assert own.schema.metadata == batch.schema.metadata


@given(groups())
def test_compact_changes_nothing(group: Group) -> None:
    """Any row of any group is the same after the copy."""
    batch = group_to_batch(group, RUN)
    for row in range(batch.num_rows):
        assert compact(batch.slice(row, 1)).to_pylist() == [batch.to_pylist()[row]]


def test_to_batch_joins_chunks_and_keeps_empty_tables() -> None:
    """A table of two chunks becomes one batch; a table of none becomes a batch of no rows."""
    one, two = make_batch(0), make_batch(1)
    assert to_batch(pa.Table.from_batches([one, two])).to_pylist() == one.to_pylist() + two.to_pylist()
    empty = to_batch(pa.Table.from_batches([], schema=GROUP_SCHEMA))
    assert (empty.num_rows, empty.schema) == (0, GROUP_SCHEMA)
    validate(empty)


def test_sft_rows() -> None:
    """Supervised rows: loss on every completion token, no sampler, no score, ids from the index."""
    batch = sft_batch(
        RUN,
        prompt_ids=[[1, 2], []],
        token_ids=[[3, 4, 5], []],
        text=["é", ""],
        domain=["math", "filler"],
        format_tag=["code", None],
        first_index=10,
    )
    validate(batch)
    first, second = batch.to_pylist()
    assert (first["submission_index"], second["submission_index"]) == (10, 11)
    assert (first["group_id"], first["sample_id"], first["prompt_id"]) == ("sft-10",) * 3
    assert (first["origin"], first["behavior_logprobs"], first["reward"]) == ("sft", None, None)
    assert (first["loss_mask"], second["loss_mask"]) == ([True] * 3, [])
    assert (first["max_tokens"], second["max_tokens"]) == (3, 0)
    assert (first["format_tag"], first["tags"]) == ("code", [("format", "code")])
    assert (second["format_tag"], second["tags"], second["domain"]) == (None, [], "filler")
    with pytest.raises(ValueError, match="text must have 1 entries like token_ids, got 2"):
        sft_batch(RUN, prompt_ids=[[1]], token_ids=[[1]], text=["a", "b"], domain=["d"], format_tag=[None])


def test_sft_rows_in_bulk() -> None:
    """Five thousand rows of 24 tokens are built in bulk: well under two seconds even on a busy machine."""
    ids = [list(range(24))] * 5000
    began = time.perf_counter()
    batch = sft_batch(
        RUN, prompt_ids=ids, token_ids=ids, text=["x"] * 5000, domain=["d"] * 5000, format_tag=["code"] * 5000
    )
    assert time.perf_counter() - began < 2.0
    assert pc.sum(pc.list_value_length(batch.column("loss_mask"))).as_py() == 5000 * 24


def committed(*groups: pa.RecordBatch) -> pa.Table:
    """`groups` as a committed step holds them, read back from Parquet."""
    rows = to_batch(pa.Table.from_batches(groups))
    lists = rows.column("behavior_logprobs")
    columns = {"step": pa.repeat(pa.scalar(3, pa.int64()), rows.num_rows)} | dict.fromkeys(
        ("proximal_logprobs", "entropy"), lists
    )
    arrays = [
        columns.get(field.name, pa.nulls(rows.num_rows, field.type))
        for field in list(ROLLOUT_SCHEMA)[rows.num_columns :]
    ]
    sink = pa.BufferOutputStream()
    table = pa.table([*rows.columns, *arrays], schema=ROLLOUT_SCHEMA)
    pq.write_table(table, sink, compression="zstd")
    return pq.ParquetFile(pa.BufferReader(sink.getvalue())).read()


def test_committed_rows_are_the_group_again() -> None:
    """From memory and from Parquet, bit for bit: the journal writes the same file, whatever stood around."""
    groups = [make_batch(4, num_rows=3), make_batch(5, num_rows=4, reward=None)]
    table = committed(*groups)
    for group, first in zip(groups, (0, 3), strict=True):
        found = as_group(table.slice(first, group.num_rows))
        assert found.equals(group, check_metadata=True)
        assert bytes(encode_batch(compact(found))) == bytes(encode_batch(compact(group)))
    assert as_group(to_batch(table)).to_pylist() == to_batch(pa.Table.from_batches(groups)).to_pylist()
    with pytest.raises(ValueError, match="column text must be present"):
        as_group(table.drop_columns(["text"]))


@given(groups())
def test_any_committed_group_is_itself_again(group: Group) -> None:
    """Odd floats and texts too; rows of origin replay and sft are not the step's own."""
    batch = group_to_batch(group, RUN)
    own = [row for row in batch.to_pylist() if row["origin"] in JOURNALED]
    assert as_group(batch).to_pylist() == own
    read = committed(batch)
    assert as_group(read).to_pylist() == own


def test_replayed_rows_by_hand() -> None:
    """Other ids and another origin; the sample they repeat is their parent; all else is as it was."""
    original = make_batch(4, version=2)
    batch = as_replay(committed(original), 9)
    validate(batch)
    changed = {"sample_id", "group_id", "parent_id", "origin"}
    for row, source in zip(batch.to_pylist(), original.to_pylist(), strict=True):
        assert {name for name in row if row[name] != source[name]} == changed
        assert row["origin"] == "replay"
        assert (row["sample_id"], row["parent_id"]) == (
            f"replay-9-{source['sample_id']}",
            source["sample_id"],
        )
        assert row["group_id"] == "replay-9-g4"
    assert as_group(batch).num_rows == as_replay(batch, 10).num_rows == 0
    refined = with_column(original, "origin", ["policy", "refined"])
    assert as_replay(refined, 9).column("parent_id").to_pylist() == ["g4-0"]


@pytest.mark.parametrize(
    ("column", "values", "rule"),
    [
        (
            "behavior_logprobs",
            [None, [-0.5, -0.5]],
            "must not be null for policy, distilled, replay, tempered",
        ),
        ("versions", [[], [{"start": 0, "version": 1}]], "name the policy_version"),
    ],
)
def test_a_replayed_row_has_its_sampler(column: str, values: list[object], rule: str) -> None:
    """What the importance ratio and the staleness are made from may not be missing."""
    with pytest.raises(ValueError, match=rf"^row 0 \(sample_id 'replay-1-g0-0'\), column {column}: .*{rule}"):
        validate(with_column(as_replay(make_batch(0), 1), column, values))


def test_another_runs_rows() -> None:
    """Only the run_id is another."""
    batch = make_batch(3)
    found = renamed(batch, "run-b")
    assert found.column("run_id").to_pylist() == ["run-b"] * 2
    assert found.schema.equals(batch.schema, check_metadata=True)
    assert renamed(found, RUN).equals(batch)


def test_rows_of_the_version_before_are_read() -> None:
    """Version 2 differs in the name of one learner column: its groups are taken, and joined with new ones."""
    old, new = make_batch(0), make_batch(1)
    old = old.replace_schema_metadata({b"polyphony.schema_version": b"2"})
    validate(old)
    joined = pa.concat_batches([old, new])
    assert as_group(joined).schema.equals(GROUP_SCHEMA) and as_group(old).num_rows == old.num_rows


@pytest.mark.parametrize(
    ("version", "lacks"),
    [
        (b"2", ["numbers", "texts", "teacher_prompt_ids"]),
        (b"3", ["numbers", "texts", "teacher_prompt_ids"]),
        (b"4", ["teacher_prompt_ids"]),
    ],
)
def test_groups_of_older_versions_get_the_added_columns(
    version: bytes, lacks: list[str], tmp_path: Path
) -> None:
    """In the journal and in committed rows: the added columns are null there, and the rest as it was."""
    new = make_batch(4)
    old = new.drop_columns(lacks).replace_schema_metadata({VERSION_KEY: version})
    for found in (as_group(old), as_group(pa.Table.from_batches([old]))):
        validate(found)
        assert found.equals(new) and found.schema.equals(GROUP_SCHEMA, check_metadata=True)
    journal = Journal(tmp_path)
    journal.append(4, old)
    assert journal.read(4).equals(new)
    assert with_added_columns(new) is new


def test_what_scorers_store_beside_scores() -> None:
    """Each in its column; null where nothing is stored."""
    sample = replace(
        make_sample("a", 2),
        partition=Partition(partition_id=1, size=3),
        critique=Critique(text="line 2 is wrong", kind="rule", verdict="wrong", leaked=True),
        numbers={"judge/tokens": 17.0},
        texts={"judge/reason": "no"},
    )
    rows = group_to_batch(make_group(0, (sample, make_sample("b", 2))), "run").to_pylist()
    names = (
        "partition_id",
        "partition_size",
        "critique",
        "critique_kind",
        "critique_verdict",
        "critique_leak",
    )
    assert [rows[0][name] for name in names] == [1, 3, "line 2 is wrong", "rule", "wrong", True]
    assert (rows[0]["numbers"], rows[0]["texts"]) == ([("judge/tokens", 17.0)], [("judge/reason", "no")])
    assert [rows[1][name] for name in (*names, "numbers", "texts")] == [None] * 8


def test_a_mask_says_which_tokens_were_sampled() -> None:
    """Behavior logprobs are null elsewhere, whatever was given there; a mask has an entry per token."""
    sample = make_sample("a", 3)
    mask, logprobs = (True, False, True), (-0.5, float("nan"), -0.25)
    completion = replace(sample.completion, loss_mask=mask, behavior_logprobs=logprobs)
    assert completion.num_sampled == 2 and sample.completion.num_sampled == 3
    other = make_sample("b", 3)
    rows = group_to_batch(make_group(0, (replace(sample, completion=completion), other)), "run")
    validate(rows)
    assert rows.column("loss_mask").to_pylist() == [[True, False, True], [True] * 3]
    assert rows.column("behavior_logprobs").to_pylist() == [[-0.5, None, -0.25], [-0.5] * 3]
    with pytest.raises(AssertionError, match="an entry per token"):
        replace(completion, loss_mask=(True,))


def test_the_page_lists_every_column_and_which_may_be_null() -> None:
    """docs/rollouts.md, as a user reads it."""
    page = (Path(__file__).resolve().parents[2] / "docs/rollouts.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (yes)? ?\| [^|]+ \|$", page, re.MULTILINE)
    assert rows == [(field.name, "yes" if field.nullable else "") for field in ROLLOUT_SCHEMA]
