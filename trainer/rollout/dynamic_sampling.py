"""Dynamic sampling: which groups teach, and how many further ones a step samples when some do not.

Chosen by `rollout.zero_variance_groups`. Pure functions of a step's rewards, so that a run that goes on
repeats what it
did. Used by the producer (what to sample), by `trainer.collate` (what to learn from) and by the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.origins import origins_where
from configs.schema import RolloutConfig, RunConfig
from trainer.credit.advantage_inputs import group_bounds
from trainer.reward_ties import rewards_differ


def teaching_rows(reward_N: np.ndarray, group_N: np.ndarray) -> np.ndarray:
    """max r > min r over the rewarded rows of the group

    bool [N], the same for all rows of a group. `reward_N` is NaN where there is no reward; a group with fewer
    than two rewarded rows teaches nothing. DAPO, arXiv 2503.14476, eq. 11 has it for right and wrong answers:
    0 < number of right ones < group size. For other rewards this form of it is ours; rewards that differ by
    rounding are equal (`trainer.reward_ties`).
    """
    return rewards_differ(*group_bounds(reward_N, group_N))


def left_out_rows(
    reward_N: np.ndarray, group_N: np.ndarray, origin_N: np.ndarray, rollout: RolloutConfig
) -> np.ndarray:
    """bool [N]: rows that the step does not learn from because their group teaches nothing.

    None with `rollout.zero_variance_groups` keep. Rows that are not learned by their advantage
    (demonstrations, tempered rows) are never left out.
    """
    if rollout.zero_variance_groups == "keep":
        return np.zeros(len(reward_N), bool)
    compared = origins_where(lambda spec: spec.learned == "by_advantage")
    return ~teaching_rows(reward_N, group_N) & np.isin(origin_N, compared)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """What a step samples as far as its rewards are known: rounds asked for, and groups in all of them."""

    num_rounds: int
    num_groups: int


def plan_rounds(teaches: Sequence[bool], wanted: int, max_rounds: int) -> Rounds:
    """Round 1 samples `wanted` groups, each later one as many as are still short of `wanted` that teach.

    `teaches` is of the groups known so far, in order of submission. The last round asked for may be unknown
    yet. There are never more than `wanted` groups that teach.
    """
    num_rounds, num_groups = 1, wanted
    while num_rounds < max_rounds and num_groups <= len(teaches):
        short = wanted - sum(teaches[:num_groups])
        if short == 0:
            break
        num_rounds, num_groups = num_rounds + 1, num_groups + short
    return Rounds(num_rounds=num_rounds, num_groups=num_groups)


def max_rounds(rollout: RolloutConfig) -> int:
    """Rounds that a step may take."""
    return rollout.max_rounds if rollout.zero_variance_groups == "refill" else 1


def submissions_per_step(config: RunConfig) -> int:
    """Submission indexes that a step owns: step `s` (from 0) those from s times this number on.

    There is room for every round that it may take and for its tempered groups. So what one step samples moves
    no other step's prompts, seeds or files.
    """
    return config.rollout.groups_per_step * max_rounds(config.rollout) + config.tempered.groups_per_step


def asked_for(rows: pa.Table, first: int, rollout: RolloutConfig) -> Rounds:
    """`plan_rounds` of a step from its rows so far, of which columns submission_index and reward are read.

    A reward may be null. `first` is the step's first submission.
    """
    submission_N = rows.column("submission_index").to_numpy()
    reward_N = rows.column("reward").cast(pa.float64()).fill_null(float("nan")).to_numpy()
    teaching = dict(zip(submission_N.tolist(), teaching_rows(reward_N, submission_N).tolist(), strict=True))
    known: list[bool] = []
    while first + len(known) in teaching:
        known.append(teaching[first + len(known)])
    return plan_rounds(known, rollout.groups_per_step, max_rounds(rollout))


def sampling_metrics(rows: pa.Table, rollout: RolloutConfig) -> dict[str, float]:
    """sampling/*: of a step's own groups, how many teach, and in how many rounds they were found.

    `rows` as in `asked_for`. Nothing with `rollout.zero_variance_groups` keep.
    """
    if rollout.zero_variance_groups == "keep":
        return {}
    submissions = rows.column("submission_index")
    reward_N = rows.column("reward").cast(pa.float64()).fill_null(float("nan")).to_numpy()
    teaching = teaching_rows(reward_N, submissions.to_numpy())
    num_groups = pc.count_distinct(submissions).as_py()
    num_kept = pc.count_distinct(submissions.filter(pa.array(teaching))).as_py()
    rounds = asked_for(rows, pc.min(submissions).as_py(), rollout)
    return {
        "sampling/degenerate_share": 1.0 - num_kept / num_groups,
        "sampling/kept_groups": float(num_kept),
        "sampling/rounds": float(rounds.num_rounds),
    }
