"""Prompt templates: fields are filled in one pass, and files that cannot be used are refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from configs.templates import FOLDER, load_prompt_set


def test_the_sets_of_the_package() -> None:
    """Every folder loads, whatever the working directory; the lab's words by hand."""
    for folder in FOLDER.iterdir():
        load_prompt_set(folder.name)
    lab = load_prompt_set("lab")
    fields = {"question": "1 + 2 = ?", "answer": "it is 4", "reference": "3", "critique": "wrong"}
    assert lab.refine(fields) == "1 + 2 = ? it is 4 wrong again"
    assert lab.critic(fields) == "1 + 2 = ? it is 4 critique"
    verdicts = [lab.verdict(fields, right, truth) for right in (True, False) for truth in (False, True)]
    assert verdicts == ["right", "right , the answer is 3", "wrong", "wrong , the answer is 3"]
    assert lab.teacher("q", "s", None) == "q s right  again" and lab.teacher("q", None, "f") == "q  f again"


def test_what_is_filled_in_is_not_a_template() -> None:
    """An answer with braces, a field's name or a format stays as it is."""
    fields = {"question": "q", "answer": "{critique} {0} {{x}} %s", "critique": "c{answer}"}
    assert load_prompt_set("lab").refine(fields) == "q {critique} {0} {{x}} %s c{answer} again"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("refine", "{question} {answer}", r"refine\.txt: must have the field \{critique\}"),
        ("refine", "{question} {answer} {critique} {reference}", r"fields must be among .*got \{reference\}"),
        ("right", "yes {answer}", r"right\.txt: fields must be among none, got \{answer\}"),
        ("critic", "{question} {answer.__class__}", r"fields must be among .*got \{answer\.__class__\}"),
        ("critic", "{question} {answer!r}", "fields must be among"),
        ("critic", "{question} {answer:>9}", "fields must be among"),
        ("critic", "{question} {answer", r"critic\.txt: must be a template: .*write a brace as \{\{ or \}\}"),
        ("critic", "{question} {}", r"got \{\}"),
    ],
)
def test_templates_that_cannot_be_used(tmp_path: Path, file: str, text: str, message: str) -> None:
    shutil.copytree(FOLDER / "lab", tmp_path / "own")
    (tmp_path / "own" / f"{file}.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_prompt_set(str(tmp_path / "own"))


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    for name in ("", "nowhere", str(tmp_path / "none")):
        with pytest.raises(ValueError, match="must be one of critique, lab, or a folder of templates, got"):
            load_prompt_set(name)
    with pytest.raises(ValueError, match=r"refine\.txt: must be a template of UTF-8 text"):
        load_prompt_set(str(tmp_path))
