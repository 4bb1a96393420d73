"""Changes of the reward by name. A target is ``fn(rows: RewardedRows, options) -> rewards_N``.

They act on every rewarded row of a step before its advantage, in the order of the config. Where one returns
NaN the row has no reward any more: it stays out of baselines and losses, like a row whose scorer failed.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.kinds.base import Kind


@dataclass
class OverlongOptions:
    """Soft overlong punishment and overlong filtering, DAPO, arXiv 2503.14476.

    The paper has 20,480 and 4,096 tokens; ours are the default of rollout.max_tokens and the same fifth.
    """

    max_tokens: int = 40
    """Length from which the whole penalty is taken off (L_max)."""
    cache_tokens: int = 8
    """Tokens before that over which it grows from 0 (L_cache)."""
    penalty: float = 1.0
    """Taken off at `max_tokens`; 0 only filters."""
    filter: bool = False
    """Null the reward of completions that were cut off, so that nothing is learned from them."""


@dataclass
class MaraOptions:
    """Mode-anchored reward augmentation (MARA), arXiv 2510.20817: equal targets for all good completions.

    Both defaults are ours; `beta` should be the coefficient of the KL term that the run has.
    """

    beta: float = 0.1
    threshold: float = 1.0
    """Reward from which a completion is good (the paper's tau)."""


REWARD_SHAPES: dict[str, Kind] = {
    "overlong": Kind(OverlongOptions, "trainer.credit.reward_shapes:overlong"),
    "mara": Kind(MaraOptions, "trainer.credit.reward_shapes:mara", reference=True),
}
