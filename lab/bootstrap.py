"""Bootstrap intervals of evaluation metrics, by resampling seeds and prompts. numpy only.

An evaluation is a table X [S, P, C]: for every seed and prompt the C numbers that a metric adds up, such as
(reward, samples) or counts by format. A metric is a *fold* of their sums over prompts, per seed: a ratio, an
entropy, a largest share. Its value is the mean over seeds of the folds. The fold is applied again in every
replicate, so an entropy of pooled counts gets an interval in the same way as a mean.

Seeds and prompts are crossed: every seed has the same prompts. Both are resampled with replacement and
independently of each other (the pigeonhole bootstrap, A. Owen, arXiv 0712.1111), with percentile intervals.
Two arms are compared in the same replicates, so effects of seed and prompt that are common to both cancel.

With S seeds the spread of the resampled mean over seeds is (S - 1) / S of what it should be, and a percentile
interval of three numbers reaches no further than the numbers: for few seeds it is too narrow, whatever the
number of replicates. Then prefer `t_interval` over the values (or paired differences) of the seeds; it treats
the prompts as fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

REPLICATES = 2000
LEVEL = 0.95
_SEED = 20260101
_T_975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
"""97.5 % points of Student's t with 1, 2, ... 30 degrees of freedom."""
_Z_975 = 1.959964
_ROUNDING = 1e-9
"""A relative spread below this is rounding in floating-point sums."""
_NOTHING = 1e-12
"""An absolute spread below this is rounding too: all compared values are of the order of 1."""

Fold = Callable[[np.ndarray], np.ndarray]
"""Sums over prompts [..., C] -> the metric [...]; NaN where it is not defined."""


@dataclass(frozen=True, slots=True)
class Interval:
    """From `low` to `high`, in the metric's own unit."""

    low: float
    high: float


def ratio(sums: np.ndarray) -> np.ndarray:
    """sums[..., 0] / sums[..., 1]; NaN where nothing was counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan)  # type: ignore[no-any-return]


def entropy(counts: np.ndarray) -> np.ndarray:
    """Shannon entropy in nats of counts [..., C] over the last axis; NaN for none."""
    shares = _shares(counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(shares > 0, shares * np.log(shares), shares)
    return -terms.sum(axis=-1) + 0.0  # type: ignore[no-any-return]


def largest_share(counts: np.ndarray) -> np.ndarray:
    """The share of the most frequent of the C labels; NaN for no counts."""
    return _shares(counts).max(axis=-1)  # type: ignore[no-any-return]


def _shares(counts: np.ndarray) -> np.ndarray:
    totals = counts.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(totals > 0, counts / totals, np.nan)  # type: ignore[no-any-return]


def value_of(table: np.ndarray, fold: Fold) -> float:
    """The mean over seeds of the fold of X [S, P, C]; NaN if one of them is not defined."""
    return float(fold(table.sum(axis=1)).mean())


def by_seed(table: np.ndarray, fold: Fold) -> np.ndarray:
    """The fold of each seed [S]."""
    return fold(table.sum(axis=1))


def interval_of(table: np.ndarray, fold: Fold, replicates: int = REPLICATES) -> Interval | None:
    """The bootstrap interval of `value_of`; None if no replicate has a value."""
    return _percentiles(_replicate(table, fold, replicates))


def paired_interval(
    table: np.ndarray, control: np.ndarray, fold: Fold, replicates: int = REPLICATES
) -> Interval | None:
    """The interval of value_of(table) - value_of(control), both [S, P, C] of the same seeds and prompts.

    Raises:
        ValueError: they have different numbers of seeds or prompts.
    """
    if table.shape[:2] != control.shape[:2]:
        raise ValueError(
            f"paired tables must be of the same seeds and prompts, got {table.shape} and {control.shape}"
        )
    # The resampling weights depend on the shape only, so they are the same for both tables.
    return _percentiles(_replicate(table, fold, replicates) - _replicate(control, fold, replicates))


def seed_interval(values: Sequence[float], replicates: int = REPLICATES) -> Interval | None:
    """The bootstrap interval of the mean of one value (or paired difference) per seed; None under two."""
    if len(values) < 2:
        return None
    table = np.stack([np.array(values), np.ones(len(values))], axis=-1)[:, None, :]
    return interval_of(table, ratio, replicates)


def t_interval(values: Sequence[float]) -> Interval | None:
    """mean +- t x sd / sqrt(S) over one value (or paired difference) per seed; None for fewer than two.

    None as well if all values are equal, which happens with few seeds and counted quantities: an interval of
    width zero would claim that the spread over seeds is zero.
    """
    value_S = np.array(values, np.float64)
    if len(value_S) < 2 or not np.isfinite(value_S).all():
        return None
    spread = float(value_S.std(ddof=1))
    if spread <= max(_ROUNDING * float(np.abs(value_S).max()), _NOTHING):
        return None
    half = t_quantile(len(value_S) - 1) * spread / math.sqrt(len(value_S))
    return Interval(float(value_S.mean()) - half, float(value_S.mean()) + half)


def t_quantile(freedom: int) -> float:
    """The 97.5 % point of Student's t: from a table up to 30, beyond by the first terms of its expansion."""
    if freedom < 1:
        raise ValueError(f"degrees of freedom must be 1 or more, got {freedom}")
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    z = _Z_975
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _replicate(table: np.ndarray, fold: Fold, replicates: int) -> np.ndarray:
    """The metric in every replicate [R]; the same resampling for every table of this shape."""
    num_seeds, num_prompts, num_columns = table.shape
    seeds, prompts = _drawn(num_seeds, num_prompts, replicates)
    sums = prompts @ table.transpose(1, 0, 2).reshape(num_prompts, -1)
    folds = fold(sums.reshape(replicates, num_seeds, num_columns))
    # 0 x NaN is NaN: a seed that was not drawn must not make the replicate NaN.
    return np.where(seeds > 0, seeds * folds, 0.0).sum(axis=1) / num_seeds  # type: ignore[no-any-return]


@lru_cache(maxsize=8)
def _drawn(num_seeds: int, num_prompts: int, replicates: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each seed [R, S] and each prompt [R, P] is drawn in each replicate."""
    rng = np.random.default_rng(_SEED)
    seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=replicates)
    prompts = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=replicates)
    return seeds.astype(np.float64), prompts.astype(np.float64)


def _percentiles(values: np.ndarray) -> Interval | None:
    kept = values[np.isfinite(values)]
    if not len(kept):
        return None
    low, high = np.quantile(kept, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
