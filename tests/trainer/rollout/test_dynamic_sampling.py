"""Dynamic sampling by numbers: which groups have variance, what is learned from, sampled, and refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from config_files import check_refused
from hypothesis import given
from hypothesis import strategies as st
from index_table import make_index
from loop_fakes import token_prompts
from sampling_cases import CHECKS, DROP, reference_differs, reference_rounds, rows_of

from cluster.train import Job, train
from configs.bound import bind
from configs.load import load_config
from configs.schema import KLConfig, LearnerConfig, RolloutConfig, RunConfig
from trainer.collate import collate, with_advantages
from trainer.data.prompts import PromptOrder
from trainer.rollout.dynamic_sampling import asked_for, nonzero_variance_rows, plan_rounds, sampling_metrics
from trainer.step_records import Learnable
from viewer.terminal import StepReporter

REWARD = st.sampled_from([None, 0.0, 1.0, 0.5, -1.0])
GROUPS = st.lists(st.lists(REWARD, min_size=1, max_size=4), min_size=1, max_size=6)
CONFIG = RunConfig(rollout=DROP, advantage={"kind": "dr_grpo"})


@pytest.mark.parametrize("name", CHECKS)
def test_numbers_by_hand(name: str) -> None:
    for check in CHECKS[name]:
        check()


@given(GROUPS)
def test_zero_variance_is_what_the_equation_says(groups: list[list[float | None]]) -> None:
    """Against pairwise comparison, in any order of rows; NaN and null never make a difference."""
    rewards = [np.nan if reward is None else reward for group in groups for reward in group]
    owners = [number for number, group in enumerate(groups) for _ in group]
    order = np.random.default_rng(len(owners)).permutation(len(owners))
    found = nonzero_variance_rows(np.array(rewards)[order], np.array(owners)[order])
    assert found.tolist() == [reference_differs(groups[owners[row]]) for row in order]


@given(st.lists(st.booleans(), min_size=24, max_size=24), st.integers(1, 6), st.integers(1, 4))
def test_rounds_are_those_of_doing_it(differs: list[bool], wanted: int, limit: int) -> None:
    """Given only the groups sampled so far, round by round, it ends where the plain loop ends."""
    rounds, sampled = reference_rounds(differs, wanted, limit)
    known = 0
    while (plan := plan_rounds(differs[:known], wanted, limit)).num_groups > known:
        known = plan.num_groups
    assert (plan.num_rounds, plan.num_groups) == (rounds, sampled)
    assert known <= wanted * limit and sum(differs[:known]) <= wanted


def learn(
    groups: Sequence[Sequence[float | None]], config: RunConfig = CONFIG, kl: float = 0.0
) -> tuple[pa.Table, Learnable]:
    """A step of these groups; with `kl` every token's log-ratio to the reference is 0.1 times its row."""
    if kl:
        config = replace(config, kl=KLConfig(coef=kl, estimator="k1", place="reward"))
    index = make_index([(number, "policy", rewards) for number, rewards in enumerate(groups)])
    ratios = [[0.1 * row] * 3 for row in range(len(index))]
    masks, zeros = [[True] * 3] * len(index), [[0.0] * 3] * len(index)
    columns = pa.table({"loss_mask": masks, "proximal_logprobs": ratios, "ref_logprobs": zeros})
    return index, with_advantages(collate(index, config), columns, bind(config), 0)


def test_a_dropped_group_weighs_nothing_and_dilutes_nothing() -> None:
    """Rewards 0 1, 1 1 and 1 null, three tokens a row. Kept: five rewarded rows weigh 1/15 each, among them
    the two with an advantage of half. Dropped: only those two remain, at 1/6.
    """
    groups = [(0.0, 1.0), (1.0, 1.0), (1.0, None)]
    _, kept = learn(groups, replace(CONFIG, rollout=RolloutConfig(groups_per_step=2)))
    assert kept.row_weight_N == pytest.approx([1 / 15] * 5 + [0])
    _, dropped = learn(groups)
    assert dropped.row_weight_N == pytest.approx([1 / 6, 1 / 6, 0, 0, 0, 0])
    assert kept.advantage_N.tolist() == dropped.advantage_N.tolist() == [-0.5, 0.5, 0, 0, 0, 0]


def test_a_kl_term_does_not_bring_a_group_back() -> None:
    """A KL term makes all rewards differ, but the selection uses the reward without it."""
    _, learnable = learn([(0.0, 1.0), (1.0, 1.0)], kl=1.0)
    assert (learnable.row_weight_N > 0).tolist() == [True, True, False, False]
    assert learnable.advantage_N[2:].tolist() == [0.0, 0.0]


def test_kept_groups_are_spread_evenly() -> None:
    """Groups 0, 2, 4 and 5 of six have variance: two for each of two updates, and one each of the others."""
    groups = [(0.0, 1.0) if number in (0, 2, 4, 5) else (1.0, 1.0) for number in range(6)]
    config = replace(CONFIG, learner=LearnerConfig(updates_per_step=2))
    index, _ = learn(groups, config)
    batch = collate(index, config)
    assert batch.update_N[::2].tolist() == [0, 0, 0, 1, 1, 1]


@given(GROUPS, st.sampled_from(["token_mean", "sequence_mean", "sequence_sum"]))
def test_zero_variance_groups_give_zeros_never_nan(groups: list[list[float | None]], aggregate: str) -> None:
    """Against plain loops over groups and rows: weight and advantage of every row, in any order of rows."""
    config = replace(CONFIG, loss={"policy": {"kind": "ppo_clip", "aggregate": aggregate}})
    used = [
        (number, reward)
        for number, group in enumerate(groups)
        if reference_differs(group)
        for reward in group
        if reward is not None
    ]
    weight = {
        "token_mean": lambda: 1 / (3 * len(used)),
        "sequence_mean": lambda: 1 / (3 * len(used)),
        "sequence_sum": lambda: 1 / (config.rollout.max_tokens * len(used)),
    }
    expected: list[tuple[float, float]] = []
    for number, group in enumerate(groups):
        mine = [reward for owner, reward in used if owner == number]
        for reward in group:
            learned = reward is not None and bool(mine)
            advantage = reward - sum(mine) / len(mine) if learned and reward is not None else 0.0
            expected.append((weight[aggregate]() if learned else 0.0, advantage))
    index, learnable = learn(groups, config)
    found = list(zip(learnable.row_weight_N, learnable.advantage_N, strict=True))
    assert np.array(found) == pytest.approx(np.array(expected), abs=1e-12)
    order = np.random.default_rng(len(expected)).permutation(len(expected))
    shuffled = collate(index.take(order), config)
    again = with_advantages(shuffled, pa.table({}), bind(config), 0)
    assert again.row_weight_N == pytest.approx(learnable.row_weight_N[order], abs=1e-15)
    assert again.advantage_N == pytest.approx(learnable.advantage_N[order], abs=1e-15)


@given(GROUPS)
def test_metrics_are_finite(groups: list[list[float | None]]) -> None:
    """For any rewards: shares within 0 and 1, and never more groups kept than sampled."""
    found = sampling_metrics(rows_of(groups, 6), DROP)
    assert 0 <= found["sampling/zero_variance_share"] <= 1 and found["sampling/rounds"] == 1
    assert found["sampling/kept_groups"] == sum(map(reference_differs, groups))
    assert asked_for(rows_of(groups, 6), 6, DROP).num_groups == 2


def order_of(count: int, shuffle: bool = True) -> PromptOrder:
    return PromptOrder(token_prompts(count), seed=3, shuffle=shuffle)


def test_further_prompts_of_a_step() -> None:
    """Two groups of 7 prompts: the first two in epoch order; the next five are all others, once each; then
    those two again. Other steps have another order; repeated calls give the same prompt.
    """
    order = order_of(7)

    def names(step: int, places: range) -> list[str]:
        return [order.of_step(step, place, 2).prompt.prompt_id for place in places]

    for step in range(9):  # step 3 has the last prompt of the first epoch and the first of the second
        in_turn = [order.at(number).prompt.prompt_id for number in (2 * step, 2 * step + 1)]
        assert names(step, range(2)) == in_turn
        others = names(step, range(2, 7 + 2 - len(set(in_turn))))
        assert len(set(others)) == len(others) and not set(others) & set(in_turn)
        assert set(others) | set(in_turn) == {f"p{number}" for number in range(7)}
        assert names(step, range(9)) == names(step, range(9))
        epochs = {order.of_step(step, place, 2).prompt.epoch for place in range(2, 9)}
        assert epochs == {order.at(2 * step).prompt.epoch}
    assert len({tuple(names(step, range(2, 7))) for step in (0, 7, 14)}) == 3


def test_fewer_prompts_than_a_step_may_ask_for() -> None:
    """With one prompt all groups have it; with two, a step that has both repeats both."""
    alone = order_of(1)
    assert [alone.of_step(4, place, 2).prompt.prompt_id for place in range(6)] == ["p0"] * 6
    two = order_of(2, shuffle=False)
    names = [two.of_step(0, place, 2).prompt.prompt_id for place in range(6)]
    assert names[:2] == ["p0", "p1"] and sorted(names[2:4]) == sorted(names[4:]) == ["p0", "p1"]


@pytest.mark.parametrize(
    ("overrides", "key", "rule"),
    [
        (
            ["rollout.zero_variance_groups=refil"],
            "rollout.zero_variance_groups",
            "must be one of keep, drop, refill",
        ),
        (
            ["rollout.zero_variance_groups=drop", "advantage.kind=reinforce"],
            "rollout.zero_variance_groups",
            "equal-reward groups still give gradient",
        ),
        (
            ["rollout.zero_variance_groups=drop", "loss.policy={kind: nll}"],
            "rollout.zero_variance_groups",
            "uses advantages",
        ),
        (
            [
                "rollout.zero_variance_groups=drop",
                "loss.policy=null",
                "loss.sft={kind: nll}",
                "sft.share=0.1",
            ],
            "rollout.zero_variance_groups",
            "must be keep without a loss.policy",
        ),
        (
            ["rollout.zero_variance_groups=refill", "rollout.max_rounds=1"],
            "rollout.max_rounds",
            "must be 2 or more",
        ),
        (["rollout.max_rounds=0"], "rollout.max_rounds", "must be above 0"),
        (
            ["rollout.zero_variance_groups=refill", "rollout.max_lag=1"],
            "rollout.zero_variance_groups",
            "must be keep or drop with",
        ),
        (
            [
                "rollout.zero_variance_groups=refill",
                "replay.groups_per_step=1",
                "loss.replay={kind: ppo_clip}",
            ],
            "replay.groups_per_step",
            "must be 0 with rollout.zero_variance_groups refill",
        ),
    ],
)
def test_what_is_refused(overrides: list[str], key: str, rule: str) -> None:
    check_refused(overrides, key, rule)


def test_a_run_on_saved_rollouts_cannot_refill(tmp_path: Path) -> None:
    """Refused before anything starts; exit code 2 on the command line."""
    config = load_config("debug", [f"runs_dir={tmp_path}", "rollout.zero_variance_groups=refill"])
    with pytest.raises(ValueError, match="must be keep or drop with --train-only, got refill"):
        train(config, StepReporter(1, StringIO()), Job(rollouts_of=tmp_path))
    assert not any(tmp_path.iterdir())


def test_what_is_not_refused() -> None:
    """Configs that the rules must accept."""
    replayed = ["replay.groups_per_step=1", "loss.replay={kind: ppo_clip}", "rollout.max_lag=1"]
    load_config("debug", ["rollout.zero_variance_groups=drop", *replayed])
    load_config("debug", ["rollout.zero_variance_groups=refill", "rollout.max_rounds=2"])
