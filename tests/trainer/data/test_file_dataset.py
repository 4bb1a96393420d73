"""Prompts from files: the layouts of verl, TRL and plain ones, and one clear error for everything else."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from examples import examples
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from configs.bound import bind_entry
from configs.kinds.datasets import FileOptions
from rollouts.records import Prompt
from trainer.data.file_dataset import load_file
from trainer.data.prompts import load_dataset

CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "1+2?"}]
VERL: dict[str, object] = {
    "data_source": "gsm8k",
    "prompt": CHAT,
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "3"},
    "extra_info": {"index": 7, "split": "train", "note": None},
}


def write_jsonl(folder: Path, *rows: object) -> FileOptions:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileOptions(path=str(path))


def write_parquet(folder: Path, rows: list[dict[str, object]]) -> FileOptions:
    path = folder / "mine.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return FileOptions(path=str(path))


def test_verl_rows_mean_the_same_in_both_files(tmp_path: Path) -> None:
    """verl's own GSM8K layout: messages, ground truth and source; extra_info with the types of the file."""
    wanted = Prompt(
        prompt_id="mine-0",
        messages=(("system", "be brief"), ("user", "1+2?")),
        answer="3",
        domain="gsm8k",
        extra={"ability": "math", "index": 7, "split": "train", "note": None},
    )
    assert load_file(write_jsonl(tmp_path, VERL)) == [wanted]
    assert load_file(write_parquet(tmp_path, [VERL])) == [wanted]


@pytest.mark.parametrize(
    ("row", "answer", "extra"),
    [
        ({"prompt": "1+2?", "answer": "3"}, "3", {}),
        ({"prompt": [{"role": "user", "content": "1+2?"}], "solution": "so 3"}, "so 3", {}),
        ({"question": "1+2?", "answer": 3}, "3", {}),
        ({"question": "1+2?", "answer": 3.0}, "3", {}),
        ({"question": "1+2?", "answer": 2.5}, "2.5", {}),
        ({"prompt": "1+2?", "answer": "3", "solution": "so 3"}, "3", {"solution": "so 3"}),
        ({"prompt": "1+2?", "answer": None}, None, {}),
        ({"prompt": "1+2?", "levels": ["1", "é"]}, None, {"levels": ["1", "é"]}),
        ({"prompt": "1+2?", "reward_model": {"ground_truth": ["3", "iii"]}}, None, {}),
        ({"prompt": "1+2?", "answer": 0.00001}, "0.00001", {}),
        ({"prompt": "1+2?", "answer": 1.5e22}, "15000000000000000000000", {}),
        ({"prompt": "1+2?", "answer": -2.5e-9}, "-0.0000000025", {}),
    ],
)
def test_trl_and_plain_rows(
    tmp_path: Path, row: dict[str, object], answer: str | None, extra: dict[str, str]
) -> None:
    """Text or messages, `answer` before `solution`, numbers as text, everything else in extra."""
    for options in (write_jsonl(tmp_path, row), write_parquet(tmp_path, [row])):
        (prompt,) = load_file(options)
        assert prompt.messages == (("user", "1+2?"),)
        assert (prompt.answer, prompt.extra, prompt.domain) == (answer, extra, "mine")


TRUTHS: list[object] = [
    3,
    3.5,
    True,
    False,
    ["3", "iii"],
    {"tests": [{"in": 1, "out": [2, None]}], "strict": False},
]


@pytest.mark.parametrize("truth", TRUTHS)
def test_a_ground_truth_keeps_its_type(tmp_path: Path, truth: object) -> None:
    """Parquet and jsonl alike, under all three keys; scorers that read text get text only of text and
    numbers.
    """
    rows: list[dict[str, object]] = [
        {"prompt": "q", "reward_model": {"ground_truth": truth}},
        {"prompt": "q", "answer": truth},
        {"prompt": "q", "solution": truth},
    ]
    for row in rows:
        for options in (write_jsonl(tmp_path, row), write_parquet(tmp_path, [row])):
            (prompt,) = load_file(options)
            assert prompt.ground_truth == truth and type(prompt.ground_truth) is type(truth)
            is_number = isinstance(truth, int | float) and not isinstance(truth, bool)
            assert prompt.answer == (str(truth) if is_number else None)


def test_extra_info_keeps_its_types(tmp_path: Path) -> None:
    """JSON types stay, nulls too; dates become ISO 8601, decimals text, durations seconds; a column's null or
    NaN is left out.
    """
    info = {"strict": False, "n": 7, "share": 0.5, "none": None, "deep": {"a": [{"b": None}], "ok": True}}
    row: dict[str, object] = {"prompt": "q", "extra_info": info}
    for options in (write_jsonl(tmp_path, row), write_parquet(tmp_path, [row])):
        assert load_file(options)[0].extra == info
    path = tmp_path / "typed.parquet"
    arrays = {
        "prompt": pa.array(["q"]),
        "day": pa.array([date(2026, 1, 2)]),
        "at": pa.array([datetime(2026, 1, 2, 3, 4, 5)]),
        "price": pa.array([Decimal("0.10")]),
        "took": pa.array([timedelta(minutes=1)]),
        "missing": pa.array([float("nan")]),
        "small": pa.array([0.5], pa.float32()),
        "by_name": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    }
    pq.write_table(pa.table(arrays), path)
    (prompt,) = load_file(FileOptions(path=str(path)))
    assert prompt.extra == {
        "day": "2026-01-02",
        "at": "2026-01-02T03:04:05",
        "price": "0.10",
        "took": 60.0,
        "small": 0.5,
        "by_name": {"a": 1},
    }
    assert json.loads(json.dumps(prompt.extra)) == prompt.extra


def test_an_empty_ground_truth_of_verl_is_none(tmp_path: Path) -> None:
    """Open-ended rows of verl's files have ""; the function gets it, other scorers get no answer."""
    (prompt,) = load_file(write_jsonl(tmp_path, {"prompt": "q", "reward_model": {"ground_truth": ""}}))
    assert (prompt.answer, prompt.ground_truth) == (None, "")


def test_a_domain_in_the_config_leaves_the_rows_source(tmp_path: Path) -> None:
    """The function is called with the row's own data_source, whatever the domain is called here."""
    options = write_jsonl(tmp_path, VERL, {"prompt": "q"})
    options.domain = "mine"
    first, second = load_file(options)
    assert (first.domain, first.data_source) == ("mine", "gsm8k")
    assert (second.domain, second.data_source) == ("mine", "")


def own_dataset(options: object) -> list[Prompt]:
    """A user's own dataset with what numpy and Arrow give."""
    extra = {"n": np.int64(3), "ok": np.bool_(False), "row": np.array([1.5, 2.0]), "s": pa.scalar("x")}
    return [OWN_PROMPT, replace(OWN_PROMPT, prompt_id="b", extra=extra, ground_truth=np.float64(0.5))]  # type: ignore[arg-type]


OWN_PROMPT = Prompt(prompt_id="a", messages=(("user", "q"),), answer=None, domain="own")


def own_dataset_of_bytes(options: object) -> list[Prompt]:
    return [replace(OWN_PROMPT, extra={"image": b"x"})]  # type: ignore[dict-item]


def test_values_of_a_users_own_dataset_become_plain() -> None:
    """Numpy's and Arrow's types become Python's; other values are refused with their row."""
    first, second = load_dataset(bind_entry({"kind": "test_file_dataset:own_dataset"}, "data.train"))
    assert first == OWN_PROMPT and second.ground_truth == 0.5
    assert second.extra == {"n": 3, "ok": False, "row": [1.5, 2.0], "s": "x"}
    assert type(second.extra["ok"]) is bool
    with pytest.raises(ValueError, match=r"a.*extra and ground_truth must be what JSON can hold: no bytes"):
        load_dataset(bind_entry({"kind": "test_file_dataset:own_dataset_of_bytes"}, "data.train"))


def test_options_and_ids(tmp_path: Path) -> None:
    """options.domain overrides data_source; given ids stay, made ones count from 0; limit stops early."""
    options = write_jsonl(tmp_path, VERL | {"id": 17}, VERL, VERL | {"prompt_id": "x"}, "bad")
    options.domain, options.limit = "mine", 3
    prompts = load_file(options)
    assert [prompt.prompt_id for prompt in prompts] == ["17", "mine-1", "x"]
    assert {prompt.domain for prompt in prompts} == {"mine"}


def test_blank_lines_and_byte_order_mark(tmp_path: Path) -> None:
    """Editors leave both; neither is a row, and line numbers still count the blank line."""
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}')
    assert [prompt.prompt_id for prompt in load_file(FileOptions(path=str(path)))] == ["mine-0", "mine-2"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["a list"], "must be a JSON object, got list"),
        ({"answer": "3"}, "messages (or give `question`; the row has the keys answer), got None"),
        ({"prompt": "  "}, "prompt must be text that is not empty, got '  '"),
        ({"prompt": 5}, "prompt must be text or a list of chat messages, got 5"),
        ({"prompt": []}, "prompt must be text or a list of chat messages, got []"),
        ({"prompt": ["hi"]}, "prompt[0] must be a message with role and content, got 'hi'"),
        ({"prompt": [{"content": "hi"}]}, "prompt[0].role must be text that is not empty, got None"),
        ({"prompt": [{"role": "user", "content": [1]}]}, "prompt[0].content must be text that is not empty"),
        (
            {"prompt": [{"role": "user", "content": "x", "image": "y"}]},
            "only role and content, got ['image']",
        ),
        ({"prompt": "q", "answer": ""}, "answer must be text that is not empty, a number, or another value"),
        ({"prompt": "q", "answer": float("nan")}, "answer must be text that is not empty, a number, or"),
        (
            {"prompt": "q", "answer": float("inf")},
            "answer must be text or a value that JSON can hold (no infi",
        ),
        (
            {"prompt": "q", "extra_info": {"x": ["\ud800"]}},
            "extra_info.x must be text or a value that JSON can",
        ),
        ({"prompt": "q", "reward_model": "3"}, "reward_model must be a mapping with ground_truth, got '3'"),
        ({"prompt": "q", "data_source": 3}, "data_source must be text that is not empty, got 3"),
        ({"prompt": "q", "extra_info": "x"}, "extra_info must be a mapping, got 'x'"),
        ({"prompt": "q", "id": 1.5}, "id must be text that is not empty, or a whole number, got 1.5"),
        ({"prompt": "q", "id": "first"}, "prompt_id must be unique, but line 1 has the same, got 'first'"),
        ({"prompt": "\ud800"}, "prompt must be Unicode text without lone surrogates"),
        ({"prompt": "q", "x": [float("inf")]}, "x must be text or a value that JSON can hold"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: object, message: str) -> None:
    """File, line, key and rule: enough to find the row in an editor."""
    options = write_jsonl(tmp_path, {"prompt": "fine", "id": "first"}, row)
    with pytest.raises(ValueError) as caught:
        load_file(options)
    assert str(caught.value).startswith(f"{options.path}, line 2: ")
    assert message in str(caught.value)


def test_a_bad_parquet_row_is_named(tmp_path: Path) -> None:
    """Parquet rows count from 0, as in every reader of them."""
    options = write_parquet(tmp_path, [{"prompt": "a"}, {"prompt": "b"}, {"prompt": None}])
    with pytest.raises(ValueError, match=r"mine\.parquet, row 2: prompt must be text or a list"):
        load_file(options)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"{", "line 1: must be a JSON object in UTF-8"),
        ("a.jsonl", b"\xff\n", "line 1: must be a JSON object in UTF-8"),
        ("a.jsonl", b"[" * 100_000, "line 1: must be a JSON object in UTF-8"),
        ("a.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}", "line 1: must be a JSON object in UTF-8"),
        ("a.parquet", b"PAR1 not really PAR1", "must be a whole Parquet file"),
        ("a.parquet", b"", "must be a whole Parquet file"),
        ("a.csv", b"prompt\n", "must name a .jsonl or .parquet file"),
        ("a.jsonl", None, "data path must be a readable file"),
        ("a.parquet", None, "data path must be a readable file"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    """Damaged, absent, too deep or of another kind."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_file(FileOptions(path=str(tmp_path / name)))
    assert message in str(caught.value) and str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("registered", [True, False])
def test_extension_types_are_refused(tmp_path: Path, registered: bool) -> None:
    """A type that needs code to be read is not text, whether or not this process knows that code."""
    field = pa.field("answer", pa.string(), metadata={"ARROW:extension:name": "their.type"})
    table = pa.table({"prompt": ["q"], "answer": ["3"]}, pa.schema([("prompt", pa.string()), field]))
    if registered:
        table = pa.table({"prompt": ["q"], "answer": pa.array(["3"], pa.json_())})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="column answer must have a plain type, got extension type"):
        load_file(FileOptions(path=str(tmp_path / "a.parquet")))


def test_dates_and_decimals_become_text_and_bytes_do_not(tmp_path: Path) -> None:
    """Parquet has types that JSON has not."""
    row = {"prompt": "q", "answer": Decimal("2.50"), "day": date(2024, 5, 6)}
    (prompt,) = load_file(write_parquet(tmp_path, [row]))
    assert prompt.answer == "2.50" and prompt.extra == {"day": "2024-05-06"}
    with pytest.raises(ValueError, match="row 0: image must be text or a value that JSON can hold"):
        load_file(write_parquet(tmp_path, [row | {"image": b"\x00"}]))


def test_an_empty_file_is_an_error_of_the_dataset(tmp_path: Path) -> None:
    """The kind `file` through the config entry, as a run reaches it."""
    options = write_jsonl(tmp_path)
    assert load_file(options) == []
    with pytest.raises(ValueError, match="at least one prompt"):
        load_dataset(bind_entry({"kind": "file", "path": options.path}, "data.train"))


KEYS = st.sampled_from(
    [
        "prompt",
        "question",
        "answer",
        "solution",
        "reward_model",
        "extra_info",
        "data_source",
        "id",
        "role",
        "content",
        "ground_truth",
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("\udc80")
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(KEYS | st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)
ROWS = st.dictionaries(KEYS, VALUES, max_size=5) | VALUES
ANY_FILE = examples(300, [HealthCheck.function_scoped_fixture])


def check_reads_or_explains(path: Path) -> None:
    try:
        prompts = load_file(FileOptions(path=str(path)))
    except ValueError as error:
        assert str(path) in str(error)
        return
    for prompt in prompts:
        assert prompt.messages and all(role and content.strip() for role, content in prompt.messages)
        assert prompt.answer is None or prompt.answer
        json.dumps([prompt.prompt_id, prompt.domain, *prompt.extra, *prompt.extra.values()]).encode()
    assert len({prompt.prompt_id for prompt in prompts}) == len(prompts)


@ANY_FILE
@given(st.lists(ROWS, max_size=3))
def test_any_json_reads_or_explains(tmp_path: Path, rows: list[object]) -> None:
    """Any JSON row: prompts, or a ValueError that names the file."""
    path = tmp_path / "any.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    check_reads_or_explains(path)


@ANY_FILE
@given(st.binary(max_size=40), st.integers(0, 60))
def test_any_bytes_read_or_explain(tmp_path: Path, junk: bytes, place: int) -> None:
    """A line cut or overwritten anywhere."""
    path = tmp_path / "any.jsonl"
    whole = json.dumps(VERL).encode()
    path.write_bytes(whole[:place] + junk + whole[place + len(junk) :])
    check_reads_or_explains(path)


COLUMNS = st.sampled_from(
    [
        pa.array(["a", None, "é"]),
        pa.array([1.5, float("nan"), None]),
        pa.array([b"\xff", b"", None]),
        pa.array([["x"], [], None]),
        pa.array([CHAT, CHAT[:1], []]),
        pa.array([VERL["reward_model"], None, {"style": "model", "ground_truth": None}]),
        pa.array([[("k", "v")], [], None], pa.map_(pa.string(), pa.string())),
        pa.array([2**62, 0, None], pa.timestamp("ns")),
        pa.array([600_000_000_000, 0, None], pa.timestamp("s")),
        pa.array([2**40, 0, None], pa.duration("us")),
        pa.array(["a", "b", "a"]).dictionary_encode(),
        pa.nulls(3),
    ]
)


@ANY_FILE
@given(st.dictionaries(KEYS, COLUMNS, min_size=1, max_size=5), st.integers(0, 3))
def test_any_parquet_reads_or_explains(tmp_path: Path, columns: dict[str, pa.Array], length: int) -> None:
    """Any type of column under any of the names we read."""
    path = tmp_path / "any.parquet"
    pq.write_table(pa.table(columns).slice(0, length), path)
    check_reads_or_explains(path)


@ANY_FILE
@given(st.integers(0, 4000), st.integers(0, 255))
def test_any_damage_to_parquet_reads_or_explains(tmp_path: Path, place: int, byte: int) -> None:
    """One byte changed: rows, or a ValueError and no other exception."""
    path = tmp_path / "any.parquet"
    write_parquet(tmp_path, [VERL])
    content = bytearray((tmp_path / "mine.parquet").read_bytes())
    content[place % len(content)] = byte
    path.write_bytes(content)
    check_reads_or_explains(path)
