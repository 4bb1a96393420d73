"""`polyphony rewards`: what it lists, and scores on rows of files and of runs, with bad rows named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_files import save_step

from configs.kinds.scorers import SCORERS
from configs.load import dump_yaml, load_config
from polyphony.cli import main

ROWS: list[dict[str, Any]] = [
    {"prompt": "3 + 4 = ?", "answer": "7", "completion": "so the answer is 7"},
    {"prompt": "3 + 4 = ?", "answer": "7", "completion": "so the answer is 8"},
    {"prompt": "5 + 4 = ?", "answer": "9", "completions": ["9", ""]},
]
CORRECT = ["--scorer", "lab_answer"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_rows(*rows: object, name: str = "rows.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def result(*arguments: str) -> dict[str, Any]:
    """The JSON of a trial, which must end with 0."""
    assert main(["rewards", "try", *arguments, "--json", "out.json"]) == 0
    return json.loads(Path("out.json").read_text())  # type: ignore[no-any-return]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["rewards", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_list_has_a_line_for_every_kind_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines if not line.startswith(" ")] == list(SCORERS)
    assert main(["rewards", "list", "repetition"]) == 0
    listed = capsys.readouterr().out
    assert "    max_penalty = -1.0: Score of a text that only repeats" in listed and "regex" not in listed
    assert "did you mean regex?" in refusal(capsys, "list", "regexp")


def test_a_trial_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """Four completions of two prompts: two right. Consecutive rows of one prompt are one group."""
    found = result(write_rows(*ROWS), *CORRECT, "--scorer", "format")
    correct = found["scorers"]["lab_answer"]
    assert correct["mean"] == 0.5 and correct["num_null"] == 0
    rows = found["rows"]
    assert [row["reward"] for row in rows] == [1.0, 0.0, 1.0, 0.0]
    places = ["rows.jsonl, line 1", "rows.jsonl, line 2", "rows.jsonl, line 3 #1", "rows.jsonl, line 3 #2"]
    assert [row["place"] for row in rows] == places
    shown = capsys.readouterr().out
    assert shown.startswith("rows.jsonl: 4 completions of 2 prompts\n")
    assert "format: tag structure: missing 4" in shown
    assert "rows.jsonl, line 2" in shown and "so the answer is 8" in shown
    (row,) = [line for line in shown.splitlines() if line.startswith("rows.jsonl, line 2")]
    assert sorted(row.split()[3:6]) == ["0", "0", "missing"]  # each score with its tag


OWN = """
from rollouts.records import Judgement

async def score(prompt, completions, options):
    if completions[0].text in options.options["fails"]:
        raise KeyError("no key")
    return [Judgement(score=1.0) for _ in completions]
"""


@pytest.fixture
def own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The arguments of a trial of four groups with an own scorer that fails on chosen ones."""
    (folder / "own_async.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(folder))
    Path("own.yaml").write_text(
        'base: debug\nallow: [own_async]\nscorers: {mine: {kind: "own_async:score", weight: 1.0}}\n'
    )
    rows = [{"prompt": "3 + 4 = ?", "id": str(number), "completion": str(number)} for number in range(4)]
    return write_rows(*rows)


@pytest.mark.parametrize(
    ("fails", "code", "note"),
    [
        ("", 0, ""),
        ("0 1", 0, "2 of 4 scores are missing"),
        ("0 1 2", 1, "3 of 4 scores are missing, too many"),
    ],
)
def test_missing_scores_are_noted_and_too_many_end_with_1(
    own: str, fails: str, code: int, note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = f"scorers.mine.options={{fails: '{fails}'}}" if fails else "scorers.mine.options={fails: x}"
    assert main(["rewards", "try", own, "--config", "own.yaml", "--scorer", "mine", options]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if "missing" in line]
    assert lines == ([f"polyphony: scorers.mine: {note}"] if note else [])


def test_the_failure_of_an_async_scorer_is_logged_with_row_and_traceback(
    own: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = "scorers.mine.options={fails: '2'}"
    assert main(["rewards", "try", own, "--config", "own.yaml", "--scorer", "mine", options]) == 0
    assert "sample rows.jsonl, line 3: error: " in caplog.text
    assert "own_async.py:6 in score: KeyError: 'no key'" in caplog.text
    assert "Traceback (most recent call last):" in caplog.text and "raise KeyError" in caplog.text


def test_without_a_scorer_of_the_reward_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    """Null and not 0, which would look like a bad completion."""
    found = result(write_rows(*ROWS), *CORRECT, "scorers.lab_answer.weight=0")
    assert [row["reward"] for row in found["rows"]] == [None] * 4
    assert found["scorers"]["lab_answer"]["mean"] == 0.5
    assert "no scorer has a weight, so there is no reward" in capsys.readouterr().err


def test_a_trial_of_a_config_and_of_chosen_scorers() -> None:
    """The preset's scorers with their weights; one of them; another option by override."""
    path = write_rows(*ROWS)
    assert list(result(path, "--config", "debug")["scorers"]) == ["correct", "format"]
    assert list(result(path, "--config", "debug", "--scorer", "correct")["scorers"]) == ["correct"]
    found = result(path, "--config", "debug", "scorers.correct.weight=2.0", "--scorer", "correct")
    assert [row["reward"] for row in found["rows"]] == [2.0, 0.0, 2.0, 0.0]


def test_parquet_and_messages() -> None:
    """TRL's conversational layout; the last message is the completion."""
    chat = [{"role": "assistant", "content": "it is 7"}]
    pq.write_table(
        pa.Table.from_pylist([{"prompt": "3 + 4", "answer": "7", "completion": chat}]), "rows.parquet"
    )
    found = result("rows.parquet", *CORRECT)
    assert [row["text"] for row in found["rows"]] == ["it is 7"]
    assert found["scorers"]["lab_answer"]["mean"] == 1.0


def test_groups_are_compared_as_groups(capsys: pytest.CaptureFixture[str]) -> None:
    """Rows with one prompt_id are a group, whatever lies in their prompts' place in the file."""
    rows = [{"id": "a", **ROWS[0]}, {"id": "a", **ROWS[0]}, {"id": "b", **ROWS[0]}]
    result(write_rows(*rows), *CORRECT)
    assert "3 completions of 2 prompts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "?"}, "line 1: completion must be text, or chat messages"),
        ({"prompt": "?", "completion": 3}, "line 1: completion must be text"),
        (
            {"prompt": "?", "completion": [{"role": "user", "content": "x"}]},
            "line 1: completion must be text",
        ),
        ({"prompt": "?", "completions": []}, "line 1: completions must be a list of texts"),
        ({"prompt": "?", "completions": ["a", 1]}, "line 1: completions must be a list of texts"),
        ({"prompt": "?", "completions": ["a"], "completion": "b"}, "line 1: completion must be absent"),
        ({"prompt": "?", "completions": ["a"], "token_ids": [1]}, "line 1: token_ids must be absent"),
        (
            {"prompt": "?", "completion": "a", "token_ids": ["1"]},
            "line 1: token_ids must be a list of token ids",
        ),
        (
            {"prompt": "?", "completion": "a", "finish_reason": "end"},
            "line 1: finish_reason must be stop or length",
        ),
        ({"prompt": 3, "completion": "a"}, "line 1: prompt must be text"),
        ({"prompt": "?", "completion": "\ud800"}, "line 1: completion must be Unicode text"),
    ],
)
def test_a_bad_row_is_named(row: object, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"polyphony: rows.jsonl, {message}" in refusal(capsys, "try", write_rows(row), *CORRECT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["try", "rows.jsonl"], "needs --config CONFIG, or --scorer KIND"),
        (["try", "rows.jsonl", "--scorer", "lab_anser"], "did you mean lab_answer?"),
        (["try", "rows.jsonl", "--config", "debug", "--scorer", "corect"], "did you mean correct?"),
        (["try", "rows.jsonl", "--scorer", "length"], "line 1: scorers.length (length) reads tokens"),
        (["try", "rows.jsonl", *CORRECT, "--step", "3"], "--step must be left out with a file"),
        (["try", "rows.jsonl", *CORRECT, "--limit", "-1"], "must be 0 or more"),
        (["try", "none.jsonl", *CORRECT], "none.jsonl"),
        (["try", "rows.txt", *CORRECT], "must name a .jsonl or .parquet file"),
        (["try", ".", "--config", "debug"], "step must be a committed one (none)"),
        (["try", ".", *CORRECT], "must be a run directory with config.yaml"),
        (["try", "rows.jsonl", "--scorer", "regex"], "scorers.regex.pattern = '': must not be empty"),
        (["try", "empty.jsonl", *CORRECT], "must have at least one row, got none"),
        (["bench", "debug", "--seconds", "0"], "--seconds must be a number above 0"),
        (["bench", "debug", "--seconds", "nan"], "--seconds must be a number above 0"),
    ],
)
def test_bad_input_is_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(*ROWS)
    write_rows(name="empty.jsonl")
    assert message in refusal(capsys, *arguments)


def test_tokens_of_a_row_are_scored() -> None:
    found = result(
        write_rows({**ROWS[0], "token_ids": list(range(48))}),
        "--scorer",
        "length",
        "scorers.length.weight=1.0",
    )
    assert found["scorers"]["length"]["mean"] == 0.5  # half-way from 32 to 64


def test_a_scorer_without_any_score_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    """The reason of the first is shown, and the scores are null in the file, not 0."""
    path = write_rows({"prompt": "?", "answer": "none", "completion": "7"})
    assert main(["rewards", "try", path, *CORRECT, "--json", "out.json"]) == 1
    done = capsys.readouterr()
    assert "lab_answer: 1 error, the first: rewards" in done.out or "must be an integer" in done.out
    assert "scorers.lab_answer: all 1 scores are missing, too many" in done.err
    (row,) = json.loads(Path("out.json").read_text())["rows"]
    assert row["reward"] is None and row["scores"] == {"lab_answer": None}


def a_run(folder: Path) -> str:
    """A run of two committed steps whose prompts are in its dataset; the stored score is 1 everywhere."""
    write_rows(
        *({"id": f"p{number}", "prompt": "1+2?", "answer": "3"} for number in range(4)), name="data.jsonl"
    )
    config = load_config("debug", [f"data.train={{kind: file, path: {folder / 'data.jsonl'}}}"])
    run_dir = folder / "run-a"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(dump_yaml(config))
    save_step(run_dir, 1)
    save_step(run_dir, 2)
    return str(run_dir)


def test_the_rows_of_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its own config; what differs from the stored scores is counted: its texts hold no integer."""
    run_dir = a_run(folder)
    assert main(["rewards", "try", run_dir]) == 0
    shown = capsys.readouterr().out
    assert "4 completions of 2 prompts" in shown and "step 2, g2-0" in shown
    assert "correct: 4 of 4 scores differ from those that the run stored" in shown
    assert main(["rewards", "try", run_dir, "--step", "1"]) == 0
    assert "step 1, g0-0" in capsys.readouterr().out


def test_a_run_that_does_not_fit_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = a_run(folder)
    assert "must be a committed one (1 to 2), got 7" in refusal(capsys, "try", run_dir, "--step", "7")
    assert "--limit must be left out" in refusal(capsys, "try", run_dir, "--limit", "7")
    assert "prompt 'p2' must be in data.train" in refusal(capsys, "try", run_dir, "--config", "debug")


def test_bench_measures_every_scorer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards", "bench", "debug", "--seconds", "0.1", "--json", "out.json"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("groups of 8 completions, 0.1 s for each scorer")
    found = json.loads(Path("out.json").read_text())["scorers"]
    assert list(found) == ["correct", "format"]
    assert all(each["rows_per_s"] > 10 and each["null_share"] == 0 for each in found.values())


def test_bench_on_given_rows() -> None:
    rows = write_rows(*ROWS)
    given = ["rewards", "bench", "debug", "--rows", rows, "--seconds", "0.1", "--scorer", "correct"]
    assert main([*given, "--json", "out.json"]) == 0
    assert list(json.loads(Path("out.json").read_text())["scorers"]) == ["correct"]
