"""Rubrics of judges: YAML files with an instruction and weighted criteria. In: a name or path. Out: a Rubric.

Bundled rubrics are in `rewards/rubrics/`; docs/scorers/judge.md has a worked example.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from configs.errors import nearest

if TYPE_CHECKING:
    from configs.kinds.judges import JudgeOptions

BUNDLED: Final = Path(__file__).parent / "rubrics"
PASS_MARK: Final = 0.5
"""A known good answer must score at least this, every other canary less, unless the rubric says otherwise."""
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")
_MAX_BYTES: Final = 1 << 20
_KEYS: Final = ("instruction", "uses_reference", "criteria", "canaries")
_CRITERION_KEYS: Final = ("name", "description", "weight", "choices", "range")
_CANARY_KEYS: Final = ("question", "reference", "good", "bad", "pass_mark")


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """One thing that is rated: by one of `choices` (label -> value in [0, 1]), or by a number in `range`."""

    name: str
    description: str
    weight: float
    choices: Mapping[str, float]
    """Empty if the criterion has a range."""
    range: tuple[float, float] = (0.0, 1.0)

    def value(self, given: object) -> float | None:
        """The value in [0, 1] of what a judge gave; None if it is neither a choice nor a number in range."""
        if self.choices:
            return self.choices.get(given) if isinstance(given, str) else None
        if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
            return None
        low, high = self.range
        return (given - low) / (high - low) if low <= given <= high else None

    def lowest(self) -> float:
        """The lowest value."""
        return min(self.choices.values()) if self.choices else 0.0

    def allowed(self) -> str:
        """What a judge may give, in words."""
        if self.choices:
            return "one of " + ", ".join(f'"{label}"' for label in self.choices)
        return f"a number from {self.range[0]:g} to {self.range[1]:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A question whose good and bad answers are known, for canaries."""

    question: str
    reference: str
    good: str
    bad: str
    pass_mark: float = PASS_MARK


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubric:
    """What a judge is asked. A score is the mean of the criteria's values by their weights, in [0, 1]."""

    instruction: str
    uses_reference: bool
    criteria: tuple[Criterion, ...]
    probe: Probe | None = None

    def score(self, values: Mapping[str, float]) -> float:
        """The score of a value for each criterion."""
        total = sum(each.weight for each in self.criteria)
        return sum(each.weight * values[each.name] for each in self.criteria) / total

    def lowest(self) -> float:
        """The lowest score that there is."""
        return self.score({each.name: each.lowest() for each in self.criteria})


def start(options: JudgeOptions) -> JudgeOptions:
    """Check the rubric before a run starts. The path in the returned options is absolute.

    Raises:
        ValueError: the rubric cannot be used.
    """
    path = rubric_path(options.rubric)
    load_rubric(str(path))
    # Absolute, because scorers run in processes with another working directory.
    cache = str(Path(options.cache).resolve()) if options.cache else ""
    return replace(options, rubric=str(path.resolve()), cache=cache)


def rubric_path(name: str) -> Path:
    """The file of a bundled rubric, or of the path `name`.

    Raises:
        ValueError: there is neither.
    """
    bundled = {path.stem: path for path in sorted(BUNDLED.glob("*.yaml"))}
    path = bundled.get(name, Path(name))
    if not path.is_file():
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise ValueError(f"rubric = {name!r}: no such file{where}; bundled are {', '.join(bundled)}")
    return path


def load_rubric(name: str) -> Rubric:
    """Read a rubric, by the name of a bundled one or by its path.

    Raises:
        ValueError: it cannot be used; the message names file, key and what was expected.
    """
    path = rubric_path(name)
    try:
        # A path given by mistake may be a model file, which YAML would read for minutes.
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"must be at most {_MAX_BYTES} bytes long")
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: must be a readable YAML file: {' '.join(str(error).split())}") from error
    try:
        return _rubric(tree)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _rubric(tree: object) -> Rubric:
    content = _mapping(tree, "a rubric", _KEYS)
    uses_reference = content.get("uses_reference", False)
    if not isinstance(uses_reference, bool):
        raise ValueError(f"uses_reference must be true or false, got {uses_reference!r}")
    listed = content.get("criteria")
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"criteria must be a list with at least one criterion, got {listed!r}")
    criteria = tuple(_criterion(each, f"criteria[{k}]") for k, each in enumerate(listed))
    names = [each.name for each in criteria]
    if len(set(names)) < len(names):
        raise ValueError(f"criteria must have different names, got {names}")
    probe = _probe(content["canaries"], uses_reference) if "canaries" in content else None
    return Rubric(
        instruction=_text(content, "instruction", "instruction"),
        uses_reference=uses_reference,
        criteria=criteria,
        probe=probe,
    )


def _criterion(tree: object, key: str) -> Criterion:
    content = _mapping(tree, key, _CRITERION_KEYS)
    name = _text(content, "name", f"{key}.name")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{key}.name must be lower-case letters, digits and _, got {name!r}")
    weight = _number(content.get("weight", 1.0), f"{key}.weight")
    if weight <= 0:
        raise ValueError(f"{key}.weight must be above 0, got {weight:g}")
    if ("choices" in content) == ("range" in content):
        raise ValueError(f"{key} must have either choices or range")
    common: dict[str, Any] = {
        "name": name,
        "description": _text(content, "description", f"{key}.description"),
        "weight": weight,
    }
    if "choices" in content:
        return Criterion(**common, choices=_choices(content["choices"], f"{key}.choices"))
    return Criterion(**common, choices={}, range=_range(content["range"], f"{key}.range"))


def _choices(given: object, key: str) -> dict[str, float]:
    """Choice -> value. A list goes from worst to best, in equal steps from 0 to 1."""
    if isinstance(given, list):
        given = {label: rank / max(len(given) - 1, 1) for rank, label in enumerate(_labels(given, key))}
    if not isinstance(given, dict):
        raise ValueError(f"{key} must be a list from worst to best, or a mapping to values, got {given!r}")
    _labels(list(given), key)
    values = {label: _number(value, f"{key}.{label}") for label, value in given.items()}
    if len(values) < 2 or not all(0 <= value <= 1 for value in values.values()):
        raise ValueError(f"{key} must have two or more choices with values from 0 to 1, got {given!r}")
    return values


def _labels(given: list[object], key: str) -> list[str]:
    labels = [each for each in given if isinstance(each, str) and each.strip() == each != ""]
    if len(labels) < len(given):
        raise ValueError(f"{key} must be texts, got {given!r}: put yes, no, on, off and numbers in quotes")
    if len(set(labels)) < len(labels):
        raise ValueError(f"{key} must be different texts, got {given!r}")
    return labels


def _range(given: object, key: str) -> tuple[float, float]:
    if not isinstance(given, list) or len(given) != 2:
        raise ValueError(f"{key} must be [lowest, highest], got {given!r}")
    low, high = (_number(each, key) for each in given)
    if not low < high:
        raise ValueError(f"{key} must have a lowest number below the highest, got {given!r}")
    return low, high


def _probe(tree: object, uses_reference: bool) -> Probe:
    content = _mapping(tree, "canaries", _CANARY_KEYS)
    pass_mark = _number(content.get("pass_mark", PASS_MARK), "canaries.pass_mark")
    if not 0 < pass_mark <= 1:
        raise ValueError(f"canaries.pass_mark must be above 0 and at most 1, got {pass_mark:g}")
    texts = {key: _text(content, key, f"canaries.{key}") for key in ("question", "good", "bad")}
    reference = _text(content, "reference", "canaries.reference") if uses_reference else ""
    return Probe(**texts, reference=reference, pass_mark=pass_mark)


def _mapping(tree: object, key: str, known: tuple[str, ...]) -> Mapping[str, object]:
    if not isinstance(tree, dict):
        raise ValueError(f"{key} must be a mapping with {', '.join(known)}, got {type(tree).__name__}")
    if unknown := [each for each in tree if each not in known]:
        close = nearest(str(unknown[0]), known)
        hint = f" (did you mean {close}?)" if close else ""
        raise ValueError(f"{key} must have only the keys {', '.join(known)}, got {unknown[0]!r}{hint}")
    return tree


def _text(content: Mapping[str, object], name: str, key: str) -> str:
    value = content.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} must be a text, got {value!r}" + (": put it in quotes" if value else ""))
    return value.strip()


def _number(value: object, key: str) -> float:
    # In Python true is a number, and in YAML so is yes.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} must be a number, got {value!r}")
    return float(value)
