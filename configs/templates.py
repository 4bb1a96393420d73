"""Prompt templates: text files with named fields, one folder for each set, checked when they are loaded.

In: the name of a set that comes with the package (a folder of `configs/prompts`), or the path of a folder.
Out: a `PromptSet`, whose methods fill in the fields. Used by refiners and by the lab's corpus. A field is
written ``{name}``, a brace ``{{``. What is filled in is never read as a template: an answer may hold braces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Final

FOLDER: Final = Path(__file__).resolve().parent / "prompts"
FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "refine": ("question", "answer", "critique"),
    "critic": ("question", "answer", "reference"),
    "right": (),
    "wrong": (),
    "right_truth": ("reference",),
    "wrong_truth": ("reference",),
    "teacher": ("question", "solution", "feedback"),
    "solution": ("solution",),
    "feedback": ("feedback",),
}
"""The fields that each file of a set may have. ``refine`` asks for a better answer, ``critic`` for a
critique; ``right`` and ``wrong`` are critiques by verdict, those with ``_truth`` say the answer; ``teacher``
is the prompt of a self-teacher, with the sections ``solution`` and ``feedback``."""
NEEDED: Final[dict[str, tuple[str, ...]]] = {
    "refine": ("question", "answer", "critique"),
    "critic": ("question", "answer"),
    "right_truth": ("reference",),
    "wrong_truth": ("reference",),
    "teacher": ("question", "solution", "feedback"),
    "solution": ("solution",),
    "feedback": ("feedback",),
}
"""The fields that a file must have: without them its prompt could not do its work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """The templates of one folder, by the file's name without ``.txt``."""

    templates: Mapping[str, str]

    def refine(self, fields: Mapping[str, str]) -> str:
        """The user's message that asks for a better answer; `fields` are question, answer and critique."""
        return self.fill("refine", fields)

    def critic(self, fields: Mapping[str, str]) -> str:
        """The user's message that asks a model for a critique; `fields` are question, answer, reference."""
        return self.fill("critic", fields)

    def verdict(self, fields: Mapping[str, str], is_right: bool, with_truth: bool) -> str:
        """The critique that says only whether the answer is right, and with `with_truth` the true one."""
        return self.fill(("right" if is_right else "wrong") + ("_truth" if with_truth else ""), fields)

    def teacher(self, question: str, solution: str | None, feedback: str | None) -> str:
        """The self-teacher's message; a section without content is left out."""
        sections = {
            "solution": "" if solution is None else self.fill("solution", {"solution": solution}),
            "feedback": "" if feedback is None else self.fill("feedback", {"feedback": feedback}),
        }
        return self.fill("teacher", {"question": question, **sections})

    def fill(self, name: str, fields: Mapping[str, str]) -> str:
        """The template `name` with its fields, all in one pass; `fields` may have more than it uses."""
        return self.templates[name].format_map({key: fields[key] for key in FIELDS[name] if key in fields})


def prompt_folder(name: str) -> Path:
    """The folder of a set that comes with the package, or the one at a path."""
    return FOLDER / name if name and (FOLDER / name).is_dir() else Path(name)


def load_prompt_set(name: str) -> PromptSet:
    """The templates of a set that comes with the package, or of the folder at a path.

    Raises:
        ValueError: there is no such folder, a file is missing or cannot be read, or a template has a field
            that it may not have or lacks one that it must have. The message names the file.
    """
    folder = prompt_folder(name)
    if not name or not folder.is_dir():
        known = ", ".join(sorted(path.name for path in FOLDER.iterdir() if path.is_dir()))
        raise ValueError(f"prompts must be one of {known}, or a folder of templates, got {name!r}")
    return PromptSet(templates={part: _read(folder / f"{part}.txt", part) for part in FIELDS})


def _read(path: Path, part: str) -> str:
    """One template; line breaks at its end are not part of it."""
    try:
        text = path.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: must be a template of UTF-8 text: {error}") from error
    allowed = FIELDS[part]
    try:
        pieces = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{path}: must be a template: {error} (write a brace as {{{{ or }}}})") from error
    used = [(name, spec, conversion) for _, name, spec, conversion in pieces if name is not None]
    for name, spec, conversion in used:
        if name not in allowed or spec or conversion:
            shown = ", ".join(f"{{{each}}}" for each in allowed) or "none"
            raise ValueError(f"{path}: fields must be among {shown}, got {{{name}}}")
    missing = [name for name in NEEDED.get(part, ()) if name not in {name for name, _, _ in used}]
    if missing:
        raise ValueError(f"{path}: must have the field {{{missing[0]}}}")
    return text
