"""Groups of existing completions: which rows belong together, and what a run's rows become."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from run_files import save_step

from rollouts.records import Prompt
from trainer.data.completion_rows import read_completions, run_completions


def groups_of(folder: Path, *rows: dict[str, object], limit: int = 0) -> list[list[str]]:
    """The texts of each group."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [[each.text for each in group.completions] for group in read_completions(str(path), limit)]


def row(prompt: str, completion: str, **others: object) -> dict[str, object]:
    return {"prompt": prompt, "completion": completion, **others}


def test_consecutive_rows_of_a_prompt_are_a_group(tmp_path: Path) -> None:
    """The same prompt with another answer is another prompt; an id decides where there is one."""
    assert groups_of(tmp_path, row("a", "1"), row("a", "2"), row("b", "3")) == [["1", "2"], ["3"]]
    assert groups_of(tmp_path, row("a", "1"), row("b", "2"), row("a", "3")) == [["1"], ["2"], ["3"]]
    assert groups_of(tmp_path, row("a", "1", answer="x"), row("a", "2", answer="y")) == [["1"], ["2"]]
    assert groups_of(tmp_path, row("a", "1", id=1), row("a", "2", id=2)) == [["1"], ["2"]]
    assert groups_of(tmp_path, row("a", "1", id=1), row("a", "2", id=1), limit=1) == [["1"]]
    assert groups_of(tmp_path, {"prompt": "a", "completions": ["1", "2"]}) == [["1", "2"]]


def test_samples_have_seeds_and_ids_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row("a", str(number))) + "\n" for number in range(3)))
    (group,) = read_completions(str(path))
    assert [each.seed for each in group.completions] == [0, 1, 2]
    assert len({each.sample_id for each in group.completions}) == 3
    assert group.prompt.extra == {} and not group.has_tokens


def test_the_rows_of_a_run_get_the_prefill_and_their_tokens(tmp_path: Path) -> None:
    """What scorers saw in the run: the prompt's prefill and the completion together."""
    save_step(tmp_path, 1)
    prompt = Prompt(
        prompt_id="p0", messages=(("user", "1+2?"), ("assistant", "<think>")), answer="3", domain="d"
    )
    groups = run_completions(
        tmp_path, 0, [prompt, replace(prompt, prompt_id="p1", messages=(("user", "?"),))]
    )
    assert [[each.text for each in group.completions] for group in groups] == [
        ["<think>t", "<think>tt"],
        ["t", "tt"],
    ]
    assert [len(each.token_ids) for each in groups[0].completions] == [1, 2]
    assert groups[0].scores == ({"correct": 1.0},) * 2 and groups[0].has_tokens
    with pytest.raises(ValueError, match=r"prompt 'p1' must be in data\.train"):
        run_completions(tmp_path, 1, [prompt])
