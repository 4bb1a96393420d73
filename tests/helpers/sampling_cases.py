"""Numbers worked out by hand for dynamic and tempered sampling, and equations as plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from refine_cases import check_left_out

from configs.schema import RolloutConfig, RunConfig, TemperedConfig
from trainer.rollout.dynamic_sampling import (
    Rounds,
    asked_for,
    left_out_rows,
    max_rounds,
    nonzero_variance_rows,
    plan_rounds,
    sampling_metrics,
    submissions_per_step,
)
from trainer.rollout.tempered import positive_tempered_rows, tempered_metrics

NAN = math.nan
REFILL = RolloutConfig(groups_per_step=2, zero_variance_groups="refill", max_rounds=3)
DROP = RolloutConfig(groups_per_step=2, zero_variance_groups="drop")
KEEP = RolloutConfig(groups_per_step=2)


def reference_differs(rewards: Sequence[float | None]) -> bool:
    """DAPO's condition, pair by pair: some two rewards of the group differ."""
    known = [reward for reward in rewards if reward is not None]
    return any(not math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9) for one in known for other in known)


def reference_rounds(differs: Sequence[bool], wanted: int, limit: int) -> tuple[int, int]:
    """(rounds, groups) by doing it: sample, count, sample what is short, until enough or out of rounds."""
    sampled = kept = rounds = 0
    while kept < wanted and rounds < limit:
        short = wanted - kept
        for _ in range(short):
            kept += differs[sampled]
            sampled += 1
        rounds += 1
    return rounds, sampled


def rows_of(groups: Sequence[Sequence[float | None]], first: int = 0) -> pa.Table:
    """One row per reward; group k is submission `first` + k."""
    pairs = [(first + number, reward) for number, rewards in enumerate(groups) for reward in rewards]
    return pa.table(
        {
            "submission_index": pa.array([index for index, _ in pairs], pa.int64()),
            "reward": pa.array([reward for _, reward in pairs], pa.float32()),
        }
    )


def check_nonzero_variance_rows() -> None:
    """Group 7: 0 and 1 differ. 3: two ones. 5: one rewarded row. 9: none. 8: -1 and 0 beside a null."""
    group_N = np.array([7, 3, 7, 5, 3, 5, 9, 8, 8, 8])
    reward_N = np.array([0.0, 1.0, 1.0, 1.0, 1.0, NAN, NAN, -1.0, NAN, 0.0])
    found = nonzero_variance_rows(reward_N, group_N)
    assert found.tolist() == [True, False, True, False, False, False, False, True, True, True]
    assert nonzero_variance_rows(np.zeros(0), np.zeros(0, np.int64)).tolist() == []
    assert nonzero_variance_rows(np.array([0.1 + 0.2, 0.3, 0.3, 0.4]), np.array([0, 0, 1, 1])).tolist() == [
        *(False, False),
        *(True, True),
    ]


def check_left_out_rows() -> None:
    """A group whose rewards differ, one whose do not, a demonstration: only the second is ever left out."""
    reward_N, group_N = np.array([0.0, 1.0, 1.0, 1.0, NAN]), np.array([0, 0, 1, 1, 2])
    origin_N = np.array(["policy", "policy", "policy", "replay", "sft"], object)
    assert not left_out_rows(reward_N, group_N, origin_N, KEEP).any()
    for rollout in (DROP, REFILL):
        found = left_out_rows(reward_N, group_N, origin_N, rollout)
        assert found.tolist() == [False, False, True, True, False]


def check_plan_rounds() -> None:
    """Four wanted. Of the first four two differ in reward: two more; of these one: one more; that one does
    not: done.

    With two rounds it ends after six groups, with four it asks for an eighth.
    """
    differs = [True, False, False, True, True, False, False]
    plans = [plan_rounds(differs[:known], 4, 3) for known in range(8)]
    assert plans[:4] == [Rounds(num_rounds=1, num_groups=4)] * 4
    assert plans[4:6] == [Rounds(num_rounds=2, num_groups=6)] * 2
    assert plans[6:] == [Rounds(num_rounds=3, num_groups=7)] * 2
    assert plan_rounds(differs, 4, 2) == Rounds(num_rounds=2, num_groups=6)
    assert plan_rounds(differs, 4, 4) == Rounds(num_rounds=4, num_groups=8)
    assert plan_rounds([True] * 4, 4, 3) == Rounds(num_rounds=1, num_groups=4)
    assert plan_rounds([False] * 12, 4, 3) == Rounds(num_rounds=3, num_groups=12)


def check_submissions_per_step() -> None:
    """Two groups in up to three rounds own six submissions; without it two, with a tempered one three."""
    assert [max_rounds(each) for each in (KEEP, DROP, REFILL)] == [1, 1, 3]
    configs = [RunConfig(rollout=each) for each in (KEEP, DROP, REFILL)]
    assert [submissions_per_step(each) for each in configs] == [2, 2, 6]
    assert submissions_per_step(RunConfig(rollout=DROP, tempered=TemperedConfig(groups_per_step=1))) == 3


def check_asked_for() -> None:
    """From submission 12: one of the first two differs in reward, so a third; beyond a gap nothing counts."""
    groups = [(0.0, 1.0), (1.0, 1.0), (None, 1.0)]
    assert asked_for(rows_of(groups[:1], 12), 12, REFILL) == Rounds(num_rounds=1, num_groups=2)
    assert asked_for(rows_of(groups[:2], 12), 12, REFILL) == Rounds(num_rounds=2, num_groups=3)
    assert asked_for(rows_of(groups, 12), 12, REFILL) == Rounds(num_rounds=3, num_groups=4)
    assert asked_for(rows_of(groups[1:], 13), 12, REFILL) == Rounds(num_rounds=1, num_groups=2)
    assert asked_for(rows_of(groups, 12), 12, DROP) == Rounds(num_rounds=1, num_groups=2)
    assert asked_for(rows_of([]), 12, REFILL) == Rounds(num_rounds=1, num_groups=2)


def check_sampling_metrics() -> None:
    """Three groups, one of which differs in reward: a share of 2/3, in the third round (a fourth is due)."""
    groups = [(0.0, 1.0), (1.0, 1.0), (None, 1.0)]
    assert sampling_metrics(rows_of(groups, 12), KEEP) == {}
    for rollout, rounds in ((REFILL, 3.0), (DROP, 1.0)):
        found = sampling_metrics(rows_of(groups, 12), rollout)
        assert abs(found.pop("sampling/zero_variance_share") - 2 / 3) < 1e-12
        assert found == {"sampling/kept_groups": 1.0, "sampling/rounds": rounds}


def check_positive_tempered_rows() -> None:
    """Of five tempered rows the two with a reward above 0; no row of another origin."""
    reward_N = np.array([1.0, 0.1 + 0.2 - 0.3, NAN, -1.0, 0.5, 1.0, 1.0])
    origin_N = np.array(["tempered"] * 5 + ["policy", "sft"], object)
    assert positive_tempered_rows(reward_N, origin_N).tolist() == [
        True,
        False,
        False,
        False,
        True,
        False,
        False,
    ]


def check_tempered_metrics() -> None:
    """Rewards 1, 0 and null; 3, 3 and 2 loss tokens of logprob -0.5, -1 and -1.5: their nll is 7.5 / 8. Mean
    entropies of 1, 2 and none for rows of as many tokens: 9 / 8."""
    index = pa.table({"reward": [1.0, 0.1 + 0.2 - 0.3, None], "num_loss_tokens": [3, 3, 2]})
    logprobs = [[-0.5] * 3, [-1.0] * 3, [-1.5, -99.0, -1.5]]
    columns = pa.table(
        {
            "loss_mask": [[True] * 3, [True] * 3, [True, False, True]],
            "entropy_mean": [1.0, 2.0, None],
            "proximal_logprobs": logprobs,
            "behavior_logprobs": [[-9.0] * 3] * 3,
        }
    )
    expected = {
        "tempered/num_rows": 3.0,
        "tempered/counting_share": 1 / 3,
        "tempered/nll": 7.5 / 8,
        "tempered/token_entropy": 9 / 8,
        "tempered/reward_mean": 0.5,
    }
    found = tempered_metrics(index, columns)
    assert found.keys() == expected.keys()
    assert all(abs(found[name] - expected[name]) < 1e-12 for name in expected)
    assert tempered_metrics(index.slice(0, 0), columns.slice(0, 0)) == {}
    unrewarded = tempered_metrics(index.slice(2), columns.slice(2))
    assert "tempered/reward_mean" not in unrewarded and unrewarded["tempered/nll"] == 1.5


CHECKS: dict[str, tuple[Callable[[], None], ...]] = {
    "nonzero_variance_rows": (check_nonzero_variance_rows,),
    "left_out_rows": (check_left_out_rows, check_left_out),
    "plan_rounds": (check_plan_rounds,),
    "max_rounds": (check_submissions_per_step,),
    "submissions_per_step": (check_submissions_per_step,),
    "asked_for": (check_asked_for,),
    "sampling_metrics": (check_sampling_metrics,),
}
"""What must notice a mutant of a function of `trainer.rollout.dynamic_sampling`."""
TEMPERED_CHECKS: dict[str, tuple[Callable[[], None], ...]] = {
    "positive_tempered_rows": (check_positive_tempered_rows,),
    "tempered_metrics": (check_tempered_metrics,),
}
"""The same for `trainer.rollout.tempered`."""
