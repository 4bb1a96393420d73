"""Credit for diversity among the rows of a group: UCPO, SetPO's marginal, vector rewards over sets.

Named in `configs/kinds/advantages.py`, `bonuses.py` and `reward_shapes.py`; called by `trainer.credit.credit`
with the step's `RewardedRows`. Each returns float64 [N].
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

import numpy as np

from configs.kinds.advantages import DrGrpoOptions, GrpoOptions, RlooOptions, UcpoOptions
from configs.kinds.bonuses import SetpoOptions
from configs.kinds.reward_shapes import VpoOptions
from trainer.credit.advantage_inputs import RewardedRows
from trainer.credit.advantages import dr_grpo, grpo, rloo
from trainer.reward_ties import reaches, rewards_differ

NO_PARTITION: Final = -1
"""`RewardedRows.partition_N` of a row that no scorer put into a class."""


def ucpo(rows: RewardedRows, options: UcpoOptions) -> np.ndarray:
    """A = a n w if r >= threshold, else a, with w = (1 - tau) / n + tau (1 / q) / (sum of 1 / q)

    where a is the advantage `base`, n the number of right rows of the group and q their probabilities
    relative to each other: the softmax of the row's logprob, divided by its number of tokens with
    `per_token`. UCPO, arXiv 2605.00365. The weights add up to 1, so that right rows of equal rewards keep
    their share of the gradient, but what the policy rarely writes gets more of it. The abstract and the
    released code were available to us, not the paper; the code takes every score above 0 for right and the
    first right row's advantage for that of all.

    Raises:
        ValueError: a right row has no logprob.
    """
    base = {
        "grpo": lambda: grpo(rows, GrpoOptions()),
        "dr_grpo": lambda: dr_grpo(rows, DrGrpoOptions()),
        "rloo": lambda: rloo(rows, RlooOptions()),
    }[options.base]()
    is_right = reaches(rows.rewards_N, options.threshold)
    logprobs = rows.logprob_N / np.maximum(rows.num_tokens_N, 1) if options.per_token else rows.logprob_N
    advantages = base.astype(np.float64)
    for group in np.unique(rows.group_N[is_right]):
        right = np.flatnonzero((rows.group_N == group) & is_right)
        if not np.isfinite(logprobs[right]).all():
            raise ValueError(f"advantage ucpo must have logprobs, got {logprobs[right].tolist()}")
        # 1 / q is exp(-logprob) up to a factor; relative to the largest, so that none overflows.
        inverse = np.exp(logprobs[right].min() - logprobs[right])
        weights = (1.0 - options.tau) / len(right) + options.tau * inverse / inverse.sum()
        advantages[right] *= len(right) * weights
    return advantages


def setpo(rows: RewardedRows, options: SetpoOptions) -> np.ndarray:
    """b = coef (m - mean of m), with m = D(S) - D(S without the row)

    where S are the rows of the group that a scorer put into classes and D the set's diversity: the number of
    classes (distinct), the Vendi score (vendi), or the share of pairs in different classes (distance).
    SetPO, arXiv 2602.01062, has the marginal contribution of a row to a kernelised diversity of its set as a
    term of the advantage. The paper was not available to us: the three measures, for the kernel that is 1
    within a class and 0 between classes, and the subtraction of the mean (with `centred`) are our choice.
    Rows without a class get 0.
    """
    measure = MEASURES[options.measure]
    bonus = np.zeros(len(rows))
    classed = rows.partition_N != NO_PARTITION
    for group in np.unique(rows.group_N[classed]):
        members = np.flatnonzero((rows.group_N == group) & classed)
        _, class_M, counts_C = np.unique(rows.partition_N[members], return_inverse=True, return_counts=True)
        whole = measure(counts_C)
        # Once per class and not per row: to remove any row of a class changes the set in the same way.
        lost_C = [
            whole - measure(counts_C - (np.arange(len(counts_C)) == each)) for each in range(len(counts_C))
        ]
        marginal = np.array(lost_C)[class_M]
        bonus[members] = options.coef * (marginal - marginal.mean() * options.centred)
    return bonus


def _distinct(counts_C: np.ndarray) -> float:
    """The number of classes with a row."""
    return float((counts_C > 0).sum())


def _vendi(counts_C: np.ndarray) -> float:
    """exp(-sum p log p) with p the classes' shares: the Vendi score of the kernel of classes; 0 without rows.

    Vendi score, arXiv 2210.02410: the eigenvalues of that kernel, over the number of rows, are the shares.
    """
    shares = counts_C[counts_C > 0] / max(counts_C.sum(), 1)
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def _distance(counts_C: np.ndarray) -> float:
    """The share of pairs of rows that are in different classes; 0 without a pair."""
    size = int(counts_C.sum())
    return 1.0 - float((counts_C * (counts_C - 1)).sum()) / (size * (size - 1)) if size > 1 else 0.0


MEASURES: Final[dict[str, Callable[[np.ndarray], float]]] = {
    "distinct": _distinct,
    "vendi": _vendi,
    "distance": _distance,
}


def vpo(rows: RewardedRows, options: VpoOptions) -> np.ndarray:
    """r' = mean over w of max over y in S of w . v(y), with w drawn from a Dirichlet distribution

    where v(y) are the scores `components` of a candidate y, and S the candidates of the row (`over`
    candidates). Vector Policy Optimization, arXiv 2605.22817: the draws of w are the same for all rows of a
    prompt, and r' is rewarded instead of a fixed sum of the scores, so that candidates may specialise. A row
    that is one answer is one candidate. With `over` group, which is ours, S are the rows of the group, and r'
    is what the maximum loses without the row. With `scale` group every score is first mapped to [0, 1] over
    the candidates of the group. NaN where a score is missing.
    """
    rewards = np.full(len(rows), np.nan)
    for group in np.unique(rows.group_N):
        in_group = np.flatnonzero(rows.group_N == group).tolist()
        found = {row: _candidates(rows, row, options.components) for row in in_group}
        members = [row for row in in_group if np.isfinite(found[row]).all()]
        vectors = [found[row] for row in members]
        if not members:
            continue
        if options.scale == "group":
            vectors = _scaled(vectors)
        weights_WD = dirichlet(rows.prompt_id_N[members[0]], options)
        values_M = np.array([(weights_WD @ each.T).max(axis=1) for each in vectors])
        rewards[members] = _marginals(values_M) if options.over == "group" else values_M.mean(axis=1)
    return rewards


def _candidates(rows: RewardedRows, row: int, components: tuple[str, ...]) -> np.ndarray:
    """Scores of the row's candidates [K, D]: those in its numbers, or its own scores as the only candidate.

    A rollouter that finds several answers in a completion stores the scores of answer k as the numbers
    ``candidate/<k>/<component>``, without those that are null, and their number as ``candidate/count``.
    """
    numbers, scores = rows.numbers_N[row], rows.scores_N[row]
    # With their number, one that has no score at all is known to be there.
    count, found = int(numbers.get("candidate/count", 0.0)), []
    for at in range(max(count, len(numbers))):
        vector = [numbers.get(f"candidate/{at}/{name}", np.nan) for name in components]
        if at >= count and np.isnan(vector).all():
            break
        found.append(vector)
    return np.array(found or [[scores.get(name) for name in components]], np.float64)


def _scaled(vectors: list[np.ndarray]) -> list[np.ndarray]:
    """Each score less the least of the group, divided by its range; 0 where they differ only by rounding."""
    every = np.concatenate(vectors)
    low, high = every.min(axis=0), every.max(axis=0)
    varies = rewards_differ(low, high)
    return [np.where(varies, (each - low) / np.where(varies, high - low, 1.0), 0.0) for each in vectors]


def _marginals(values_MW: np.ndarray) -> np.ndarray:
    """Mean over w of what the maximum over M rows loses without the row, [M]; all of it for a single row."""
    if len(values_MW) == 1:
        return values_MW.mean(axis=1)
    ordered = np.sort(values_MW, axis=0)
    best, second = ordered[-1], ordered[-2]
    return np.where(values_MW == best, best - second, 0.0).mean(axis=1)


def dirichlet(prompt_id: str, options: VpoOptions) -> np.ndarray:
    """`num_draws` weights of the components [W, D], equal for equal prompts, seeds and options."""
    digest = hashlib.sha256(f"{options.seed}:{prompt_id}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    return rng.dirichlet(np.full(len(options.components), options.concentration), size=options.num_draws)
