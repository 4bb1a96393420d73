"""From rewards to credit: the order of the pipeline by hand, controlled values, rows of each origin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.bound import bind
from configs.schema import KLConfig, LearnerConfig, RunConfig
from rollouts.columns import SCORE_MAP, SPANS
from trainer.collate import collate, learner_columns, with_advantages
from trainer.credit.advantage_inputs import RewardedRows
from trainer.credit.history import AnswerHistory
from trainer.metrics import credit_metrics
from trainer.step_records import Batch, Learnable

NUM_TOKENS = 4


def make_index(
    groups: Sequence[tuple[str, Sequence[float | None]]],
    answers: Sequence[str | None] = (),
    right: Sequence[bool | None] = (),
    finish: Sequence[str] = (),
) -> pa.Table:
    """One row of 4 tokens per reward of (origin, rewards), whose answer is its third token."""
    rows = [(number, origin, reward) for number, (origin, rewards) in enumerate(groups) for reward in rewards]
    size = len(rows)
    return pa.table(
        {
            "submission_index": pa.array([number for number, _, _ in rows], pa.int64()),
            "sample_id": [f"s{number}" for number in range(size)],
            "prompt_id": [f"p{number}" for number, _, _ in rows],
            "origin": [origin for _, origin, _ in rows],
            "reward": pa.array([reward for _, _, reward in rows], pa.float64()),
            "answer": pa.array(list(answers) or [None] * size, pa.string()),
            "answer_ok": pa.array(list(right) or [None] * size, pa.bool_()),
            "finish_reason": list(finish) or ["stop"] * size,
            "spans": pa.array([[{"label": "answer", "start": 2, "end": 3}]] * size, SPANS),
            "scores": pa.array([[]] * size, SCORE_MAP),
            "numbers": pa.nulls(size, SCORE_MAP),
            "partition_id": pa.nulls(size, pa.int32()),
            "num_prompt_tokens": [2] * size,
            "num_tokens": [NUM_TOKENS] * size,
            "num_loss_tokens": [NUM_TOKENS] * size,
        }
    )


def columns_of(index: pa.Table, ref: Sequence[float] = ()) -> pa.Table:
    """A policy logprob of -1 per token; the reference's sequence logprob is `ref`."""
    floats = pa.list_(pa.float32())
    policy = pa.array([[-1.0] * NUM_TOKENS] * index.num_rows, floats)
    held = pa.array([[each, 0.0, 0.0, 0.0] for each in ref], floats) if ref else pa.nulls(len(index), floats)
    masks = pa.array([[True] * NUM_TOKENS] * index.num_rows, pa.list_(pa.bool_()))
    return pa.table(
        {"loss_mask": masks, "proximal_logprobs": policy, "ref_logprobs": held, "base_logprobs": held}
    )


def make_config(**sections: object) -> RunConfig:
    """One update a step and dr_grpo, which is easy by hand; policy and replayed rows have a loss."""
    config = RunConfig(
        learner=LearnerConfig(microbatch_tokens=64),
        loss={"policy": {"kind": "ppo_clip"}, "replay": {"kind": "ppo_clip"}},
        advantage={"kind": "dr_grpo"},
    )
    return replace(config, **sections)  # type: ignore[arg-type]


def learn(
    index: pa.Table,
    config: RunConfig,
    ref: Sequence[float] = (),
    settings: Mapping[str, float] | None = None,
    history: AnswerHistory | None = None,
) -> tuple[Batch, Learnable]:
    batch = collate(index, config)
    return batch, with_advantages(batch, columns_of(index, ref), bind(config), 0, settings, history)


def test_the_order_of_the_pipeline_by_hand() -> None:
    """Rewards 1, 1, 0. mara with beta 1/2 and ref -8, -4, -2: 1 + 2, 1, 0. KL k1 at 0.1: policy -4, so the
    log-ratios 4, 0, -2 take off 0.4, 0, -0.2: 2.6, 1, 0.2, whose mean is 19/15.

    The batch bonus: answers 3, 3, 5, so -1/3, -1/3, 0 of 0.3. The prompt has 1 right of 1 sample before and
    k = 2: weight 2 x 1/3 = 2/3 for both.
    """
    index = make_index([("policy", (1.0, 1.0, 0.0))], ["3", "3", "5"], [True, True, False])
    history = AnswerHistory()
    history.add(make_index([("policy", (1.0,))], ["3"], [True]))
    config = make_config(
        reward_shape={"modes": {"kind": "mara", "beta": 0.5}},
        kl=KLConfig(estimator="k1", coef=0.1, place="reward"),
        bonus={"explore": {"kind": "batch", "coef": 0.3}},
        prompt_weight={"value": {"kind": "pass_at_k_value", "k": 2, "normalise": False}},
    )
    _, found = learn(index, config, ref=(-8.0, -4.0, -2.0), history=history)
    wanted = [2 / 3 * (reward - 19 / 15) for reward in (2.6, 1.0, 0.2)]
    assert found.advantage_N.tolist() == pytest.approx(wanted, abs=1e-6)
    assert found.bonus_N.tolist() == pytest.approx([-1 / 15, -1 / 15, 0.0])
    assert found.visits_N.tolist() == [1, 1, 0]


def test_reward_shapes_go_in_the_order_of_the_config() -> None:
    """A penalty of 1 at 4 tokens turns 1 into 0, which is no longer good; in the other order 1 + 2 - 1."""
    index = make_index([("policy", (1.0, 1.0))])
    shapes = {
        "length": {"kind": "overlong", "max_tokens": 4, "cache_tokens": 2},
        "modes": {"kind": "mara", "beta": 0.5},
    }
    _, first = learn(index, make_config(reward_shape=shapes, advantage={"kind": "reinforce"}), ref=(-8, -4))
    assert first.advantage_N.tolist() == [0.0, 0.0]
    shapes = dict(reversed(shapes.items()))
    _, second = learn(index, make_config(reward_shape=shapes, advantage={"kind": "reinforce"}), ref=(-8, -4))
    assert second.advantage_N.tolist() == [2.0, 0.0]


def test_a_filtered_row_is_not_learned_from_nor_compared_with() -> None:
    """Truncated: no reward, no advantage, no weight; the mean is over the other rows alone."""
    index = make_index([("policy", (1.0, 0.0, 0.0))], finish=["stop", "length", "stop"])
    shapes = {"cut": {"kind": "overlong", "penalty": 0.0, "filter": True}}
    batch, found = learn(index, make_config(reward_shape=shapes))
    assert found.advantage_N.tolist() == [0.5, 0.0, -0.5]
    assert found.row_weight_N.tolist() == pytest.approx([1 / 8, 0.0, 1 / 8])
    assert batch.reward_N.tolist() == [1.0, 0.0, 0.0]


def test_controllers_move_options_by_name() -> None:
    """bonus.explore.coef is used here only; entropy.coef is passed on to the objective."""
    index = make_index([("policy", (1.0, 0.0))], ["3", "4"], [True, False])
    config = make_config(bonus={"explore": {"kind": "ucb", "coef": 0.1}})
    settings = {"bonus.explore.coef": 0.5, "entropy.coef": 0.01}
    with pytest.raises(ValueError, match=r"reward_shape\.other\.beta: must name an entry"):
        learn(index, config, settings={"reward_shape.other.beta": 1.0})
    _, found = learn(index, config, settings=settings)
    assert found.bonus_N.tolist() == [0.5, 0.5]
    assert found.settings == {"entropy.coef": 0.01}
    assert learn(index, config)[1].bonus_N.tolist() == [0.1, 0.1]


def test_bonuses_are_of_policy_rows_and_weights_of_all() -> None:
    """A replayed group has an advantage, a weight and no bonus; the policy rows' weights do not change."""
    answers, right = ["3", "4", "3", "4"], [True, False] * 2
    groups = [("policy", (1.0, 0.0)), ("replay", (1.0, 0.0))]
    index = make_index(groups, answers, right)
    config = make_config(
        bonus={"explore": {"kind": "ucb", "coef": 0.1}},
        prompt_weight={"value": {"kind": "pass_at_k_value", "k": 2}},
    )
    history = AnswerHistory()
    history.add(make_index([("policy", ()), ("policy", (1.0,) * 3)], ["3"] * 3, [True] * 3))
    _, found = learn(index, config, history=history)
    assert found.bonus_N.tolist() == [0.1, 0.1, 0.0, 0.0]
    assert found.advantage_N.tolist() == pytest.approx([0.5, -0.5, 0.5, -0.5])


def test_committed_columns_by_hand() -> None:
    """Advantages +-1/2 and a bonus of 1/4 on all tokens but the third, in advantage_with_bonus alone.

    Replayed rows have neither bonus nor visits; the learner's metric columns are not committed.
    """
    groups = [("policy", (1.0, 0.0)), ("replay", (1.0, 0.0))]
    index = make_index(groups, ["3", "4", "3", "4"], [True, False] * 2)
    batch, found = learn(index, make_config(bonus={"explore": {"kind": "ucb", "coef": 0.25}}))
    given = columns_of(index).append_column("mismatch_abs", pa.array([0.0] * 4))
    kept = learner_columns(batch, given, found)
    assert kept.column("advantage").to_pylist() == [0.5, -0.5, 0.5, -0.5]
    wanted = [[0.75, 0.75, 0.5, 0.75], [-0.25, -0.25, -0.5, -0.25], None, None]
    assert kept.column("advantage_with_bonus").to_pylist() == wanted
    assert kept.column("visit_count").to_pylist() == [0, 0, None, None]
    assert kept.column("update_count").to_pylist() == [1] * 4
    assert "mismatch_abs" not in kept.column_names
    plain = learner_columns(batch, given, learn(index, make_config())[1])
    assert plain.column("advantage_with_bonus").null_count == 4


def test_kl_in_the_reward_is_of_loss_tokens() -> None:
    """Rewards 1, 1, 1; the policy at -1 everywhere, the reference too, but at -6 on two tokens of row 0 that
    no policy sampled: the rewards stay equal. If they were sampled, row 0 would lose 0.1 x 10.
    """
    index = make_index([("policy", (1.0, 1.0, 1.0))])
    config = make_config(kl=KLConfig(estimator="k1", coef=0.1, place="reward"))
    ref = pa.array([[-1.0, -6.0, -6.0, -1.0], [-1.0] * 4, [-1.0] * 4], pa.list_(pa.float32()))
    given = columns_of(index).set_column(2, "ref_logprobs", ref)
    for masked, wanted in ((True, [0.0] * 3), (False, [-2 / 3, 1 / 3, 1 / 3])):
        masks = pa.array([[True, not masked, not masked, True], *[[True] * 4] * 2])
        columns = given.set_column(0, "loss_mask", masks)
        found = with_advantages(collate(index, config), columns, bind(config), 0)
        assert found.advantage_N.tolist() == pytest.approx(wanted)


def test_mara_sums_loss_tokens() -> None:
    """Reference logprobs -2 and -8, with -6 at a token that was not sampled: both are z, and keep 1."""
    index = make_index([("policy", (1.0, 1.0))])
    config = make_config(
        reward_shape={"modes": {"kind": "mara", "beta": 0.5}}, advantage={"kind": "reinforce"}
    )
    ref = pa.array([[-2.0, 0.0, 0.0, 0.0], [-2.0, -6.0, 0.0, 0.0]], pa.list_(pa.float32()))
    given = columns_of(index).set_column(2, "ref_logprobs", ref)
    columns = given.set_column(0, "loss_mask", pa.array([[True] * 4, [True, False, True, True]]))
    found = with_advantages(collate(index, config), columns, bind(config), 0)
    assert found.advantage_N.tolist() == [1.0, 1.0]


def test_metrics_by_hand() -> None:
    """Policy rows with a reward: 3 was seen, 4 and 5 not; bonuses 0.3 each (one visit is as good as none).

    The replayed row and the one without a reward do not count. Without answers and bonuses there are none.
    """
    index = make_index([("policy", (1.0, 0.0, 0.0, None)), ("replay", (0.0,))], ["3", "4", "5", "6", "7"])
    history = AnswerHistory()
    history.add(make_index([("policy", (1.0,))], ["3"], [True]))
    config = make_config(bonus={"explore": {"kind": "ucb", "coef": 0.3}})
    found = credit_metrics(*learn(index, config, history=history))
    assert found == pytest.approx({"credit/bonus_mean": 0.3, "answers/unseen_share": 2 / 3})
    assert credit_metrics(*learn(make_index([("policy", (1.0, 0.0))]), make_config())) == {}


def none_left(rows: RewardedRows, options: object) -> np.ndarray:
    """A user's own reward shape that removes all rewards."""
    return np.full(len(rows), math.nan)


def test_own_code_may_leave_no_reward_at_all() -> None:
    """The later functions are not called without rows: zeros, no weights."""
    own = {"own": {"kind": "test_credit:none_left"}, "modes": {"kind": "mara"}}
    config = make_config(
        reward_shape=own,
        bonus={"explore": {"kind": "batch"}},
        prompt_weight={"value": {"kind": "pass_at_k_value"}},
    )
    _, found = learn(make_index([("policy", (1.0, 0.0))]), config)
    for column in (found.advantage_N, found.bonus_N, found.row_weight_N):
        assert column.tolist() == [0.0, 0.0]


EVERYTHING = make_config(
    advantage={"kind": "reinforce_pp"},
    reward_shape={
        "length": {"kind": "overlong", "max_tokens": 5, "cache_tokens": 3, "filter": True},
        "modes": {"kind": "mara", "threshold": 0.5},
    },
    bonus={name: {"kind": name} for name in ("ucb", "ucb_mean", "ucb_con", "batch")},
    prompt_weight={"value": {"kind": "pass_at_k_value"}},
)
ROW = st.tuples(
    st.sampled_from([0.0, 1.0, 0.5, None]),
    st.sampled_from(["1", "2", None]),
    st.sampled_from([True, False, None]),
    st.sampled_from(["stop", "length"]),
    st.integers(-30, 0),
)
Row = tuple[float | None, str | None, bool | None, str, int]
GROUPS = st.lists(
    st.tuples(st.sampled_from(["policy", "replay"]), st.lists(ROW, min_size=1, max_size=4)),
    min_size=1,
    max_size=4,
)


@given(GROUPS, st.randoms(use_true_random=False))
def test_any_rows_in_any_order(groups: list[tuple[str, list[Row]]], random: object) -> None:
    """All methods at once: finite; nothing for rows without a reward; the same for a row in any place."""
    rows = [row for _, group in groups for row in group]
    index = make_index(
        [(origin, [row[0] for row in group]) for origin, group in groups],
        [row[1] for row in rows],
        [row[2] for row in rows],
        [row[3] for row in rows],
    )
    ref = [float(row[4]) for row in rows]
    history = AnswerHistory()
    history.add(index)
    _, here = learn(index, EVERYTHING, ref, history=history)
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    _, there = learn(index.take(order), EVERYTHING, [ref[place] for place in order], history=history)
    for name in ("advantage_N", "bonus_N", "row_weight_N"):
        one, other = getattr(here, name), getattr(there, name)
        assert np.isfinite(one).all()
        assert other.tolist() == pytest.approx(one[order].tolist(), abs=1e-6), name
        without = [place for place, row in enumerate(rows) if row[0] is None or row[3] == "length"]
        assert not one[without].any()


def test_what_scorers_stored_reaches_the_credit() -> None:
    """Classes 0, 0, 1 move the bonus, numbers the reward, the policy's logprobs the advantage."""
    right = [True, True, True, False]
    index = make_index([("policy", [1.0, 1.0, 1.0, 0.0])], answers=["a"] * 4, right=right)
    place = index.schema.get_field_index("partition_id")
    index = index.set_column(place, "partition_id", pa.array([0, 0, 1, None], pa.int32()))
    numbers = pa.array([[], [], [("candidate/0/correct", 1.0), ("candidate/1/correct", 5.0)], []], SCORE_MAP)
    index = index.set_column(index.schema.get_field_index("numbers"), "numbers", numbers)
    scores = pa.array([[("correct", value)] for value in (1.0, 2.0, 3.0, 4.0)], SCORE_MAP)
    index = index.set_column(index.schema.get_field_index("scores"), "scores", scores)
    diverse = {"kind": "partition", "quality": "correct"}
    config = make_config(scorers={"correct": {"kind": "lab_answer"}, "diverse": diverse})
    bonus = {"set": {"kind": "setpo", "coef": 0.3, "measure": "distinct"}}
    _, found = learn(index, replace(config, bonus=bonus))
    assert found.bonus_N.tolist() == pytest.approx([-0.1, -0.1, 0.2, 0.0])
    shape = {"v": {"kind": "vpo", "components": ["correct"]}}
    _, found = learn(index, replace(config, reward_shape=shape))
    assert found.advantage_N.tolist() == pytest.approx([-2.0, -1.0, 2.0, 1.0])  # 1, 2, 5, 4: mean 3
    ucpo = {"kind": "ucpo", "base": "dr_grpo", "tau": 1.0, "per_token": False}
    config = replace(config, advantage=ucpo)
    columns, name = columns_of(index), "proximal_logprobs"
    less = [-1.0, -1.0, -1.0, -1.0 - math.log(2.0)]
    logprobs = pa.array([[-1.0] * 4, [-1.0] * 4, less, [-1.0] * 4], pa.list_(pa.float32()))
    columns = columns.set_column(columns.schema.get_field_index(name), name, logprobs)
    learned = with_advantages(collate(index, config), columns, bind(config), 0)
    # 1/q has shares 1/4, 1/4 and 1/2 of three rows with advantage 1/4
    assert learned.advantage_N.tolist() == pytest.approx([0.1875, 0.1875, 0.375, -0.75])
