"""A step's own groups and replayed ones: distributed, compared and measured separately."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from index_table import make_index

from configs.bound import bind
from configs.schema import KLConfig, LearnerConfig, RunConfig
from trainer.collate import collate, with_advantages
from trainer.step_records import Batch

REPLAY = {
    "policy": {"kind": "ppo_clip"},
    "replay": {"kind": "ppo_clip", "weight": 0.5, "ratio_to": "behavior"},
}


def make_config(num_updates: int = 2) -> RunConfig:
    learner = LearnerConfig(updates_per_step=num_updates, microbatch_tokens=10)
    return RunConfig(learner=learner, loss=REPLAY, advantage={"kind": "dr_grpo"})


def in_updates(batch: Batch, origin: str) -> list[list[int]]:
    """The submissions of `origin` in each update."""
    rows = batch.rows_of(origin)
    submissions = batch.index.column("submission_index").to_numpy()[rows]
    return [sorted(set(submissions[batch.update_N[rows] == update].tolist())) for update in range(2)]


def test_each_origin_is_spread_over_the_updates() -> None:
    """Four groups and two replayed ones over two updates: two and one each, whatever their submissions."""
    own = [(index, "policy", (1.0, 0.0)) for index in (8, 9, 10, 11)]
    batch = collate(make_index([(2, "replay", (1.0, 0.0)), *own, (5, "replay", (1.0, 0.0))]), make_config())
    assert in_updates(batch, "policy") == [[8, 9], [10, 11]]
    assert in_updates(batch, "replay") == [[2], [5]]
    planned = [row for micro in batch.plan.microbatches[0] for rows in micro for row in rows]
    assert sorted(planned) == list(range(12))


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=8),
    st.lists(st.integers(1, 3), max_size=5),
    st.integers(1, 3),
)
def test_replay_does_not_move_the_other_rows(own: list[int], replayed: list[int], num_updates: int) -> None:
    """Without replay, rows are numbered and distributed as one sequence of groups; replay does not change
    that.
    """
    config = make_config(num_updates)
    policy = [(100 + place, "policy", (0.5,) * size) for place, size in enumerate(own)]
    alone = collate(make_index(policy), config)
    submissions = alone.index.column("submission_index").to_numpy()
    _, numbers = np.unique(submissions, return_inverse=True)
    assert alone.group_N.tolist() == numbers.tolist()
    assert alone.update_N.tolist() == (numbers * num_updates // len(own)).tolist()
    older = [(place, "replay", (0.5,) * size) for place, size in enumerate(replayed)]
    mixed = collate(make_index(older + policy), config)
    rows = mixed.rows_of("policy")
    assert mixed.group_N[rows].tolist() == alone.group_N.tolist()
    assert mixed.update_N[rows].tolist() == alone.update_N.tolist()
    counts = np.bincount(
        [mixed.update_N[mixed.group_N == len(own) + place][0] for place in range(len(older))],
        minlength=num_updates,
    )
    assert counts.max() - counts.min() <= 1


def test_advantages_and_weights_by_hand() -> None:
    """Rewards 1, 0 | 3, 1, null: minus their own means 1/2 and 2. Weights 1/6 and 0.5/6; a null row has none.

    The replayed group has the same submission index as the other one, which no run has: they are still two
    groups.
    """
    index = make_index([(4, "policy", (1.0, 0.0)), (4, "replay", (3.0, 1.0, None))])
    config = make_config(1)
    batch = collate(index, config)
    learnable = with_advantages(batch, pa.table({"sample_id": index.column("sample_id")}), bind(config), 0)
    assert learnable.advantage_N.tolist() == [0.5, -0.5, 1.0, -1.0, 0.0]
    assert learnable.row_weight_N.tolist() == pytest.approx([1 / 6, 1 / 6, 0.5 / 6, 0.5 / 6, 0.0])


def test_demonstrations_are_spread_and_weighed_apart() -> None:
    """Four of them over two updates: two each, in order of number, whatever the groups' numbers.

    4 own rows of 3 tokens per update weigh 1/12 each; 2 demonstrations of 3 tokens 0.1/6, with advantage 0
    and no reward. A policy row without a reward still has no weight.
    """
    own = [(index, "policy", (1.0, 0.0)) for index in (8, 9, 10)] + [(11, "policy", (1.0, None))]
    shown = [(index, "sft", (None,)) for index in (9, 2, 30, 4)]
    losses = {"policy": {"kind": "ppo_clip"}, "sft": {"kind": "nll", "weight": 0.1}}
    config = replace(make_config(), loss=losses)
    batch = collate(make_index([*own, *shown]), config)
    assert in_updates(batch, "policy") == [[8, 9], [10, 11]]
    assert in_updates(batch, "sft") == [[2, 4], [9, 30]]
    assert len(set(batch.group_N.tolist())) == 8
    columns = pa.table({"sample_id": batch.index.column("sample_id")})
    learnable = with_advantages(batch, columns, bind(config), 0)
    assert learnable.advantage_N.tolist() == [0.5, -0.5] * 3 + [0.0] * 6
    weights = [1 / 12] * 4 + [1 / 9] * 3 + [0.0] + [0.1 / 6] * 4
    assert learnable.row_weight_N.tolist() == pytest.approx(weights)
    alone = collate(make_index(own), config)
    own_columns = pa.table({"sample_id": alone.index.column("sample_id")})
    without = with_advantages(alone, own_columns, bind(config), 0)
    assert without.advantage_N.tolist() == learnable.advantage_N[:8].tolist()
    assert without.row_weight_N.tolist() == learnable.row_weight_N[:8].tolist()


def test_the_rows_of_one_origin_alone() -> None:
    """Their groups are numbered from 0 again, and the plan is empty."""
    groups = [(0, "replay", (1.0, 0.0)), (4, "policy", (1.0,)), (5, "policy", (None, 2.0))]
    batch = collate(make_index(groups), make_config())
    assert (batch.rows_of("policy").tolist(), batch.rows_of("replay").tolist()) == ([2, 3, 4], [0, 1])
    replay = batch.only(batch.rows_of("replay"))
    assert replay.group_N.tolist() == [0, 0] and replay.reward_N.tolist() == [1.0, 0.0]
    assert replay.index.column("sample_id").to_pylist() == ["s0", "s1"]
    policy = batch.only(batch.rows_of("policy"))
    assert policy.group_N.tolist() == [0, 1, 1] and np.isnan(policy.reward_N[1])
    assert batch.only(batch.rows_of("sft")).index.num_rows == 0


def test_anchors_in_the_reward_by_hand() -> None:
    """Rewards 1, 0; log-ratios of the sequences 1, 0 to the reference and 0, 3 to the base.

    A controller sets 0.5 for the reference, the config 0.1 for the base: 0.5 and -0.3, so advantages +-0.4.
    """
    kl_base = KLConfig(estimator="k1", coef=0.1, place="reward")
    config = replace(make_config(1), kl=KLConfig(estimator="k1", place="reward"), kl_base=kl_base)
    batch = collate(make_index([(0, "policy", (1.0, 0.0))]), config)
    logprobs = {
        "proximal_logprobs": [[-0.5, -1.0, -0.5], [-1.0, -0.5, -0.5]],
        "ref_logprobs": [[-1.5, -1.0, -0.5], [-1.0, -0.25, -0.75]],
        "base_logprobs": [[-0.5, -0.5, -1.0], [-2.0, -1.5, -1.5]],
    }
    lists = {name: pa.array(rows, pa.list_(pa.float32())) for name, rows in logprobs.items()}
    columns = pa.table({"loss_mask": [[True] * 3] * 2, **lists})
    learnable = with_advantages(batch, columns, bind(config), 0, {"kl.coef": 0.5})
    assert learnable.advantage_N.tolist() == pytest.approx([0.4, -0.4])
    assert learnable.settings == {"kl.coef": 0.5}
    plain = with_advantages(batch, columns, bind(config), 0)
    assert plain.advantage_N.tolist() == pytest.approx([0.65, -0.65])
