"""Bonuses for rare formats and strategies. `trainer.credit.credit` adds up the entries of `bonus`.

They count a tag of each row, as `trainer.credit.bonuses` counts answers, and by default reward right rows
only: what is new in a wrong row may be new because it is wrong. Each returns float64 [N] for the policy rows
of a step, in units of the advantage.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from configs.kinds.bonuses import FormatNoveltyOptions, StrategyNoveltyOptions
from trainer.credit.advantage_inputs import RewardedRows, group_sums


def format_novelty(rows: RewardedRows, options: FormatNoveltyOptions) -> np.ndarray:
    """b = coef (u - mean of u), u = min(1, sqrt(1 / N)), N the prompt's earlier samples in the row's format

    or, with `counts: group`, u = the share of the other rows of the group that have another format. Only
    right rows with a format get it, and the mean is over those of the group (with `centred`); other rows get
    0. The counts are those of outcome-based exploration, arXiv 2509.06941, of a format in place of an answer;
    right rows only and the mean over them are ours.
    """
    return options.coef * _novelty(rows, options)


def strategy_novelty(rows: RewardedRows, options: StrategyNoveltyOptions) -> np.ndarray:
    """b = coef (u - mean of u), u = min(1, sqrt(1 / N)), N the prompt's earlier samples with the row's
    strategy

    as in format_novelty, with the tag `strategy`: the strategic n-grams of the row, or what your own scorer
    calls its plan. Counts as in arXiv 2509.06941.
    """
    return options.coef * _novelty(rows, options)


def _novelty(rows: RewardedRows, options: FormatNoveltyOptions) -> np.ndarray:
    """u of every row that gets the bonus, less its group's mean with `centred`; 0 of the others."""
    tags = [row.get(options.tag) for row in rows.tags_N]
    counted = np.array([tag is not None and tag not in options.exclude for tag in tags], np.bool_)
    if options.only_right:
        counted &= np.array([answer_ok is True for answer_ok in rows.answer_ok_N], np.bool_)
    if options.counts == "history":
        u = np.array([row.get(options.tag, 0) for row in rows.tag_visits_N], np.float64)
        u = 1.0 / np.sqrt(np.maximum(u, 1.0))
    else:
        u = _other_share(rows.group_N, tags)
    u = np.where(counted, u, 0.0)
    if options.centred:
        sums, _ = group_sums(u, rows.group_N)
        sizes, _ = group_sums(counted.astype(np.float64), rows.group_N)
        u = np.where(counted, u - sums / np.maximum(sizes, 1.0), 0.0)
    return u


def _other_share(group_N: np.ndarray, tags: list[str | None]) -> np.ndarray:
    """The share of the other rows of each row's group that have another tag; 0 without others."""
    keys = list(zip(group_N.tolist(), tags, strict=True))
    counts = Counter(keys)
    alike = np.array([counts[key] for key in keys], np.float64)
    _, sizes = group_sums(alike, group_N)
    return (sizes - alike) / np.maximum(sizes - 1.0, 1.0)
