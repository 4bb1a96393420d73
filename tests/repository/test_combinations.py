"""docs/methods/combinations.md: what its table says combines loads, and what it says does not is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.kinds.advantages import ADVANTAGES
from configs.kinds.losses import LOSSES
from configs.load import load_config
from docs.method_tables import WITH_ADVANTAGE, WITH_LOSS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods" / "combinations.md"


def cells(first: str, columns: dict[str, tuple[str, ...]]) -> dict[tuple[str, str], str]:
    """(row, column) -> yes, no or - (there is no such option), of the table whose first column is `first`."""
    found = re.search(rf"^\| {first} \|.*\n(?:\|.*\n)+", PAGE.read_text(), flags=re.MULTILINE)
    assert found, first
    lines = [line.strip("| \n") for line in found[0].splitlines()]
    header, _, *rows = [re.split(r" \| ", line) for line in lines]
    assert header[1:] == list(columns)
    return {(row[0], name): cell for row in rows for name, cell in zip(header[1:], row[1:], strict=True)}


CELLS = cells("loss", WITH_LOSS)
ADVANTAGE_CELLS = cells("advantage", WITH_ADVANTAGE)


@pytest.mark.parametrize(("loss", "column"), CELLS)
def test_a_cell(loss: str, column: str) -> None:
    """The debug preset with the loss and what the column adds."""
    overrides = [f"loss.policy={{kind: {loss}}}", *(each.replace("$", loss) for each in WITH_LOSS[column])]
    if CELLS[loss, column] == "yes":
        assert load_config("debug", overrides).loss["policy"]["kind"] == loss
        return
    with pytest.raises(ConfigError) as caught:
        load_config("debug", overrides)
    unknown_option = "unknown key" in str(caught.value)
    assert unknown_option == (CELLS[loss, column] == "-"), caught.value


@pytest.mark.parametrize(("kind", "column"), ADVANTAGE_CELLS)
def test_a_cell_of_an_advantage(kind: str, column: str) -> None:
    """The debug preset with the advantage and what the column adds."""
    overrides = [f"advantage={{kind: {kind}}}", *WITH_ADVANTAGE[column]]
    if ADVANTAGE_CELLS[kind, column] == "yes":
        assert load_config("debug", overrides).advantage["kind"] == kind
        return
    with pytest.raises(ConfigError, match=r"compares|must not be above|success"):
        load_config("debug", overrides)


def test_every_loss_and_advantage_has_a_row() -> None:
    """`make docs` writes the rows; the cells above are then what a reviewer looks at."""
    assert {loss for loss, _ in CELLS} == set(LOSSES)
    assert {kind for kind, _ in ADVANTAGE_CELLS} == set(ADVANTAGES)
