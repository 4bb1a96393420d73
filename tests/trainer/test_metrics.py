"""A step's metrics on rows small enough to count by hand."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from trainer.label_entropy import entropy_of
from trainer.metrics import staleness_metrics, step_metrics, update_metrics
from trainer.step_records import Batch, BatchPlan


def step_rows(domains: tuple[str, ...] = ("math",) * 4, origins: tuple[str, ...] = ("policy",) * 4) -> Batch:
    """Two groups of two rows with 2, 1, 1 and 4 tokens; the last row's scorer timed out.

    Their tokens' versions: 6 7, 5, none, 3 5 5 6.
    """
    index = pa.table(
        {
            "scores": pa.array(
                [[("ok", 1.0)], [("ok", 0.0)], [("ok", 1.0)], [("ok", None)]],
                pa.map_(pa.string(), pa.float64()),
            ),
            "score_status": pa.array(
                [[("ok", "ok")], [("ok", "ok")], [("ok", "ok")], [("ok", "timeout")]],
                pa.map_(pa.string(), pa.string()),
            ),
            "numbers": pa.array(
                [[("judge/tokens", 10.0)], None, [("judge/tokens", 20.0)], None],
                pa.map_(pa.string(), pa.float64()),
            ),
            "format_tag": ["code", "code", "prose", None],
            "answer": ["3", "4", "5", "5"],
            "num_tokens": [2, 1, 1, 4],
            "num_loss_tokens": [2, 1, 1, 4],
            "finish_reason": ["stop", "stop", "stop", "length"],
            "domain": list(domains),
            "origin": list(origins),
            "min_version": pa.array([6, 5, None, 3], pa.int64()),
            "version_tokens": [13, 5, 0, 19],
        }
    )
    return Batch(
        index=index,
        plan=BatchPlan(microbatches=()),
        group_N=np.array([0, 0, 1, 1]),
        update_N=np.zeros(4, np.int64),
        reward_N=np.array([1.0, 0.0, 1.0, np.nan]),
    )


def columns(base: bool = True) -> pa.Table:
    """Policy logprob ln(1/2) and reference ln(1/4) everywhere, so k3 = 1/2 - 1 + ln 2 per token."""
    floats = pa.list_(pa.float32())
    policy = pa.array([[math.log(0.5)] * count for count in (2, 1, 1, 4)], floats)
    ref = pa.array([[math.log(0.25)] * count for count in (2, 1, 1, 4)], floats)
    return pa.table(
        {
            "loss_mask": [[True] * count for count in (2, 1, 1, 4)],
            "proximal_logprobs": policy,
            "ref_logprobs": ref,
            "base_logprobs": ref if base else pa.nulls(4, floats),
            "entropy_mean": pa.array([1.0, 2.0, 3.0, 0.5], pa.float32()),
            "entropy_mean_t1": pa.array([1.0, 1.0, 1.0, 2.0], pa.float32()),
            "mismatch_abs": [0.2, 0.0, 0.0, 0.6],
            "mismatch_k3": [0.08, 0.0, 0.0, 0.0],
        }
    )


def test_step_metrics_by_hand() -> None:
    """8 tokens. Entropy by token (2x1 + 2 + 3 + 4x0.5) / 8 = 9/8, by sequence 6.5/4; at 1: (2+1+1+8)/8.

    Group 0 has rewards 1, 0; group 1 only one reward, so no spread: share 1/2. Answers 3 4 / 5 5 have
    entropies ln 2 and 0. Formats code code prose none: (1/2, 1/4, 1/4) gives 1.5 ln 2. Seven tokens are
    1 0, 2 and 4 2 2 1 steps older than version 7.
    """
    ln2 = math.log(2)
    assert step_metrics(step_rows(), columns(), 7) == pytest.approx(
        {
            "reward/mean": 2 / 3,
            "reward/null_share": 0.25,
            "score/ok": 2 / 3,
            "scorer/judge/tokens": 15.0,
            "scorer/ok/null_share": 0.25,
            "scorer/ok/timeout_share": 0.25,
            "failed/ok/timeout": 1.0,
            "group/zero_std_share": 0.5,
            "format/leading_share": 0.5,
            "format/share/code": 0.5,
            "format/share/prose": 0.25,
            "format/share/untagged": 0.25,
            "format/reward/code": 0.5,
            "format/reward/prose": 1.0,
            "entropy/format": 1.5 * ln2,
            "entropy/answer": ln2 / 2,
            "entropy/token_mean": 9 / 8,
            "entropy/token_mean_t1": 1.5,
            "entropy/sequence_mean": 6.5 / 4,
            "mismatch/mean_abs_behavior_vs_proximal": 0.1,
            "mismatch/k3_behavior_vs_proximal": 0.01,
            "kl/k3_policy_vs_ref": ln2 - 0.5,
            "kl/k3_policy_vs_base": ln2 - 0.5,
            "length/mean_tokens": 2.0,
            "length/truncated_share": 0.25,
            "staleness/mean": 12 / 7,
            "staleness/max": 4.0,
        }
    )


def test_absent_columns_leave_metrics_out() -> None:
    """No base logprobs, no base KL: a number would be taken for a measurement."""
    assert "kl/k3_policy_vs_base" not in step_metrics(step_rows(), columns(base=False), 7)


def test_replayed_rows_are_measured_apart() -> None:
    """Rows 0 and 1 are the step's own: 3 tokens, 1, 0 and 2 steps old. Rows 2 and 3 are one replayed group.

    Of those row 2 has no versions and row 3 no reward; row 3's tokens are 4 2 2 1 steps older than 7.
    """
    batch, every = step_rows(origins=("policy", "policy", "replay", "replay")), columns()
    metrics = step_metrics(batch, every, 7)
    own = np.array([0, 1])
    alone = step_metrics(batch.only(own), every.take(own), 7)
    assert (alone["staleness/mean"], alone["staleness/max"]) == (1.0, 2.0)
    assert (alone["reward/mean"], alone["reward/null_share"]) == (0.5, 0.0)
    assert metrics == alone | {
        "replay/num_groups": 1.0,
        "replay/reward_mean": 1.0,
        "replay/k3_behavior_vs_proximal": 0.0,
        "replay/staleness_mean": 9 / 4,
        "replay/staleness_max": 4.0,
    }
    assert staleness_metrics(batch.index.slice(2, 1), 7) == {}


def test_demonstrations_are_measured_apart() -> None:
    """Rows 2 and 3 are demonstrations: 5 tokens with entropy (1 x 3 + 4 x 0.5) / 5 = 1 and logprob ln(1/2).

    Their missing rewards and formats, their scores and their lengths are in no other metric.
    """
    batch, every = step_rows(origins=("policy", "policy", "sft", "sft")), columns()
    metrics = step_metrics(batch, every, 7)
    own = np.array([0, 1])
    alone = step_metrics(batch.only(own), every.take(own), 7)
    assert alone["format/leading_share"] == alone["format/share/code"] == 1.0
    assert alone["reward/null_share"] == alone["entropy/format"] == 0.0
    assert metrics == pytest.approx(
        alone | {"sft/num_rows": 2.0, "sft/token_entropy": 1.0, "sft/nll": math.log(2)}
    )


def test_domains_are_repeated_apart() -> None:
    """Rows 0 and 3 are math, 1 and 2 prose: their token entropies are (2 + 2)/6 and (2 + 3)/2."""
    metrics = step_metrics(step_rows(("math", "poem", "poem", "math")), columns(), 7)
    assert metrics["entropy/token_mean@math"] == pytest.approx(4 / 6)
    assert metrics["entropy/token_mean@poem"] == pytest.approx(5 / 2)
    assert (metrics["reward/mean@math"], metrics["reward/mean@poem"]) == (1.0, 0.5)
    assert metrics["format/share/code@math"] == metrics["format/share/prose@poem"] == 0.5


@pytest.mark.parametrize(
    ("labels", "entropy"),
    [("", 0.0), ("aaa", 0.0), ("ab", math.log(2)), ("aabc", 1.5 * math.log(2)), ("abcd", math.log(4))],
)
def test_entropy_of(labels: str, entropy: float) -> None:
    """Nats, of the empirical distribution."""
    assert entropy_of(labels) == pytest.approx(entropy)


def test_update_metrics_by_hand() -> None:
    """Means over updates; a skipped one has no gradient norm; drift is by token: (1 + 3) / (10 + 10)."""
    updates = [
        {"loss/policy": 1.0, "grad/norm": 3.0, "grad/applied": 1.0, "tokens/policy": 10.0}
        | {"sum/k3_proximal_vs_policy": 1.0},
        {"loss/policy": 3.0, "grad/norm": math.nan, "grad/applied": 0.0, "tokens/policy": 10.0}
        | {"sum/k3_proximal_vs_policy": 3.0},
    ]
    assert update_metrics(updates) == pytest.approx(
        {"loss/policy": 2.0, "grad/norm": 3.0, "grad/skipped_updates": 1.0, "kl/k3_proximal_vs_policy": 0.2}
    )


def test_numbers_that_a_loss_prepared_are_averaged_over_updates() -> None:
    """Updates with 1 and 3, one without any: 2, under prepare/<name>, or prepare/<origin>/<name>."""
    rest = {"grad/norm": 1.0, "grad/applied": 1.0}
    updates = [{"stat/policy/q": 1.0, "stat/replay/q": 5.0} | rest, {"stat/policy/q": 3.0} | rest, rest]
    metrics = update_metrics(updates)
    assert metrics["prepare/q"] == 2.0 and metrics["prepare/replay/q"] == 5.0
