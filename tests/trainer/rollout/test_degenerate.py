"""Zero-variance groups through the whole chain, from rewards to the objective's gradient, for every method.

All equal, all failed, one rewarded row, empty and one-token completions, null and NaN rewards, refined rows
only: zeros, or no weight, and never NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from matrices import quick_of

from configs.bound import BoundRun, bind
from configs.errors import ConfigError
from configs.kinds.advantages import ADVANTAGES
from configs.kinds.base import load_target
from configs.kinds.losses import LOSSES
from configs.load import load_config
from configs.schema import RunConfig
from rollouts.columns import SCORE_MAP, SPANS
from trainer.collate import collate, with_advantages
from trainer.losses.batch_statistics import TokenTable, prepare_origin
from trainer.losses.logprobs import TokenScores
from trainer.objective import BoundLoss, Objective, TokenColumns, bound_losses, microbatch_loss
from trainer.step_records import Learnable
from trainer.token_advantages.transforms import bound_transforms, prepare_transforms

torch.set_num_threads(1)
EXTRAS = (
    *("kl.coef=0.1", "kl_base.coef=0.1", "entropy.coef=0.01", "learner.updates_per_step=2"),
    *("bonus.con={kind: ucb_con}", "bonus.same={kind: batch}", "prompt_weight.w={kind: pass_at_k_value}"),
    *(
        "reward_shape.long={kind: overlong}",
        "token_advantage.push={kind: repo_r}",
        "token_advantage.swing={kind: entropy_quadrants}",
    ),
)
"""What is on beside the loss and the advantage; what a loss or an advantage refuses is left out."""


@dataclass(frozen=True)
class Row:
    origin: str
    reward: float | None
    num_tokens: int
    answer: str | None


def rows() -> st.SearchStrategy[list[list[Row]]]:
    """Groups of 1 to 4 rows; many have zero variance in one way or another."""
    reward = st.sampled_from([None, float("nan"), 0.0, 1.0, 1.0, 0.5])
    row = st.builds(
        Row,
        st.sampled_from(["policy", "policy", "refined"]),
        reward,
        st.integers(0, 3),
        st.sampled_from([None, "7"]),
    )
    same = st.builds(lambda one, size: [one] * size, row, st.integers(1, 4))
    return st.lists(st.lists(row, min_size=1, max_size=4) | same, min_size=1, max_size=3)


@lru_cache
def config_of(loss: str, advantage: str) -> RunConfig:
    """The debug preset with both methods and as many of the extras as they allow."""
    taken = [
        f"loss.policy={{kind: {loss}}}",
        f"advantage={{kind: {advantage}}}",
        "learner.updates_per_step=2",
    ]
    for extra in EXTRAS:
        try:
            load_config("debug", [*taken, extra])
            taken.append(extra)
        except ConfigError:
            continue
    return load_config("debug", taken)


def index_of(groups: Sequence[Sequence[Row]]) -> pa.Table:
    flat = [(number, row) for number, group in enumerate(groups) for row in group]
    counts = [row.num_tokens for _, row in flat]
    return pa.table(
        {
            "submission_index": pa.array([number for number, _ in flat], pa.int64()),
            "sample_id": [f"s{number:02d}" for number in range(len(flat))],
            "prompt_id": [f"p{number}" for number, _ in flat],
            "origin": [row.origin for _, row in flat],
            "reward": pa.array([row.reward for _, row in flat], pa.float64()),
            "answer": pa.array([row.answer for _, row in flat], pa.string()),
            "answer_ok": pa.array(
                [None if row.answer is None else row.reward == 1.0 for _, row in flat], pa.bool_()
            ),
            "finish_reason": ["stop" if count < 3 else "length" for count in counts],
            "spans": pa.array([[]] * len(flat), SPANS),
            "scores": pa.array([[]] * len(flat), SCORE_MAP),
            "numbers": pa.nulls(len(flat), SCORE_MAP),
            "partition_id": pa.nulls(len(flat), pa.int32()),
            "num_prompt_tokens": [2] * len(flat),
            "num_tokens": counts,
            "num_loss_tokens": counts,
        }
    )


def scores_of(index: pa.Table, rng: np.random.Generator) -> pa.Table:
    """The learner's columns: logprobs at random."""
    counts = index.column("num_tokens").to_pylist()
    floats = pa.list_(pa.float32())
    names = ("proximal_logprobs", "ref_logprobs", "base_logprobs", "entropy")
    lists = {name: pa.array([-rng.random(count) * 3 for count in counts], floats) for name in names}
    return pa.table({"loss_mask": [[True] * count for count in counts], **lists})


def flat(columns: pa.Table, name: str) -> np.ndarray:
    return np.array([value for row in columns.column(name).to_pylist() for value in row], np.float32)


def loss_of(
    index: pa.Table, columns: pa.Table, learnable: Learnable, config: RunConfig, rng: np.random.Generator
) -> tuple[float, torch.Tensor, dict[str, float]]:
    """The objective of all rows as one microbatch: its value, the gradient by logprob, the sums."""
    counts = index.column("num_tokens").to_numpy()
    origins = np.repeat(np.array(index.column("origin").to_pylist(), dtype=np.str_), counts)
    total = int(counts.sum())
    proximal = flat(columns, "proximal_logprobs")
    advantages = np.repeat(learnable.advantage_N + learnable.bonus_N, counts)
    table: TokenTable = {
        "sample_id": np.repeat(np.array(index.column("sample_id").to_pylist(), dtype=np.str_), counts),
        "position": np.concatenate([np.arange(count) for count in counts]).astype(np.int64),
        "token_ids": np.zeros(total, np.int64),
        "origin": origins,
        "weight": np.repeat(learnable.row_weight_N, counts),
        "advantage": advantages,
        "behavior_logprobs": proximal,
        "proximal_logprobs": proximal,
        "policy_logprobs": proximal,
        "policy_entropy": flat(columns, "entropy"),
        "entropy": flat(columns, "entropy"),
        "draw": rng.random(total),
    }
    losses = bound_losses(bind(config))
    objective = Objective(
        losses=losses,
        anchors={"kl": config.kl, "kl_base": config.kl_base},
        entropy_coef=config.entropy.coef,
        transforms=bound_transforms(bind(config)),
    )
    prepared = {
        name: found.columns
        for name, found in prepare_transforms(table, objective.transforms, lambda t: [t]).items()
    }
    for origin, loss in losses.items():
        if loss.kind.prepare:
            prepared[origin] = prepare_origin(table, origin, lambda t: [t], partial(_prepare, loss)).columns

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32))

    logprobs = (tensor(proximal) + tensor(rng.normal(0, 0.3, total))).requires_grad_()
    found, sums = microbatch_loss(
        TokenScores(logprobs, *[tensor(flat(columns, "entropy"))] * 3),
        TokenColumns(
            proximal_logprobs=tensor(proximal),
            behavior_logprobs=tensor(proximal),
            anchor_logprobs={
                "kl": tensor(flat(columns, "ref_logprobs")),
                "kl_base": tensor(flat(columns, "base_logprobs")),
            },
            advantages=tensor(advantages),
            weights=tensor(table["weight"]),
            rows=torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
            origins={name: torch.from_numpy(origins == name) for name in set(origins.tolist())},
            token_ids=torch.from_numpy(table["token_ids"]),
            positions=torch.from_numpy(table["position"]),
            prepared={
                name: {key: torch.from_numpy(values) for key, values in columns.items()}
                for name, columns in prepared.items()
            },
        ),
        objective,
    )
    found.backward()
    assert logprobs.grad is not None
    return found.item(), logprobs.grad, sums


def _prepare(loss: BoundLoss, columns: TokenTable) -> Any:
    return load_target(loss.kind.prepare)(columns, loss.options)


CONFIGS = {
    **{
        f"{loss} with grpo": (loss, "grpo")
        for loss, kind in LOSSES.items()
        if not (kind.supervised or kind.taught)
    },
    **{f"ppo_clip with {advantage}": ("ppo_clip", advantage) for advantage in ADVANTAGES},
}


QUICK = [f"{loss} with grpo" for loss in ("ppo_clip", "gspo", "gppo", "kl_cov")]
QUICK += [f"ppo_clip with {advantage}" for advantage in ("reinforce_pp", "pass_at_k")]
"""One loss per form of ratio, and the advantages that divide."""


@pytest.mark.parametrize("name", quick_of(list(CONFIGS), QUICK))
@examples(20)
@given(groups=rows(), seed=st.integers(0, 2**16))
def test_zeros_or_no_weight_and_never_nan(name: str, groups: list[list[Row]], seed: int) -> None:
    config, rng = config_of(*CONFIGS[name]), np.random.default_rng(seed)
    index = index_of(groups)
    columns = scores_of(index, rng)
    batch = collate(index, config)
    learnable = with_advantages(batch, columns, bind(config), 0)
    is_policy = np.array([row.origin == "policy" for group in groups for row in group])
    given_N = np.isfinite(batch.reward_N) & is_policy
    for values in (learnable.advantage_N, learnable.bonus_N, learnable.row_weight_N):
        assert np.isfinite(values).all()
        assert not values[~np.isfinite(batch.reward_N)].any(), (
            "a row without a reward has neither credit nor weight"
        )
    value, gradient, sums = loss_of(index, columns, learnable, config, rng)
    assert np.isfinite(value) and torch.isfinite(gradient).all() and np.isfinite(list(sums.values())).all()
    counts = index.column("num_tokens").to_numpy()
    assert not gradient[torch.from_numpy(np.repeat(~given_N, counts))].any(), (
        "only rewarded policy rows are learned"
    )


@lru_cache
def bound_of(advantage: str) -> BoundRun:
    """The debug preset with this advantage."""
    return bind(load_config("debug", [f"advantage={{kind: {advantage}}}"]))


@pytest.mark.parametrize(
    "advantage", [name for name in ADVANTAGES if name not in ("reinforce", "w_reinforce", "reinforce_pp")]
)
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_equal_rewards_have_no_advantage(advantage: str, reward: float, size: int) -> None:
    """Every group baseline gives zeros for a group of equal rewards, rounding included."""
    bound = bound_of(advantage)
    index = index_of([[Row("policy", reward, 2, None)] * size])
    columns = scores_of(index, np.random.default_rng(0))
    assert not with_advantages(collate(index, bound.config), columns, bound, 0).advantage_N.any()
