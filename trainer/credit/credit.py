"""From a step's rewards to what every row is credited with: an advantage, and a bonus beside it.

rewards -> reward shapes, in order -> KL terms of place reward -> advantage -> bonuses -> prompt weights. Each
of them is a kind that a config names; called by `trainer.collate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from configs.bound import BoundRun
from configs.origins import POLICY
from configs.schema import KLConfig
from trainer.credit.advantage_inputs import RewardedRows
from trainer.credit.history import AnswerHistory
from trainer.loss_tokens import loss_values, masked_sum, sum_by_row

ANCHOR_COLUMNS: Final = {"kl": "ref_logprobs", "kl_base": "base_logprobs"}
"""The learner's column of each KL anchor, by its section of the config."""
MOVED_HERE: Final = ("reward_shape", "bonus", "prompt_weight")
"""Sections whose settings act here and not in the objective."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """What every row of a batch gets, [N] each."""

    advantage_N: np.ndarray
    """float64, 0 for rows without a reward."""
    bonus_N: np.ndarray
    """float64, added to the advantage of every token outside the row's answer."""
    has_reward_N: np.ndarray
    """bool: whether it still has one behind the reward shapes."""
    visits_N: np.ndarray
    """int64, samples of the row's prompt with its answer in earlier steps."""


def credit(
    index: pa.Table,
    group_N: np.ndarray,
    reward_N: np.ndarray,
    columns: pa.Table,
    run: BoundRun,
    history: AnswerHistory,
) -> Credit:
    """The credit of every row of `index`; `reward_N` is NaN where the reward is null.

    A replayed row is compared with the siblings it was sampled with. A KL term in its reward is of the policy
    as it is now, not as it was when the row was sampled: the log-ratio of a given sequence needs no sampling.
    Bonuses are of rows of origin policy alone. `columns` are the learner's scores in the index's row order,
    `run` is the run as controllers want it in this step, `history` what came before it.
    """
    rows = _all_rows(index, group_N, reward_N, columns, history)
    visits = rows.visits_N
    rows = rows.only(np.isfinite(reward_N))
    for shape in run.named["reward_shape"].values():
        rows = rows.with_rewards(shape.function()(rows, shape.options)) if len(rows) else rows
    rows = _less_kl(rows, columns, run)
    advantage, bonus = np.zeros(len(rows)), np.zeros(len(rows))
    if len(rows):
        advantage = run.advantage.function()(rows, run.advantage.options)
    own = np.flatnonzero(rows.origin_N == POLICY)
    for given in run.named["bonus"].values():
        bonus[own] += given.function()(rows.only(own), given.options) if len(own) else 0.0
    for weight in run.named["prompt_weight"].values():
        factor = weight.function()(rows, weight.options) if len(rows) else np.ones(0)
        advantage, bonus = advantage * factor, bonus * factor
    return Credit(
        advantage_N=_spread(advantage, rows.row_N, len(reward_N)),
        bonus_N=_spread(bonus, rows.row_N, len(reward_N)),
        has_reward_N=_spread(np.ones(len(rows)), rows.row_N, len(reward_N)) > 0,
        visits_N=visits,
    )


def _spread(values: np.ndarray, row_N: np.ndarray, num_rows: int) -> np.ndarray:
    """`values` at their rows' numbers, 0 elsewhere."""
    spread = np.zeros(num_rows)
    spread[row_N] = values
    return spread


def _all_rows(
    index: pa.Table, group_N: np.ndarray, reward_N: np.ndarray, columns: pa.Table, history: AnswerHistory
) -> RewardedRows:
    """Every row of the batch, those without a reward too (NaN)."""

    def objects(name: str) -> np.ndarray:
        return np.array(index.column(name).to_pylist(), dtype=object)

    before = history.before(index)
    return RewardedRows(
        row_N=np.arange(len(reward_N)),
        rewards_N=reward_N,
        group_N=group_N,
        origin_N=objects("origin"),
        prompt_id_N=objects("prompt_id"),
        answer_N=objects("answer"),
        answer_ok_N=objects("answer_ok"),
        num_tokens_N=index.column("num_loss_tokens").to_numpy(),
        finish_reason_N=objects("finish_reason"),
        ref_logprob_N=_reference_logprobs(columns, len(reward_N)),
        visits_N=before.visits_N,
        successes_N=before.successes_N,
        failures_N=before.failures_N,
    )


def _reference_logprobs(columns: pa.Table, num_rows: int) -> np.ndarray:
    """The logprob of each row's loss tokens under the reference, float64 [N]; NaN where it was not scored."""
    if "ref_logprobs" not in columns.column_names:
        return np.full(num_rows, np.nan)
    return masked_sum(columns, "ref_logprobs")


def _less_kl(rows: RewardedRows, columns: pa.Table, run: BoundRun) -> RewardedRows:
    """The rewards less coef times the log-ratio (k1) of each row's loss tokens to anchors of place reward."""
    for section, column in ANCHOR_COLUMNS.items():
        anchor: KLConfig = getattr(run.config, section)
        if anchor.coef > 0 and anchor.place == "reward":
            policy, held_to = (loss_values(columns, name) for name in ("proximal_logprobs", column))
            log_ratio = sum_by_row(columns, policy - held_to)
            rows = rows.with_rewards(rows.rewards_N - anchor.coef * log_ratio[rows.row_N])
    return rows
