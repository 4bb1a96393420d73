"""Refined rows change no number of the others: metrics, credit, counts, sampling. They have their own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import refine_cases
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from masked_rows import SCORES, Row, _scores, make_row_sample, steps
from rollout_rows import make_group

from actors.buffer import _index_of
from configs.bound import bind
from configs.schema import KLConfig, LearnerConfig, RolloutConfig, RunConfig
from rollouts.records import Critique
from rollouts.schema import group_to_batch, to_batch, validate
from trainer.collate import collate, with_advantages
from trainer.credit.advantage_inputs import RewardedRows, refined_rows
from trainer.credit.history import AnswerHistory
from trainer.losses.logprobs import TokenScores
from trainer.metrics import credit_metrics, refine_metrics, step_metrics
from trainer.model.rows import read_rows, score_columns
from trainer.objective import bound_objective, microbatch_loss
from trainer.rollout.dynamic_sampling import asked_for, sampling_metrics
from trainer.step_records import origins_of
from trainer.token_columns import token_columns

CONFIG = RunConfig(
    learner=LearnerConfig(microbatch_tokens=64, updates_per_step=2),
    loss={"policy": {"kind": "ppo_clip"}, "replay": {"kind": "ppo_clip"}, "tempered": {"kind": "nll"}}
    | {"sft": {"kind": "nll"}, "refined": {"kind": "advantage_nll"}},
    refiner={"kind": "rltf_sd"},
    advantage={"kind": "grpo"},
    kl=KLConfig(estimator="k1", coef=0.1, place="reward"),
    reward_shape={
        "long": {"kind": "overlong", "max_tokens": 4, "cache_tokens": 3},
        "modes": {"kind": "mara", "beta": 0.5},
    },
    bonus={"new": {"kind": "ucb"}, "other": {"kind": "batch"}},
    prompt_weight={"value": {"kind": "pass_at_k_value"}},
)


@dataclass(frozen=True, slots=True)
class Told:
    """The credit and weights of a rank's rows."""

    advantages_N: np.ndarray
    bonuses_N: np.ndarray
    row_weights_N: np.ndarray


Groups = list[tuple[str, list[Row]]]


def row(reward: float | None, seed: int = 1) -> Row:
    """Two tokens, the answer 3."""
    return Row(num_tokens=2, seed=seed, reward=reward, answer="3", cut=False, gaps=(0, 0, 0))


def build(groups: Groups, more: list[list[Row]]) -> tuple[pa.Table, pa.Table]:
    """Index and scores of the groups; see `built`."""
    batch, scored = built(groups, more)
    return _index_of(batch), pa.Table.from_batches([score_columns(read_rows(batch, 0.7), scored)])


def built(groups: Groups, more: list[list[Row]]) -> tuple[pa.RecordBatch, dict[str, list[np.ndarray]]]:
    """Rows of the groups, and what a rank scored; policy groups have the rows of `more` as refined ones."""
    batches, flat, number = [], [], 0
    pending = list(more)
    for index, (origin, rows) in enumerate(groups):
        samples = []
        for row in rows:
            samples.append(make_row_sample(f"s{number}", origin, row, None))
            number += 1
        added = pending.pop(0) if origin == "policy" and pending else []
        for place, row in enumerate(added):
            sample = make_row_sample(f"r{index}.{place}", "refined", row, None)
            critique = Critique(text="wrong", kind="indicative", verdict="wrong", leaked=bool(place % 2))
            leaked = {"critique/leaked": float(place % 2), "critique/mentions": 0.0}
            changes: dict[str, Any] = {"critique": critique, "behavior_prompt_ids": (7, 8), "numbers": leaked}
            samples.append(replace(sample, parent_id=samples[0].completion.sample_id, **changes))
        flat += [*rows, *added]
        batches.append(group_to_batch(make_group(index, tuple(samples)), "run"))
    batch = to_batch(pa.Table.from_batches(batches))
    validate(batch)
    return batch, {name: [_scores(row, name, inserted=False) for row in flat] for name in SCORES}


def measured(
    index: pa.Table, columns: pa.Table, config: RunConfig
) -> tuple[dict[str, float], dict[str, list]]:
    """Metrics of a step, and what its rows of other origins than refined are credited with."""
    run, history = bind(config), AnswerHistory()
    history.add(index.filter(pa.array(origins_of(index) != "refined")).slice(0, 2))
    batch = collate(index, config, run.joins_refined)
    learnable = with_advantages(batch, columns, run, 0, {}, history)
    metrics = step_metrics(batch, columns, 7) | credit_metrics(batch, learnable)
    others = ~refined_rows(origins_of(index))
    credited = {
        name: getattr(learnable, name)[others].tolist()
        for name in ("advantage_N", "bonus_N", "visits_N", "row_weight_N")
    }
    history.add(index)
    return metrics, credited | {"counts": [history.state()], "update_N": batch.update_N[others].tolist()}


@examples(40)
@given(groups=steps(), more=st.lists(st.lists(st.integers(0, 10**6), max_size=3), max_size=3), data=st.data())
def test_refined_rows_change_no_other_number(
    groups: Groups, more: list[list[int]], data: st.DataObject
) -> None:
    """With the policy's baseline: all metrics but refined/* and refine/*, all credit, counts and updates."""
    added = [
        [
            Row(
                num_tokens=1 + seed % 5,
                seed=seed,
                reward=data.draw(st.sampled_from([0.0, 1.0, 0.5, None])),
                answer="9",
                cut=bool(seed % 2),
                gaps=(0,) * (2 + seed % 5),
            )
            for seed in rows
        ]
        for rows in more
    ]
    config = replace(
        CONFIG,
        rollout=RolloutConfig(zero_variance_groups=data.draw(st.sampled_from(["keep", "drop"]))),
    )
    wanted, wanted_credit = measured(*build(groups, []), config)
    found, credit = measured(*build(groups, added), config)
    own = {name: value for name, value in found.items() if not name.startswith(("refined/", "refine/"))}
    assert own == pytest.approx(wanted, rel=1e-12)
    assert credit == wanted_credit
    assert all(map(math.isfinite, found.values()))


def test_rounds_are_planned_from_the_policy_rows() -> None:
    """The step's own groups: 0, 0 and 1, 0. A refined 1 in the first does not make it one that varies."""
    groups: Groups = [("policy", [row(0.0), row(0.0)]), ("policy", [row(1.0), row(0.0)])]
    rollout = RolloutConfig(groups_per_step=2, zero_variance_groups="refill", max_rounds=3)
    index, _ = build(groups, [[row(1.0)]])
    own = index.filter(pa.array(origins_of(index) == "policy"))
    assert asked_for(own, 0, rollout).num_groups == 3
    assert sampling_metrics(own, rollout)["sampling/kept_groups"] == 1.0


def test_by_hand() -> None:
    """What a step leaves out, and the baseline of first turns."""
    refine_cases.check_left_out()
    refine_cases.check_first_turns()


def test_prompt_weights_reach_refined_rows() -> None:
    """The weight of a group is that of its refined rows, too: 0.25 x (1 - 0)."""
    index, columns = build([("policy", [row(0.0), row(0.0)])], [[row(1.0)]])
    config = replace(CONFIG, reward_shape={}, bonus={}, kl=KLConfig(), prompt_weight={})
    weighted = replace(
        config, prompt_weight={"w": {"kind": "test_refined_rows:quarter"}}, allow=("test_refined_rows",)
    )
    found = []
    for each in (config, weighted):
        run = bind(each)
        found.append(with_advantages(collate(index, each, False), columns, run, 0).advantage_N.tolist())
    assert found == [[0.0, 0.0, 1.0], [0.0, 0.0, 0.25]]


def test_a_failed_group_that_is_dropped_still_is_a_baseline() -> None:
    """Rewards 0, 0 are left out of the step; the refined 1 of their group has 1 - 0, and is learned alone."""
    index, columns = build([("policy", [row(0.0), row(0.0)])], [[row(1.0)]])
    config = replace(CONFIG, reward_shape={}, bonus={}, kl=KLConfig(), prompt_weight={})
    config = replace(config, rollout=RolloutConfig(zero_variance_groups="drop"))
    found = with_advantages(collate(index, config, False), columns, bind(config), 0)
    assert found.advantage_N.tolist() == [0.0, 0.0, 1.0]
    assert found.row_weight_N.tolist() == [0.0, 0.0, 0.5]


def quarter(rows: RewardedRows, options: object) -> np.ndarray:
    """A prompt weight."""
    return np.full(len(rows), 0.25)


def test_metrics_of_refined_rows_by_hand() -> None:
    """Groups 0 0 (fixed), 0 0 (not), 1 0 (was right), 0 null (unknown): one of two failed ones is fixed."""
    rewards: list[tuple[float | None, float | None]] = [(0.0, 0.0), (0.0, 0.0), (1.0, 0.0), (0.0, None)]
    groups: Groups = [("policy", [row(a), row(b)]) for a, b in rewards]
    index, _ = build(groups, [[row(0.0), row(1.0)], [row(0.0)], [row(1.0)]])
    found = refine_metrics(collate(index, CONFIG))
    assert found == {
        "refine/rows": 4.0,
        "refine/kept": 4.0,
        "refine/fixed_share": 0.5,
        "refine/leaked_share": 0.25,
        "refine/mention_share": 0.0,
    }
    assert refine_metrics(collate(index, CONFIG), threshold=1.5)["refine/fixed_share"] == 0.0
    assert refine_metrics(collate(build(groups, [])[0], CONFIG)) == {}


def test_replayed_rows_are_not_counted_as_refined_again() -> None:
    """A row keeps the numbers of the step that tried to refine it, also where a later step replays it."""
    index, _ = build([("policy", [row(0.0)]), ("replay", [row(0.0)])], [[row(1.0)]])
    tried = [("critique/tried", 1.0), ("critique/no_room", 1.0)]
    rows = [tried if origin != "refined" else [] for origin in origins_of(index)]
    place = index.schema.get_field_index("numbers")
    index = index.set_column(place, "numbers", pa.array(rows, index.schema.field("numbers").type))
    assert refine_metrics(collate(index, CONFIG)) == {
        "refine/rows": 1.0,
        "refine/kept": 1.0,
        "refine/no_room": 1.0,
        "refine/fixed_share": 1.0,
    }


def test_the_gradient_of_refined_rows_by_hand() -> None:
    """Rewards 0, 0 and a refined 1 of two tokens each, joined: advantages -1/3, -1/3, 2/3.

    Policy tokens weigh 1/4 each, refined ones 1/2. With gamma 0.1 a refined token of probability p has the
    gradient -1/2 x 2/3 x 0.1 p / (p + 0.1)^2; policy tokens, whose ratio is 1, have 1/4 x 1/3, as they have
    without the loss of refined rows. Anchors and entropy bonus act on policy tokens alone.
    """
    config = RunConfig(
        loss={"policy": {"kind": "ppo_clip"}, "refined": {"kind": "shaped", "gamma": 0.1}},
        refiner={"kind": "critique_grpo"},
        advantage={"kind": "dr_grpo"},
    )
    batch, scored = built([("policy", [row(0.0, 1), row(0.0, 2)])], [[row(1.0, 3)]])
    rank = read_rows(batch, 1.0)
    index, columns = _index_of(batch), pa.Table.from_batches([score_columns(rank, scored)])
    learnable = with_advantages(collate(index, config), columns, bind(config), 0)
    told = Told(learnable.advantage_N, learnable.bonus_N, learnable.row_weight_N)
    tokens = token_columns(rank, scored, told, range(3), {}, torch.device("cpu"))
    logprobs = torch.from_numpy(np.concatenate(scored["proximal_logprobs"])).requires_grad_()
    entropy = torch.zeros_like(logprobs)
    total, sums = microbatch_loss(
        TokenScores(logprobs, *[entropy] * 3), tokens, bound_objective(bind(config))
    )
    total.backward()
    p = np.exp(np.concatenate(scored["proximal_logprobs"])[4:].astype(np.float64))
    wanted = [1 / 12] * 4 + (-0.5 * 2 / 3 * 0.1 * p / (p + 0.1) ** 2).tolist()
    assert logprobs.grad is not None and logprobs.grad.tolist() == pytest.approx(wanted, rel=1e-5)
    assert sums["tokens/policy"] == 4.0 and sums["tokens/refined"] == 2.0
