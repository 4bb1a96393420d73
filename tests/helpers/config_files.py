"""Config files that a test writes, and the message that loading one must give."""

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
