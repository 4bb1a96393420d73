"""docs/methods/combinations.md: what its table says combines loads, and what it says does not is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.kinds.losses import LOSSES
from configs.load import load_config

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods" / "combinations.md"
TWO = "learner.updates_per_step=2"
COLUMNS: dict[str, tuple[str, ...]] = {
    "one update": (),
    "two updates": (TWO,),
    "one update, behavior": ("loss.policy.old=behavior", "rollout.max_lag=1"),
    "shape": (TWO, "shape.push={kind: repo_r}"),
    "tis and masks": (TWO, "shape.correct={kind: tis}", "shape.few={kind: top_entropy}"),
    "KL anchor": (TWO, "kl.coef=0.1", "kl_base.coef=0.1", "reference.reset_every=5"),
    "entropy bonus": (TWO, "controllers.bonus={kind: adaptive_entropy}"),
    "replay": (TWO, "loss.replay={kind: $}", "replay.groups_per_step=2"),
    "demonstrations": (TWO, "loss.sft={kind: $, weight: 0.1}", "sft.share=0.125"),
}


def cells() -> dict[tuple[str, str], str]:
    """(loss, column) -> yes, no or - (there is no such option)."""
    lines = [line.strip("| \n") for line in PAGE.read_text().splitlines() if line.startswith("|")]
    header, _, *rows = [re.split(r" \| ", line) for line in lines]
    assert header[1:] == list(COLUMNS)
    return {(row[0], name): cell for row in rows for name, cell in zip(header[1:], row[1:], strict=True)}


CELLS = cells()


@pytest.mark.parametrize(("loss", "column"), CELLS)
def test_a_cell(loss: str, column: str) -> None:
    """The debug preset with the loss and what the column adds."""
    overrides = [f"loss.policy={{kind: {loss}}}", *(each.replace("$", loss) for each in COLUMNS[column])]
    if CELLS[loss, column] == "yes":
        assert load_config("debug", overrides).loss["policy"]["kind"] == loss
        return
    with pytest.raises(ConfigError) as caught:
        load_config("debug", overrides)
    unknown_option = "unknown key" in str(caught.value)
    assert unknown_option == (CELLS[loss, column] == "-"), caught.value


def test_every_loss_has_a_row() -> None:
    assert {loss for loss, _ in CELLS} == set(LOSSES)
