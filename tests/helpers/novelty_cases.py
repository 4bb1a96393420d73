"""The numbers of novelty bonuses, by hand. Used by their tests and by the check that these notice mutants."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from credit_cases import rewarded

from configs.kinds.bonuses import FormatNoveltyOptions, StrategyNoveltyOptions
from trainer.credit.advantage_inputs import RewardedRows
from trainer.credit.novelty import _other_share, format_novelty, strategy_novelty

Check = Callable[[], None]

SEEN = rewarded(
    [1.0] * 8,
    [0, 0, 0, 0, 0, 0, 3, 3],
    right=[True, True, True, False, True, None, True, True],
    tags=[
        {"format": tag, "strategy": tag} if tag else {} for tag in ("a", "a", "b", "c", "none", "b", "a", "")
    ],
    tag_visits=[{"format": count} for count in (4, 4, 0, 0, 0, 0, 16, 0)],
)
"""Group 0: right in a, a, b; wrong in c; right in no format; b unchecked. Group 3: right in a; untagged."""


def found(options: FormatNoveltyOptions, rows: RewardedRows = SEEN) -> list[float]:
    return format_novelty(rows, options).tolist()


def check_history() -> None:
    """u of group 0: 1/2, 1/2, 1 with mean 2/3; of group 3: 1/4 alone, whose mean it is. coef 0.6."""
    centred = [-0.1, -0.1, 0.2, 0, 0, 0, 0, 0]
    assert found(FormatNoveltyOptions(coef=0.6)) == pytest.approx(centred)
    plain = FormatNoveltyOptions(coef=0.6, centred=False)
    assert found(plain) == pytest.approx([0.3, 0.3, 0.6, 0, 0, 0, 0.15, 0])


def check_all_rows() -> None:
    """With wrong and unchecked rows u is 1/2, 1/2, 1, 1 and 1: mean 4/5. With none too: mean 5/6."""
    options = FormatNoveltyOptions(coef=1.0, only_right=False)
    assert found(options) == pytest.approx([-0.3, -0.3, 0.2, 0.2, 0, 0.2, 0, 0])
    options.exclude = ()
    assert found(options) == pytest.approx([-1 / 3, -1 / 3, 1 / 6, 1 / 6, 1 / 6, 1 / 6, 0, 0])


def check_group() -> None:
    """Others of 5 in another format: a has 4, b has 4 (the unchecked row is b too). Of 1 in group 3: 1."""
    options = FormatNoveltyOptions(coef=1.0, counts="group", centred=False)
    assert found(options) == pytest.approx([0.8, 0.8, 0.8, 0, 0, 0, 1.0, 0])
    assert _other_share(np.array([0, 0, 0, 5, 5, 7]), ["a", "a", "b", None, "a", "a"]).tolist() == [
        *(0.5, 0.5, 1.0),
        *(1.0, 1.0, 0.0),
    ]


def check_strategy() -> None:
    """Another tag, and another default of what is excluded; no counts of it are no visits."""
    rows = rewarded([1.0, 1.0], [0, 0], right=[True, True], tags=[{"strategy": "g0"}, {"strategy": "mixed"}])
    rows.tag_visits_N[0] = {"strategy": 25}
    options = StrategyNoveltyOptions(coef=0.5)
    assert strategy_novelty(rows, options).tolist() == pytest.approx([-0.2, 0.2])
    assert format_novelty(rows, FormatNoveltyOptions()).tolist() == [0.0, 0.0]


ALL: tuple[Check, ...] = (check_history, check_all_rows, check_group, check_strategy)
CHECKS = {
    "trainer.credit.novelty": {
        "format_novelty": (check_history,),
        "strategy_novelty": (check_strategy,),
        "_novelty": ALL,
        "_other_share": (check_group,),
    }
}
