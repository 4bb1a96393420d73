"""Write the tables of docs/methods: the list of pages in README.md, and what combines in combinations.md.

`python docs/method_tables.py` rewrites them (`make docs`); `--check` exits 1 if one is out of date. The list
is made from the first line of each page. A cell says whether `configs` accepts the debug preset with the
row's kind and what the column adds: `no` is a refused config, `-` a kind without the option.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs.errors import ConfigError  # noqa: E402
from configs.kinds.advantages import ADVANTAGES  # noqa: E402
from configs.kinds.bonuses import BONUSES  # noqa: E402
from configs.kinds.losses import LOSSES  # noqa: E402
from configs.kinds.prompt_weights import PROMPT_WEIGHTS  # noqa: E402
from configs.kinds.reward_shapes import REWARD_SHAPES  # noqa: E402
from configs.kinds.token_advantages import TOKEN_ADVANTAGES  # noqa: E402
from configs.load import load_config  # noqa: E402
from docs.written_pages import write_or_check  # noqa: E402

METHODS = ROOT / "docs" / "methods"
NO_PAGES: Final = ("README", "combinations")
TWO: Final = "learner.updates_per_step=2"
WITH_LOSS: Final[dict[str, tuple[str, ...]]] = {
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
"""Column -> what it adds; $ stands for the row's kind."""
WITH_ADVANTAGE: Final[dict[str, tuple[str, ...]]] = {
    "groups of one": ("rollout.group_size=1",),
    "overlong": ("reward_shape.s={kind: overlong}",),
    "mara": ("reward_shape.s={kind: mara}",),
    "KL in the reward": ("kl={coef: 0.1, estimator: k1, place: reward}",),
    "bonus": ("bonus.b={kind: ucb_con}",),
    "prompt weight": ("prompt_weight.w={kind: pass_at_k_value}",),
}


def cell(key: str, kind: str, added: Sequence[str]) -> str:
    """yes, no, or - where an option that `added` sets is none of the kind's."""
    try:
        load_config("debug", [f"{key}={{kind: {kind}}}", *(each.replace("$", kind) for each in added)])
    except ConfigError as error:
        return "-" if "unknown key" in str(error) else "no"
    return "yes"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def combinations(first: str, key: str, kinds: Iterable[str], columns: Mapping[str, Sequence[str]]) -> str:
    """What each kind under `key` combines with."""
    rows = ([kind, *(cell(key, kind, added) for added in columns.values())] for kind in kinds)
    return table([first, *columns], rows)


def index() -> str:
    """The list of pages: kinds in the order in which a step uses them, then the other methods by name."""
    before = (*ADVANTAGES, *REWARD_SHAPES, *BONUSES, *PROMPT_WEIGHTS, *LOSSES, *TOKEN_ADVANTAGES)
    titles = {}
    for path in METHODS.glob("*.md"):
        if path.stem not in NO_PAGES:
            titles[path.stem] = path.read_text(encoding="utf-8").partition("\n")[0].partition(": ")[2]
    names = [name for name in before if name in titles] + sorted(titles.keys() - {*before})
    return table(["kind", "what it does"], ([f"[{name}]({name}.md)", titles[name]] for name in names))


def pages() -> dict[Path, str]:
    """Both pages as they should be."""
    made = {
        "README": [("kind", index())],
        "combinations": [
            ("loss", combinations("loss", "loss.policy", LOSSES, WITH_LOSS)),
            ("advantage", combinations("advantage", "advantage", ADVANTAGES, WITH_ADVANTAGE)),
        ],
    }
    found = {}
    for name, tables in made.items():
        path = METHODS / f"{name}.md"
        text = path.read_text(encoding="utf-8")
        for first, wanted in tables:
            pattern = rf"^\| {first} \|.*\n(?:\|.*\n)+"
            text = re.sub(pattern, lambda _, wanted=wanted: wanted, text, count=1, flags=re.MULTILINE)  # type: ignore[misc]
        found[path] = text
    return found


if __name__ == "__main__":
    sys.exit(write_or_check(pages(), sys.argv[1:]))
