"""Config files that a test writes, and the message that loading one must give."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from configs.load import (
    ConfigError,
    load_config,
)

CORRECT = "scorers: {correct: {kind: lab_answer, weight: 1.0}}\n"


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def problem(path: str, *overrides: str) -> str:
    """The message of the ConfigError that loading must raise."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def check_refused(overrides: Sequence[str], key: str, rule: str) -> None:
    """Assert that the debug preset with these overrides is refused, with a line of `key` and `rule`."""
    lines = problem("debug", *overrides).splitlines()
    assert any((f": {key} = " in line or f": {key}: " in line) and rule in line for line in lines), lines
