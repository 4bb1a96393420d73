"""Tokens that no policy sampled change no number, wherever they are in a row and whatever their values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from examples import examples
from hypothesis import given
from masked_rows import Row, Rows, build, make_row_sample, steps

from configs.bound import bind
from configs.kinds.base import load_target
from configs.kinds.losses import LOSSES
from configs.kinds.scorers import LengthOptions
from configs.kinds.token_advantages import TOKEN_ADVANTAGES, HicraOptions
from configs.schema import EntropyConfig, KLConfig, LearnerConfig, RunConfig
from rewards.simple import length
from rollouts.records import Prompt
from trainer.collate import collate, learner_columns, with_advantages
from trainer.credit.history import AnswerHistory
from trainer.losses.batch_statistics import prepare_origin
from trainer.losses.logprobs import TokenScores
from trainer.metrics import credit_metrics, step_metrics
from trainer.objective import bound_objective, microbatch_loss
from trainer.step_records import Learnable
from trainer.token_advantages.planning import mark_planning
from trainer.token_advantages.strategic_ngrams import Grams, write_grams
from trainer.token_advantages.transforms import prepare_transforms
from trainer.token_columns import cut_prepared, token_columns, token_table

torch.set_num_threads(1)
PHYSICAL = ("num_tokens", "spans")
"""Columns of the index that say where tokens stand; microbatches are planned from them."""
CREDIT = RunConfig(
    learner=LearnerConfig(microbatch_tokens=64),
    loss={"policy": {"kind": "ppo_clip"}, "replay": {"kind": "ppo_clip"}, "tempered": {"kind": "nll"}}
    | {"sft": {"kind": "nll"}},
    advantage={"kind": "dr_grpo"},
    kl=KLConfig(estimator="k1", coef=0.1, place="reward"),
    kl_base=KLConfig(estimator="k1", coef=0.2, place="reward"),
    reward_shape={
        "long": {"kind": "overlong", "max_tokens": 4, "cache_tokens": 3},
        "modes": {"kind": "mara", "beta": 0.5},
    },
    bonus={"new": {"kind": "ucb"}, "other": {"kind": "batch"}},
    prompt_weight={"value": {"kind": "pass_at_k_value"}},
)
OPTIONS: dict[str, dict[str, float]] = {
    "clip_cov": {"fraction": 0.5, "lower": -9.0, "upper": 9.0},
    "kl_cov": {"fraction": 0.5},
}
"""So that some of a few tokens are selected."""
TRANSFORMS = [name for name in TOKEN_ADVANTAGES if name != "hicra"]


def credited(rows: Rows, config: RunConfig) -> tuple[Learnable, dict[str, float], pa.Table]:
    """Credit, metrics and committed columns of the rows."""
    batch = collate(rows.index, config)
    learnable = with_advantages(batch, rows.columns, bind(config), 0, {}, AnswerHistory())
    metrics = step_metrics(batch, rows.columns, 7) | credit_metrics(batch, learnable)
    return learnable, metrics, learner_columns(batch, rows.columns, learnable)


@examples(60)
@given(steps())
def test_credit_metrics_and_columns(groups: list[tuple[str, list[Row]]]) -> None:
    """KL in the reward, lengths, MARA, bonuses, row weights, every metric, and the committed columns."""
    plain, padded = build(groups, inserted=False), build(groups, inserted=True)
    assert plain.index.drop_columns(PHYSICAL).equals(padded.index.drop_columns(PHYSICAL))
    wanted, wanted_metrics, wanted_columns = credited(plain, CREDIT)
    found, metrics, columns = credited(padded, CREDIT)
    for name in ("advantage_N", "bonus_N", "visits_N", "row_weight_N"):
        assert getattr(found, name).tolist() == getattr(wanted, name).tolist(), name
    assert metrics == wanted_metrics and all(map(math.isfinite, metrics.values()))
    for name in wanted_columns.column_names:
        expected, got = wanted_columns.column(name).to_pylist(), columns.column(name).to_pylist()
        if pa.types.is_list(wanted_columns.schema.field(name).type):
            got = [at_loss_tokens(row, mask) for row, mask in zip(got, padded.rank.loss_masks, strict=True)]
        assert got == expected, name
    assert "loss_mask" not in columns.column_names, "the row has it already"


def at_loss_tokens(row: list[float | None] | None, mask: np.ndarray) -> list[float | None] | None:
    return None if row is None else [value for value, counts in zip(row, mask, strict=True) if counts]


@dataclass(frozen=True, slots=True)
class Credit:
    """The credit and weights of a rank's rows."""

    advantages_N: np.ndarray
    bonuses_N: np.ndarray
    row_weights_N: np.ndarray


def learned(
    rows: Rows, credit: Credit, config: RunConfig
) -> tuple[float, dict[str, float], list[float], list[float]]:
    """Loss, sums and statistics of one update over all rows; its gradient at loss tokens, and elsewhere."""
    objective, order = bound_objective(bind(config)), range(len(rows.rank))
    scored = rows.scored | {"policy_entropy": rows.scored["entropy"]}
    table = token_table(rows.rank, scored, credit, order, seed=0)
    prepared = prepare_transforms(table, objective.transforms, lambda mine: [mine])
    for origin, loss in objective.losses.items():
        if loss.kind.prepare:
            prepare = partial(load_target(loss.kind.prepare), options=loss.options)
            prepared[origin] = prepare_origin(table, origin, lambda mine: [mine], prepare)
    columns = token_columns(
        rows.rank, rows.scored, credit, order, cut_prepared(prepared, slice(None)), torch.device("cpu")
    )
    logprobs = torch.from_numpy(np.concatenate(rows.scored["policy_logprobs"])).requires_grad_()
    entropy = torch.from_numpy(np.concatenate(rows.scored["entropy"])).requires_grad_()
    # For the loss that has a teacher: two words at each token, and another distribution over them.
    given = torch.nan_to_num(logprobs.detach(), 0.0, 0.0, 0.0)
    support = torch.log_softmax(torch.stack([given, -given], dim=1), dim=1).requires_grad_()
    columns = replace(columns, teacher=torch.log_softmax(torch.zeros(len(given), 2), dim=1))
    total, sums = microbatch_loss(
        TokenScores(logprobs, entropy, entropy, entropy, support), columns, objective
    )
    total.backward()
    assert logprobs.grad is not None and support.grad is not None
    own = torch.zeros(1) if entropy.grad is None else entropy.grad
    gradient = torch.stack([logprobs.grad, own.expand_as(logprobs), *support.grad.T])
    mask = torch.from_numpy(np.concatenate(rows.rank.loss_masks))
    stats = {
        f"{place}/{name}": value for place, each in prepared.items() for name, value in each.stats.items()
    }
    return total.item(), sums | stats, gradient[:, mask].tolist(), gradient[:, ~mask].flatten().tolist()


@pytest.mark.parametrize("kind", LOSSES)
@examples(15)
@given(groups=steps())
def test_losses(kind: str, groups: list[tuple[str, list[Row]]]) -> None:
    """Every loss with every transform, both anchors and the bonus: loss, sums, statistics and gradients."""
    config = replace(
        CREDIT,
        loss=CREDIT.loss | {"policy": {"kind": kind, "aggregate": "sequence_mean"} | OPTIONS.get(kind, {})},
        kl=KLConfig(estimator="k3", coef=0.1),
        kl_base=KLConfig(estimator="k2", coef=0.2),
        entropy=EntropyConfig(coef=0.01, clamp=0.2),
        reward_shape={},
        token_advantage={name: {"kind": name} for name in TRANSFORMS},
    )
    plain, padded = build(groups, inserted=False), build(groups, inserted=True)
    given_N, _, _ = credited(plain, config)
    credit = Credit(given_N.advantage_N, given_N.bonus_N, given_N.row_weight_N)
    wanted, found = learned(plain, credit, config), learned(padded, credit, config)
    assert found[:3] == wanted[:3] and math.isfinite(found[0])
    assert not any(found[3]), "no gradient at inserted tokens"


@given(steps())
def test_the_length_scorer_counts_sampled_tokens(groups: list[tuple[str, list[Row]]]) -> None:
    """Between 0 and 6 tokens, linear."""
    prompt = Prompt(prompt_id="p", messages=(), answer=None, domain="math")
    for row in (row for _, rows in groups for row in rows):
        both = [make_row_sample("s", "policy", row, gaps).completion for gaps in (None, row.gaps)]
        first, second = length(prompt, both, LengthOptions(target_tokens=0, max_tokens=6))
        assert first == second and first.score == pytest.approx(1 - row.num_tokens / 6)


def test_a_phrase_is_of_tokens_that_follow_one_another(tmp_path: Path) -> None:
    """Tokens inserted around an n-gram change nothing; inside it they break it, as in mining."""
    path = tmp_path / "grams.json"
    write_grams(path, Grams(documents={(1, 2, 3): 2}, num_documents=2, sources=()))
    found = {}
    for name, positions in {"plain": [0, 1, 2, 3], "around": [2, 3, 4, 9], "inside": [0, 1, 5, 6]}.items():
        table = {
            "sample_id": np.array(["s"] * 4),
            "position": np.array(positions),
            "token_ids": np.array([1, 2, 3, 7]),
            "entropy": np.ones(4),
            "draw": np.zeros(4),
        }
        found[name] = mark_planning(table, HicraOptions(path=str(path))).columns["planning"].tolist()
    assert found["plain"] == found["around"] == [True, True, True, False]
    assert not any(found["inside"])
