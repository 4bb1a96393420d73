"""Demonstrations: read from files and from the lab, tokenized like samples, drawn by seed and step alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from examples import examples
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from configs.bound import bind, bind_entry
from configs.kinds.datasets import LabOptions
from configs.kinds.demonstrations import FileDemonstrationOptions, LabDemonstrationOptions
from configs.schema import RolloutConfig, RunConfig, SftConfig
from lab.corpus import CorpusRow
from lab.corpus import load_demonstrations as load_lab
from lab.pretrain import tokenize_rows
from lab.problems import load_prompts
from lab.tokenizer import make_tokenizer
from rewards.formats import tag
from rollouts.records import Demonstration
from rollouts.schema import sft_batch, validate
from trainer.data.demonstrations import (
    demonstration_rows,
    draw,
    load_demonstrations,
    load_file,
    num_drawn,
    tokenize_demonstrations,
)

ASKED = [{"role": "user", "content": "1+2?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "so 3"}]


def write_jsonl(folder: Path, *rows: object) -> FileDemonstrationOptions:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileDemonstrationOptions(path=str(path))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "1+2?", "completion": "so 3"},
        {"prompt": ASKED, "response": "so 3", "answer": [4]},
        {"question": "1+2?", "demonstration": "so 3", "solution": ""},
        {"messages": ANSWERED},
        {"prompt": "another", "completion": None, "messages": ANSWERED},
        {"prompt": "1+2?", "completion": "so 3", "messages": [3]},
    ],
)
def test_rows_of_any_layout_show_the_same(tmp_path: Path, row: dict[str, object]) -> None:
    """A prompt and an answer, or a chat that ends with one; other keys are ignored."""
    wanted = Demonstration(
        prompt_id="mine-0",
        messages=(("user", "1+2?"),),
        completion="so 3",
        domain="mine",
        is_text=isinstance(row.get("prompt", row.get("question")), str)
        and row.get("completion", "") is not None,
    )
    assert load_file(write_jsonl(tmp_path, row)) == [wanted]
    if row.get("messages") != [3]:
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "mine.parquet")
        assert load_file(FileDemonstrationOptions(path=str(tmp_path / "mine.parquet"))) == [wanted]


def test_names_domains_and_limit(tmp_path: Path) -> None:
    """One prompt may be answered twice; all messages before the last are the prompt; `limit` stops early."""
    twice = {"id": 7, "prompt": "q", "completion": "a", "data_source": "math"}
    chat = [{"role": "system", "content": "be brief"}, *ANSWERED, *ANSWERED]
    options = write_jsonl(tmp_path, twice, twice, {"messages": chat}, "bad")
    options.limit = 3
    found = load_file(options)
    assert [(each.prompt_id, each.domain) for each in found] == [("7", "math")] * 2 + [("mine-2", "mine")]
    roles = [role for role, _ in found[2].messages]
    assert roles == ["system", "user", "assistant", "user"] and found[2].completion == "so 3"
    options.domain = "given"
    assert {each.domain for each in load_file(options)} == {"given"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q"}, "completion must be text (or give `response`, `demonstration` or `messages`), got"),
        ({"prompt": "q", "completion": ["a"]}, "completion must be text that is not empty, got ['a']"),
        ({"prompt": "q", "response": " "}, "response must be text that is not empty, got ' '"),
        ({"completion": "a"}, "prompt must be text or a list of chat messages (or give `question`; the row"),
        ({"messages": "hi"}, "messages must be a list of chat messages, got 'hi'"),
        ({"messages": []}, "messages must be text or a list of chat messages, got []"),
        ({"messages": ASKED}, "messages[0].role must be assistant in the last message, got 'user'"),
        ({"messages": ANSWERED[1:]}, "messages must be a prompt followed by an answer, got"),
        ({"messages": [*ASKED, "so 3"]}, "messages[1] must be a message with role and content, got 'so 3'"),
        (["a"], "must be a JSON object, got list"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: object, message: str) -> None:
    """File, line, key and rule."""
    options = write_jsonl(tmp_path, {"messages": ANSWERED}, row)
    with pytest.raises(ValueError) as caught:
        load_file(options)
    assert str(caught.value).startswith(f"{options.path}, line 2: ") and message in str(caught.value)


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    """Of another kind, absent, or without a row."""
    for name, rule in (("a.csv", "must name a .jsonl or .parquet file"), ("a.jsonl", "must be a readable")):
        with pytest.raises(ValueError, match=f"sft.data path {rule}"):
            load_file(FileDemonstrationOptions(path=str(tmp_path / name)))
    options = write_jsonl(tmp_path)
    with pytest.raises(ValueError, match="must have at least one demonstration"):
        load_demonstrations(bind_entry({"kind": "file", "path": options.path}, "sft.data"))


KEYS = st.sampled_from(
    ["prompt", "question", "completion", "response", "messages", "role", "content", "id", "domain"]
)
SCALARS = st.none() | st.integers() | st.text(max_size=3) | st.just("\udc80") | st.just("assistant")
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.lists(st.fixed_dictionaries({"role": SCALARS, "content": SCALARS}), max_size=3)
ROWS = st.dictionaries(KEYS, VALUES, max_size=5) | st.fixed_dictionaries({"messages": MESSAGES}) | VALUES


@examples(300, [HealthCheck.function_scoped_fixture])
@given(st.lists(ROWS, max_size=3))
def test_any_json_reads_or_explains(tmp_path: Path, rows: list[object]) -> None:
    """Any JSON row: demonstrations, or a ValueError that names the file."""
    options = write_jsonl(tmp_path, *rows)
    try:
        found = load_file(options)
    except ValueError as error:
        assert str(error).startswith(f"{options.path}, line ")
        return
    assert len(found) == len(rows)
    for each in found:
        assert each.messages and each.completion.strip()
        assert all(role.strip() and content.strip() for role, content in each.messages)
        json.dumps([each.prompt_id, each.domain, each.completion]).encode()


# -- the lab -------------------------------------------------------------------------------------------------


def test_the_lab_shows_right_solutions_in_the_base_s_shares() -> None:
    """1000 rows: 400 code, 240 prose, 190 symbolic, 170 tagged, each in its format, of training problems."""
    found = load_lab(LabDemonstrationOptions(num_rows=1000))
    tags = [each.format_tag for each in found]
    assert Counter(tags) == {"code": 400, "prose": 240, "symbolic": 190, "tagged": 170}
    prompts = {prompt.messages: prompt.answer for prompt in load_prompts(LabOptions(split="train"))}
    for each in found:
        assert tag(each.completion, ("code", "prose", "symbolic", "tagged")) == each.format_tag
        numbers = [word for word in each.completion.split() if word.isdigit()]
        assert numbers[-1] == prompts[each.messages]
    assert found == load_lab(LabDemonstrationOptions(num_rows=1000))
    assert found != load_lab(LabDemonstrationOptions(num_rows=1000, corpus_seed=1))


def test_the_lab_s_options() -> None:
    """One format alone; every step wrong; an unknown format."""
    found = load_lab(LabDemonstrationOptions(num_rows=50, error_rate=1.0, formats={"prose": 2.0}))
    answers = {prompt.messages: prompt.answer for prompt in load_prompts(LabOptions(split="train"))}
    one_step = [each for each in found if "(" not in each.messages[0][1]]
    assert {each.format_tag for each in found} == {"prose"} and one_step
    assert all(each.completion.split()[-1] != answers[each.messages] for each in one_step)
    with pytest.raises(ValueError, match=r"sft\.data: corpus\.formats must be named among code, prose"):
        load_lab(LabDemonstrationOptions(formats={"verse": 1.0}))


# -- tokens --------------------------------------------------------------------------------------------------


def test_tokens_are_those_that_the_base_was_pretrained_on() -> None:
    """Prompt under the chat template, completion with the end token: as `lab.pretrain` makes them."""
    tokenizer, found = make_tokenizer(), load_lab(LabDemonstrationOptions(num_rows=40))
    rows, left_out = tokenize_demonstrations(found, tokenizer, len(tokenizer), RolloutConfig(), "run")
    validate(rows)
    corpus = [CorpusRow(each.messages[0][1], each.completion, "", "") for each in found]
    expected = tokenize_rows(corpus, tokenizer)
    assert left_out == ""
    assert rows.column("prompt_ids").to_pylist() == expected.prompts
    assert rows.column("token_ids").to_pylist() == expected.responses
    assert rows.column("submission_index").to_pylist() == list(range(40))
    assert rows.column("prompt_id").to_pylist() == [each.prompt_id for each in found]
    assert rows.column("format_tag").to_pylist() == [each.format_tag for each in found]
    assert set(rows.column("origin").to_pylist()) == {"sft"}


def shown(prompt: str, completion: str) -> Demonstration:
    return Demonstration(
        prompt_id="p", messages=(("user", prompt),), completion=completion, domain="d", format_tag=None
    )


def test_what_is_too_long_is_left_out_and_counted(tmp_path: Path) -> None:
    """<bos> <user> 1 + 2 = ? <assistant> are 8 tokens, `so 3` and the end 3. Limits of 8 and 3 keep both of
    those; a prompt of 10 or a completion of 4 is dropped.
    """
    kept = shown("1 + 2 = ?", "so 3")
    longer = [shown("1 + 2 + 3 = ?", "so 3"), shown("1 + 2 = ?", "so is 3")]
    limits = RolloutConfig(max_prompt_tokens=8, max_tokens=3)
    tokenizer, size = make_tokenizer(), len(make_tokenizer())
    found = [longer[0], kept, longer[1]]
    rows, left_out = tokenize_demonstrations(found, tokenizer, size, limits, "run")
    assert left_out == (
        "sft.data: 2 of 3 demonstrations are longer than rollout.max_prompt_tokens = 8 or rollout.max_tokens "
        "= 3 and left out (prompts p, p); to keep all, set rollout.max_prompt_tokens=10 rollout.max_tokens=4"
    )
    assert rows.column("text").to_pylist() == ["so 3"]
    assert rows.column("submission_index").to_pylist() == [0]
    with pytest.raises(ValueError, match=r"2 of 2 demonstrations are longer than rollout.max_prompt_tokens"):
        tokenize_demonstrations(longer, tokenizer, size, limits, "run")
    plain = make_tokenizer()
    plain.eos_token = None
    with pytest.raises(ValueError, match="must have an end-of-sequence token"):
        tokenize_demonstrations([kept], plain, size, limits, "run")
    file = write_jsonl(tmp_path, *({"prompt": each.messages[0][1], "response": "so 3"} for each in longer))
    config = RunConfig(
        rollout=RolloutConfig(max_prompt_tokens=8, group_size=2, groups_per_step=2),
        sft=SftConfig(data={"kind": "file", "path": file.path}, share=0.5),
        loss={"sft": {"kind": "nll"}},
    )
    notes: list[str] = []
    assert demonstration_rows(bind(config), tokenizer, size, notes.append).num_rows == 1
    assert "1 of 2 demonstrations is longer than" in notes[0]
    assert notes[0].endswith(f"({file.path}, line 1); to keep all, set rollout.max_prompt_tokens=10")
    assert "a step draws 2 demonstrations (sft.share), but only 1 can be used" in notes[1]


# -- which rows ----------------------------------------------------------------------------------------------


def numbered(count: int) -> pa.RecordBatch:
    """Demonstrations 0, 1, ..."""
    tokens, names = [[1, 2]] * count, ["x"] * count
    return sft_batch(
        "run", prompt_ids=tokens, token_ids=tokens, text=names, domain=names, format_tag=[None] * count
    )


def make_config(seed: int = 0, group_size: int = 4, groups_per_step: int = 5) -> RunConfig:
    rollout = RolloutConfig(group_size=group_size, groups_per_step=groups_per_step)
    return RunConfig(seed=seed, rollout=rollout)


@pytest.mark.parametrize(
    ("share", "count"), [(0.0, 0), (0.024, 0), (0.025, 1), (0.074, 1), (0.125, 3), (0.5, 10), (1.0, 20)]
)
def test_how_many(share: float, count: int) -> None:
    """Of 20 rows, rounded half up: 0.025 x 20 = 0.5 is one, 0.125 x 20 = 2.5 are three."""
    assert num_drawn(make_config(), share) == count


@given(st.integers(0, 99), st.integers(0, 20), st.floats(0, 1), st.integers(1, 30))
def test_draws(seed: int, step: int, share: float, available: int) -> None:
    """Distinct rows in order, the same in every call, with the ids of the step that is committed next."""
    rows, config = numbered(available), make_config(seed)
    found = draw(rows, config, step, share)
    numbers = found.column("submission_index").to_pylist()
    assert len(numbers) == min(num_drawn(config, share), available)
    assert numbers == sorted(set(numbers)) and set(numbers) <= set(range(available))
    names = [f"sft-{step + 1}-{number}" for number in numbers]
    assert found.column("sample_id").to_pylist() == found.column("group_id").to_pylist() == names
    assert draw(rows, config, step, share).equals(found)
    validate(found)


def test_every_row_has_the_same_chance() -> None:
    """2 of 8 in 2000 steps: 500 each, five standard deviations are 97; seeds and steps draw apart."""
    rows, config = numbered(8), make_config()
    steps = [draw(rows, config, step, 0.1).column("submission_index").to_pylist() for step in range(2000)]
    assert list(np.bincount(np.array(steps).ravel())) == pytest.approx([500] * 8, abs=97)
    other = [
        draw(rows, make_config(1), step, 0.1).column("submission_index").to_pylist() for step in range(20)
    ]
    assert other != steps[:20]
