"""When rewards count as equal, in every place that compares them."""

from __future__ import annotations

from dataclasses import replace

import credit_cases
import numpy as np
import pyarrow as pa
import pytest
import tie_cases
from rollout_rows import make_group, make_sample

from trainer.collate import Batch
from trainer.evaluate import eval_metrics
from trainer.metrics import reward_metrics
from trainer.model.batch_plan import BatchPlan
from trainer.reward_ties import first_best


@pytest.mark.parametrize(
    "check",
    [
        tie_cases.check_tolerance,
        tie_cases.check_rewards_differ,
        tie_cases.check_thresholds,
        tie_cases.check_first_best,
        credit_cases.check_group_bounds,
        credit_cases.check_group_sums,
        credit_cases.check_ties,
    ],
)
def test_by_hand(check: credit_cases.Check) -> None:
    check()


@pytest.mark.parametrize(
    ("rewards", "wanted"),
    [
        ([0.3, 0.1 + 0.2], 0),
        ([0.1 + 0.2, 0.3], 0),
        ([0.1, 0.3, 0.2], 1),
        ([0.2, 0.3, 0.3], 1),
        ([None, -1.0, None], 1),
        ([None, None], 0),
        ([-2.0, -1.0], 1),
    ],
)
def test_the_first_of_the_best(rewards: list[float | None], wanted: int) -> None:
    """0.1 + 0.2 and 0.3 are equal; nulls count only if there is nothing else."""
    assert first_best(rewards) == wanted


def test_the_share_of_groups_without_spread() -> None:
    """0.1 + 0.2 and 0.3 have zero variance, 0.3 and 0.4 do not."""
    empty = pa.array([[]] * 4, pa.map_(pa.string(), pa.float64()))
    statuses = pa.array([[]] * 4, pa.map_(pa.string(), pa.string()))
    batch = Batch(
        index=pa.table({"scores": empty, "score_status": statuses, "numbers": empty}),
        plan=BatchPlan(microbatches=()),
        group_N=np.array([0, 0, 1, 1]),
        update_N=np.zeros(4, np.int64),
        reward_N=np.array([0.1 + 0.2, 0.3, 0.3, 0.4]),
    )
    assert reward_metrics(batch)["group/zero_std_share"] == 0.5


def test_an_evaluation_passes_what_misses_1_by_rounding() -> None:
    """0.7 + 0.2 + 0.1 is 0.9999999999999999 and counts as correct."""
    sample = replace(make_sample("a", 1, reward=0.7 + 0.2 + 0.1), answer_ok=None)
    wrong = replace(make_sample("b", 1, reward=0.999), answer_ok=None)
    assert eval_metrics([make_group(0, (sample, wrong))], (1,))["eval/pass@1"] == 0.5
