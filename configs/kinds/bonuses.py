"""Bonuses by name. A target is ``fn(rows: RewardedRows, options) -> bonus_N``.

What it returns is added to the advantage of every token outside the row's answer, for rows of origin policy.
All but setpo are of outcome-based exploration, arXiv 2509.06941, which reports no coefficient that we could
retrieve: the defaults of `coef` are ours, a tenth of the spread of rewards of 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from configs.errors import Broken
from configs.fields import NOT_NEGATIVE, one_of, option
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


BONUSES: dict[str, Kind] = {
    "ucb": Kind(UcbOptions, "trainer.credit.bonuses:ucb"),
    "ucb_mean": Kind(UcbMeanOptions, "trainer.credit.bonuses:ucb_mean", compares_siblings=True),
    "ucb_con": Kind(UcbConOptions, "trainer.credit.bonuses:ucb_con"),
    "batch": Kind(BatchOptions, "trainer.credit.bonuses:batch", compares_siblings=True),
    "setpo": Kind(
        SetpoOptions, "trainer.credit.diversity:setpo", compares_siblings=True, needs_answers=False
    ),
}
