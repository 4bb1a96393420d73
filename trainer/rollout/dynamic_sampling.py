"""Dynamic sampling: which groups have rewards that differ, and how many more a step samples if some do not.

Chosen by `rollout.zero_variance_groups`. Everything depends only on a step's rewards, so a resumed run
repeats the same decisions. Used by the producer (what to sample), by `trainer.collate` (what to learn from)
and by the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.origins import origins_where
from configs.schema import RolloutConfig, RunConfig
from trainer.credit.advantage_inputs import group_bounds, refined_rows
from trainer.reward_ties import rewards_differ


def nonzero_variance_rows(reward_N: np.ndarray, group_N: np.ndarray) -> np.ndarray:
    """max r > min r over the rewarded rows of the group

    bool [N], equal for all rows of a group. `reward_N` is NaN where there is no reward; a group with fewer
    than two rewarded rows has no variance. DAPO, arXiv 2503.14476, eq. 11 states it for correct and wrong
    answers: 0 < number of correct ones < group size. The form for other rewards is our own. Rewards that
    differ only by rounding are equal (`trainer.reward_ties`).
    """
    return rewards_differ(*group_bounds(reward_N, group_N))


def left_out_rows(
    reward_N: np.ndarray,
    group_N: np.ndarray,
    origin_N: np.ndarray,
    rollout: RolloutConfig,
    joins_refined: bool = True,
) -> np.ndarray:
    """bool [N]: rows that the step does not learn from, because the rewards of their group are all equal.

    All false with `rollout.zero_variance_groups` keep. Rows that are not learned by their advantage
    (demonstrations, tempered rows) are never left out. Refined rows count as others of their group with
    `joins_refined`, so that a right one keeps a group in which all others fail. Without, they neither count
    nor are they left out: their baseline is that of the policy rows.
    """
    if rollout.zero_variance_groups == "keep":
        return np.zeros(len(reward_N), bool)
    # The others are learned whatever their reward is, so theirs must not save or drop a group.
    counted = np.isin(origin_N, origins_where(lambda spec: spec.learned == "by_advantage"))
    if not joins_refined:
        counted &= ~refined_rows(origin_N)
    return ~nonzero_variance_rows(np.where(counted, reward_N, np.nan), group_N) & counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """What a step samples, given the rewards known so far: numbers of rounds, and of groups in all rounds."""

    num_rounds: int
    num_groups: int


def plan_rounds(has_variance: Sequence[bool], wanted: int, max_rounds: int) -> Rounds:
    """Round 1 samples `wanted` groups; each later round as many as are missing to `wanted` with variance.

    `has_variance` has an entry for each group whose rewards are known, in order of submission; the groups of
    the last round may be unknown. There are never more than `wanted` groups with variance.
    """
    num_rounds, num_groups = 1, wanted
    while num_rounds < max_rounds and num_groups <= len(has_variance):
        # Only of the rounds so far: groups of a later round may be known already after a resume.
        short = wanted - sum(has_variance[:num_groups])
        if short == 0:
            break
        num_rounds, num_groups = num_rounds + 1, num_groups + short
    return Rounds(num_rounds=num_rounds, num_groups=num_groups)


def max_rounds(rollout: RolloutConfig) -> int:
    """The largest number of rounds that a step may sample."""
    return rollout.max_rounds if rollout.zero_variance_groups == "refill" else 1


def submissions_per_step(config: RunConfig) -> int:
    """The number of submission indexes reserved for a step: step `s` (from 0) begins at s times this number.

    They suffice for all its rounds and tempered groups. So the number of groups that a step samples does not
    change the prompts, seeds or files of other steps.
    """
    # The most that a step may need, used or not: an index must mean the same prompt in every attempt.
    return config.rollout.groups_per_step * max_rounds(config.rollout) + config.tempered.groups_per_step


def asked_for(rows: pa.Table, first: int, rollout: RolloutConfig) -> Rounds:
    """`plan_rounds` for a step, by the rewards of its rows so far.

    Reads the columns submission_index and reward (may be null). `first` is the step's first submission.
    """
    submission_N = rows.column("submission_index").to_numpy()
    reward_N = rows.column("reward").cast(pa.float64()).fill_null(float("nan")).to_numpy()
    varies_N = nonzero_variance_rows(reward_N, submission_N)
    has_variance = dict(zip(submission_N.tolist(), varies_N.tolist(), strict=True))
    known: list[bool] = []
    while first + len(known) in has_variance:  # groups may be finished in any order: stop at the first gap
        known.append(has_variance[first + len(known)])
    return plan_rounds(known, rollout.groups_per_step, max_rounds(rollout))


def sampling_metrics(rows: pa.Table, rollout: RolloutConfig) -> dict[str, float]:
    """sampling/*: how many of a step's own groups have variance, and in how many rounds they were sampled.

    `rows` as in `asked_for`. Empty with `rollout.zero_variance_groups` keep.
    """
    if rollout.zero_variance_groups == "keep":
        return {}
    submissions = rows.column("submission_index")
    reward_N = rows.column("reward").cast(pa.float64()).fill_null(float("nan")).to_numpy()
    varies_N = nonzero_variance_rows(reward_N, submissions.to_numpy())
    num_groups = pc.count_distinct(submissions).as_py()
    num_kept = pc.count_distinct(submissions.filter(pa.array(varies_N))).as_py()
    rounds = asked_for(rows, pc.min(submissions).as_py(), rollout)
    return {
        "sampling/zero_variance_share": 1.0 - num_kept / num_groups,
        "sampling/kept_groups": float(num_kept),
        "sampling/rounds": float(rounds.num_rounds),
    }
