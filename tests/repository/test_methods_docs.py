"""Every kind of learning and every term has a page: equation and papers stand in the code, its config loads.

A page docs/methods/<kind>.md has a line ``Equation: `...` ``, a line ``Source: ...`` and a yaml block, and
says what to watch and when not to use the method.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import reference_token_advantages

from configs.kinds.advantages import ADVANTAGES
from configs.kinds.base import load_target
from configs.kinds.bonuses import BONUSES
from configs.kinds.controllers import CONTROLLERS
from configs.kinds.losses import LOSSES
from configs.kinds.prompt_weights import PROMPT_WEIGHTS
from configs.kinds.refiners import CritiqueGrpoOptions
from configs.kinds.reward_shapes import REWARD_SHAPES
from configs.kinds.token_advantages import TOKEN_ADVANTAGES
from configs.load import load_config
from configs.schema import EntropyConfig, KLConfig, RunConfig
from docs.method_tables import index
from trainer.credit.credit import refined_advantage
from trainer.data.demonstrations import draw
from trainer.losses.normalize import row_weights
from trainer.rollout.dynamic_sampling import nonzero_variance_rows
from trainer.rollout.tempered import positive_tempered_rows

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "methods"
OTHERS = {
    "kl_anchor": KLConfig,
    "entropy_bonus": EntropyConfig,
    "sft_refresh": draw,
    "decoupled": reference_token_advantages.decoupled,
    "aggregation": row_weights,
    "dynamic_sampling": nonzero_variance_rows,
    "tempered": positive_tempered_rows,
    "critique_grpo": CritiqueGrpoOptions,
    "rltf_sd": refined_advantage,
}
"""Methods that are a section of the config, or two kinds together; and where their equation is."""
CREDIT = ADVANTAGES | REWARD_SHAPES | BONUSES | PROMPT_WEIGHTS
TABLES = LOSSES | TOKEN_ADVANTAGES | CONTROLLERS | CREDIT
KINDS = (*TABLES, *OTHERS)
UNPUBLISHED = (
    *("nll", "threshold", "entropy_bands", "kl_anchor", "entropy_bonus", "rejection", "reinforce"),
)
ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")


USED: dict[str, Callable[[RunConfig], bool]] = {
    "kl_anchor": lambda config: config.kl.coef > 0 and config.kl_base.coef > 0,
    "entropy_bonus": lambda config: config.entropy.coef > 0,
    "sft_refresh": lambda config: config.sft.share > 0,
    "decoupled": lambda config: (
        config.loss["policy"]["ratio_to"] == "proximal" and "correct" in config.token_advantage
    ),
    "aggregation": lambda config: config.loss["policy"]["aggregate"] != "token_mean",
    "dynamic_sampling": lambda config: config.rollout.zero_variance_groups == "refill",
    "tempered": lambda config: config.tempered.groups_per_step > 0,
    "critique_grpo": lambda config: config.refiner["kind"] == "critique_grpo",
    "rltf_sd": lambda config: config.refiner["kind"] == "rltf_sd",
}


def page(kind: str) -> str:
    return (PAGES / f"{kind}.md").read_text(encoding="utf-8")


def line(text: str, name: str) -> str:
    """What follows ``name:`` at the start of a line."""
    found = re.search(rf"^{name}: (.+)$", text, flags=re.MULTILINE)
    assert found, f"the page lacks a line {name}: ..."
    return found[1]


def plain(text: str) -> str:
    """One space between words."""
    return " ".join(text.split())


def docstring(name: str) -> str:
    owner = OTHERS[name] if name in OTHERS else load_target(TABLES[name].target)
    return plain(owner.__doc__ or "")


@pytest.mark.parametrize("name", KINDS)
def test_equation_and_papers_are_those_of_the_code(name: str) -> None:
    """The docstring opens with the equation and names the same paper first."""
    equation = plain(line(page(name), "Equation").strip("`"))
    assert docstring(name).startswith(equation)
    source = ARXIV.findall(line(page(name), "Source"))
    assert source or name in UNPUBLISHED
    assert name in UNPUBLISHED or source[:1] == ARXIV.findall(docstring(name))[:1]


@pytest.mark.parametrize("name", KINDS)
def test_the_config_of_the_page_loads(name: str, tmp_path: Path) -> None:
    """Over the debug preset; it uses the kind, and no option that is not shown is needed."""
    block = re.search(r"^```yaml\n(.+?)^```$", page(name), flags=re.MULTILINE | re.DOTALL)
    assert block, "the page lacks a yaml block"
    path = tmp_path / "page.yaml"
    path.write_text(f"base: {ROOT / 'configs' / 'debug.yaml'}\n{block[1]}", encoding="utf-8")
    config = load_config(str(path))
    sections = [config.loss, config.token_advantage, config.controllers]
    sections += [config.reward_shape, config.bonus, config.prompt_weight]
    entries = [config.advantage, *(entry for section in sections for entry in section.values())]
    used = [entry["kind"] for entry in entries]
    used += [page for page, used in USED.items() if used(config)]
    assert name in used


@pytest.mark.parametrize("name", KINDS)
def test_a_page_says_when(name: str) -> None:
    text = page(name)
    assert text.startswith(f"# {name}: ")
    assert "**What to watch.**" in text and "**When not to use it.**" in text


def test_the_list_of_pages_is_complete() -> None:
    """README.md links every kind's page (`make docs`); beside them lies only the table of what combines."""
    assert index() in page("README"), "docs/methods/README.md is out of date: run `make docs`"
    listed = set(re.findall(r"^\| \[(\w+)\]\((\w+)\.md\) \|", page("README"), flags=re.MULTILINE))
    assert listed == {(name, name) for name in KINDS}
    assert {path.stem for path in PAGES.glob("*.md")} == {*KINDS, "README", "combinations"}
