"""Bonuses by name. A target is ``fn(rows: RewardedRows, options) -> bonus_N``.

What it returns is added to the advantage of every token outside the row's answer, for rows of origin policy.
All but setpo are of outcome-based exploration, arXiv 2509.06941, or count as it does. It reports no
coefficient that we could retrieve: the defaults of `coef` are ours, a tenth of the spread of rewards 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from configs.errors import Broken
from configs.fields import NOT_EMPTY, NOT_NEGATIVE, one_of, option
from configs.kinds.base import Kind, Options, RunView


@dataclass
class UcbOptions(Options):
    """coef min(1, N^-1/2) with N the earlier samples of the prompt with the row's answer."""

    coef: float = option(0.1, NOT_NEGATIVE)
    """Factor of the bonus, in units of advantage."""


@dataclass
class UcbMeanOptions(Options):
    """The same, minus the mean over the other rows of the group."""

    coef: float = option(0.1, NOT_NEGATIVE)
    """As in ucb."""


@dataclass
class UcbConOptions(Options):
    """The same, minus a constant, so that answers seen often are pushed down."""

    coef: float = option(0.1, NOT_NEGATIVE)
    """As in ucb."""
    constant: float = 0.5
    """The paper's b_0: at 0.5 an answer is pushed down once it was seen more than four times."""


@dataclass
class BatchOptions(Options):
    """Minus the share of other rows in the group with the row's answer; needs no counts."""

    coef: float = option(0.1, NOT_NEGATIVE)
    """As in ucb."""


@dataclass
class SetpoOptions(Options):
    """SetPO, arXiv 2602.01062: coef times what the diversity of the group's set loses without the row."""

    coef: float = option(0.1, NOT_NEGATIVE)
    """As in ucb."""
    measure: str = option("vendi", one_of("vendi", "distinct", "distance"))
    """Diversity of a set: vendi (effective number of classes), distinct (number of classes) or distance
    (share of pairs in different classes)."""
    centred: bool = True
    """Subtract the mean over the group's rows that have a class, so that these gain nothing together."""

    def check_run(self, key: str, run: RunView) -> Iterator[Broken]:
        if not any(entry.kind.partitions or ":" in entry.kind_name for entry in run.scorers.values()):
            yield key, "must have a scorer that puts completions into classes: partition or your own"


@dataclass
class FormatNoveltyOptions(Options):
    """A bonus for right rows in a format that the prompt has rarely had; the format is a scorer's tag."""

    coef: float = option(0.1, NOT_NEGATIVE)
    """As in ucb."""
    tag: str = option("format", NOT_EMPTY)
    """The tag that is counted."""
    counts: str = option("history", one_of("history", "group"))
    """history (the prompt's samples of earlier steps) or group (the other rows of the group)."""
    only_right: bool = True
    """Whether only rows with a right answer get it, so that nothing novel pays that does not work."""
    centred: bool = True
    """Subtract the mean over the rows of the group that get it, so that these gain nothing together."""
    exclude: tuple[str, ...] = ("mixed", "none")
    """Values of the tag that get nothing, such as what is in no format."""

    def check_run(self, key: str, run: RunView) -> Iterator[Broken]:
        entries = run.scorers.values()
        # A user's own scorer may give any tag, which only its results will show.
        own = any(":" in entry.kind_name for entry in entries)
        tags = {tag for entry in entries for tag in (*entry.kind.tags, *entry.kind.other_tags)}
        if not own and self.tag not in tags:
            found = f"those here give {', '.join(sorted(tags)) or 'none'}"
            yield f"{key}.tag", f"must be a tag of a scorer: {found}"
        if self.only_right and not any(":" in entry.kind_name or entry.kind.answers for entry in entries):
            yield f"{key}.only_right", "must be false without a scorer that says which answers are right"
        if run.config.rollout.group_size == 1 and (self.centred or self.counts == "group"):
            name = "centred" if self.centred else "counts"
            rule = "must be false" if self.centred else "must be history"
            yield f"{key}.{name}", f"{rule} with rollout.group_size 1: a row without siblings would get 0"


@dataclass
class StrategyNoveltyOptions(FormatNoveltyOptions):
    """The same with the tag `strategy`: the plan of a row, as the scorer plan_tags or your own names it."""

    tag: str = option("strategy", NOT_EMPTY)
    """The tag that is counted."""
    exclude: tuple[str, ...] = ("none",)
    """Values of the tag that get nothing, such as a text without a plan."""


BONUSES: dict[str, Kind] = {
    "ucb": Kind(UcbOptions, "trainer.credit.bonuses:ucb"),
    "ucb_mean": Kind(UcbMeanOptions, "trainer.credit.bonuses:ucb_mean", compares_siblings=True),
    "ucb_con": Kind(UcbConOptions, "trainer.credit.bonuses:ucb_con"),
    "batch": Kind(BatchOptions, "trainer.credit.bonuses:batch", compares_siblings=True),
    "setpo": Kind(
        SetpoOptions, "trainer.credit.diversity:setpo", compares_siblings=True, needs_answers=False
    ),
    "format_novelty": Kind(
        FormatNoveltyOptions, "trainer.credit.novelty:format_novelty", needs_answers=False, counts_tags=True
    ),
    "strategy_novelty": Kind(
        StrategyNoveltyOptions,
        "trainer.credit.novelty:strategy_novelty",
        needs_answers=False,
        counts_tags=True,
    ),
}
