"""docs/methods/combinations.md: what its table says combines loads, and what it says does not is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.kinds.advantages import ADVANTAGES
from configs.kinds.losses import LOSSES
from configs.load import load_config

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods" / "combinations.md"
TWO = "learner.updates_per_step=2"
COLUMNS: dict[str, tuple[str, ...]] = {
    "one update": (),
    "two updates": (TWO,),
    "one update, behavior": ("loss.policy.ratio_to=behavior", "rollout.max_lag=1"),
    "token_advantage": (TWO, "token_advantage.push={kind: repo_r}"),
    "tis and masks": (TWO, "token_advantage.correct={kind: tis}", "token_advantage.few={kind: top_entropy}"),
    "credit": (TWO, "bonus.b={kind: ucb}", "prompt_weight.w={kind: pass_at_k_value}"),
    "KL anchor": (TWO, "kl.coef=0.1", "kl_base.coef=0.1", "reference.reset_every=5"),
    "entropy bonus": (TWO, "controllers.bonus={kind: adaptive_entropy}"),
    "replay": (TWO, "loss.replay={kind: $}", "replay.groups_per_step=2"),
    "demonstrations": (TWO, "loss.sft={kind: $, weight: 0.1}", "sft.share=0.125"),
}


OF_ADVANTAGES: dict[str, tuple[str, ...]] = {
    "groups of one": ("rollout.group_size=1",),
    "overlong": ("reward_shape.s={kind: overlong}",),
    "mara": ("reward_shape.s={kind: mara}",),
    "KL in the reward": ("kl={coef: 0.1, estimator: k1, place: reward}",),
    "bonus": ("bonus.b={kind: ucb_con}",),
    "prompt weight": ("prompt_weight.w={kind: pass_at_k_value}",),
}


def cells(first: str, columns: dict[str, tuple[str, ...]]) -> dict[tuple[str, str], str]:
    """(row, column) -> yes, no or - (there is no such option), of the table whose first column is `first`."""
    found = re.search(rf"^\| {first} \|.*\n(?:\|.*\n)+", PAGE.read_text(), flags=re.MULTILINE)
    assert found, first
    lines = [line.strip("| \n") for line in found[0].splitlines()]
    header, _, *rows = [re.split(r" \| ", line) for line in lines]
    assert header[1:] == list(columns)
    return {(row[0], name): cell for row in rows for name, cell in zip(header[1:], row[1:], strict=True)}


CELLS = cells("loss", COLUMNS)
ADVANTAGE_CELLS = cells("advantage", OF_ADVANTAGES)


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


@pytest.mark.parametrize(("kind", "column"), ADVANTAGE_CELLS)
def test_a_cell_of_an_advantage(kind: str, column: str) -> None:
    """The debug preset with the advantage and what the column adds."""
    overrides = [f"advantage={{kind: {kind}}}", *OF_ADVANTAGES[column]]
    if ADVANTAGE_CELLS[kind, column] == "yes":
        assert load_config("debug", overrides).advantage["kind"] == kind
        return
    with pytest.raises(ConfigError, match=r"compares|must not be above|success"):
        load_config("debug", overrides)


def test_every_loss_and_advantage_has_a_row() -> None:
    assert {loss for loss, _ in CELLS} == set(LOSSES)
    assert {kind for kind, _ in ADVANTAGE_CELLS} == set(ADVANTAGES)
