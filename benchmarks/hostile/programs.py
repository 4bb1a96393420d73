"""Hostile programs, made from the snippets in `families/*.txt`. In: what a run has prepared. Out: `Case`s.

A snippet defines ``attack()``. It is placed in a program that reads standard input, in a function that is
called, and in a function that a test as source calls. The expected answer is a number of twelve digits that a
program can only learn by getting out: from the environment, a file or a port of the machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rollouts.records import Prompt

FAMILIES: Final = Path(__file__).parent / "families"
_HEAD: Final = re.compile(r"^=== (.+)$", re.M)
_PLACES: Final = ("stdin", "call", "source")
_CHECK: Final = "def check(candidate):\n    assert candidate(5) == {0}\n    assert candidate(6) == {0}\n"


@dataclass(frozen=True, slots=True)
class Case:
    """One answer. `scorer` and `options` say who scores it; a score of 1 (or `highest`) is an escape."""

    family: str
    name: str
    prompt: Prompt
    text: str
    scorer: str
    options: Mapping[str, Any]
    may_be_missing: bool = False


def family_names() -> list[str]:
    """The families that have a file, in order."""
    return sorted(path.stem for path in FAMILIES.glob("*.txt"))


def snippets(family: str) -> list[tuple[str, str]]:
    """(name, source) of each snippet of a family."""
    parts = _HEAD.split((FAMILIES / f"{family}.txt").read_text(encoding="utf-8"))
    return list(zip(parts[1::2], parts[2::2], strict=True))


def programs(
    families: Sequence[str], token: str, places: Mapping[str, str], options: Mapping[str, Any]
) -> Iterator[Case]:
    """Every snippet of `families` in every place. `places`: what stands for @NAME@ in them."""
    for family in families:
        for name, source in snippets(family):
            for key, value in places.items():
                source = source.replace(f"@{key}@", value)
            for place in _PLACES:
                yield Case(
                    family,
                    f"{name} ({place})",
                    _prompt(f"{family}/{name}/{place}", place, token),
                    f"```python\n{_program(source, place)}\n```",
                    "code",
                    options,
                )


def _program(source: str, place: str) -> str:
    return f"{source}\nprint(attack())" if place == "stdin" else f"{source}\ndef f(x):\n    return attack()"


def _prompt(prompt_id: str, place: str, token: str) -> Prompt:
    truth: Any = {
        "stdin": {"inputs": ["5\n"], "outputs": [token]},
        "call": {"inputs": [[5]], "outputs": [int(token)], "fn_name": "f"},
        "source": {"test": _CHECK.format(token), "entry_point": "f"},
    }[place]
    return Prompt(prompt_id=prompt_id, messages=(("user", ""),), answer=None, domain="", ground_truth=truth)
