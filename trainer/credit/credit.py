"""From a step's rewards to each row's advantage and bonus. Called by `trainer.collate`.

rewards -> reward shapes, in order -> KL terms of place reward -> advantage -> bonuses -> prompt weights. All
but the KL terms are kinds that the config chooses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from configs.bound import BoundRun
from configs.origins import POLICY
from configs.schema import KLConfig
from trainer.credit.advantage_inputs import RewardedRows, group_sums, refined_rows
from trainer.credit.history import AnswerHistory
from trainer.loss_tokens import loss_values, masked_sum, sum_by_row

ANCHOR_COLUMNS: Final = {"kl": "ref_logprobs", "kl_base": "base_logprobs"}
"""The learner's column of each KL anchor, by its section of the config."""
CREDIT_SECTIONS: Final = ("reward_shape", "bonus", "prompt_weight")
"""Config sections whose settings are used here and not in the objective."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """Advantage and bonus of every row of a batch, [N] each."""

    advantage_N: np.ndarray
    """float64, 0 for rows without a reward."""
    bonus_N: np.ndarray
    """float64, added to the advantage of every token outside the row's answer."""
    has_reward_N: np.ndarray
    """bool: whether the row still has a reward after reward shaping."""
    visits_N: np.ndarray
    """int64, earlier samples of the row's prompt with its answer."""


def credit(
    index: pa.Table,
    group_N: np.ndarray,
    reward_N: np.ndarray,
    columns: pa.Table,
    run: BoundRun,
    history: AnswerHistory,
) -> Credit:
    """The credit of every row of `index`.

    Args:
        index: the buffer's table, N rows.
        group_N: the row's group; a replayed row belongs to the group it was sampled with.
        reward_N: float64, NaN where the reward is null.
        columns: the learner's scores in the row order of `index`.
        run: the run with the values that controllers set for this step.
        history: what earlier steps sampled.

    Only rows of origin policy get bonuses. Refined rows that do not join their group's baseline
    (`BoundRun.joins_refined`) change nothing for the other rows. The KL term of a replayed row uses the
    current policy, not its sampler: the log-ratio of a given sequence needs no sampling.
    """
    every = _all_rows(index, group_N, reward_N, columns, history)
    rewarded = every.only(np.isfinite(reward_N))
    apart = refined_rows(rewarded.origin_N) & (not run.joins_refined)
    # After the shapes, whose thresholds are about the task's reward, not about the KL.
    rows = _less_kl(_shaped(rewarded.only(~apart), run), columns, run)
    advantage, bonus, factor = _advantage_and_bonus(rows, run)
    advantage_N = _spread(advantage, rows.row_N, len(reward_N))
    has_reward_N = _spread(np.ones(len(rows)), rows.row_N, len(reward_N)) > 0
    row_N = rewarded.row_N[apart]
    factors = _of_groups(rewarded.group_N[apart], rows.group_N, factor, 1.0)
    advantage_N[row_N] = refined_advantage(rewarded.only(apart), _as_scored(every, index)) * factors
    has_reward_N[row_N] = True
    return Credit(
        advantage_N=advantage_N,
        bonus_N=_spread(bonus, rows.row_N, len(reward_N)),
        has_reward_N=has_reward_N,
        visits_N=every.visits_N,
    )


def _as_scored(every: RewardedRows, index: pa.Table) -> RewardedRows:
    """The rows with the rewards of their scorers, those that the step leaves out as well."""
    reward_N = index.column("reward").cast(pa.float64()).fill_null(float("nan")).to_numpy()
    return every.with_rewards(reward_N)


def _shaped(rows: RewardedRows, run: BoundRun) -> RewardedRows:
    """The rows after all reward shapes, in order."""
    # A user's own function is never called with 0 rows: a mean or maximum over them would fail.
    for shape in run.named["reward_shape"].values():
        rows = rows.with_rewards(shape.function()(rows, shape.options)) if len(rows) else rows
    return rows


def refined_advantage(refined: RewardedRows, everyone: RewardedRows) -> np.ndarray:
    """A = r - mean_j(r_j), the mean over the rewarded policy rows of the row's group; float64 [N]

    The baseline of first turns in RLTF-SD, arXiv 2602.02482. `everyone` are all rows with a reward. Rewards
    are the scorers' own, before reward shapes and KL terms. 0 in a group without a rewarded policy row.
    """
    own = everyone.only(everyone.origin_N == POLICY)
    sums, sizes = group_sums(own.rewards_N, own.group_N)
    baseline = _of_groups(refined.group_N, own.group_N, sums / np.maximum(sizes, 1), np.nan)
    return np.where(np.isnan(baseline), 0.0, refined.rewards_N - baseline)


def _of_groups(
    wanted_N: np.ndarray, group_N: np.ndarray, values_N: np.ndarray, otherwise: float
) -> np.ndarray:
    """Each wanted group's value, float64: `values_N` are equal within a group of `group_N`."""
    found = dict(zip(group_N.tolist(), values_N.tolist(), strict=True))
    return np.array([found.get(group, otherwise) for group in wanted_N.tolist()], np.float64)


def _advantage_and_bonus(rows: RewardedRows, run: BoundRun) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Advantage and bonus of the rewarded rows, with the prompt weights, and those; float64 [N] each."""
    advantage, bonus, factors = np.zeros(len(rows)), np.zeros(len(rows)), np.ones(len(rows))
    if len(rows):
        advantage = run.advantage.function()(rows, run.advantage.options)
    own = np.flatnonzero(rows.origin_N == POLICY)
    for entry in run.named["bonus"].values():
        bonus[own] += entry.function()(rows.only(own), entry.options) if len(own) else 0.0
    for weight in run.named["prompt_weight"].values():
        factor = weight.function()(rows, weight.options) if len(rows) else np.ones(0)
        factors = factors * factor
        advantage, bonus = advantage * factor, bonus * factor
    return advantage, bonus, factors


def _spread(values: np.ndarray, row_N: np.ndarray, num_rows: int) -> np.ndarray:
    """float64 [num_rows]: `values` at the indexes `row_N`, 0 elsewhere."""
    spread = np.zeros(num_rows)
    spread[row_N] = values
    return spread


def _all_rows(
    index: pa.Table, group_N: np.ndarray, reward_N: np.ndarray, columns: pa.Table, history: AnswerHistory
) -> RewardedRows:
    """Every row of the batch, also those without a reward (NaN)."""

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
        ref_logprob_N=_logprobs(columns, "ref_logprobs", len(reward_N)),
        logprob_N=_logprobs(columns, "proximal_logprobs", len(reward_N)),
        partition_N=index.column("partition_id").cast(pa.int64()).fill_null(-1).to_numpy(),
        scores_N=_mappings(index, "scores"),
        numbers_N=_mappings(index, "numbers"),
        tags_N=_mappings(index, "tags"),
        tag_visits_N=before.tag_visits_N,
        visits_N=before.visits_N,
        successes_N=before.successes_N,
        failures_N=before.failures_N,
    )


def _mappings(index: pa.Table, name: str) -> np.ndarray:
    """A map column as dicts, object [N]; empty where it is null, or the index has no such column."""
    rows = np.empty(index.num_rows, dtype=object)
    if name not in index.column_names:
        rows[:] = [{} for _ in range(index.num_rows)]
        return rows
    rows[:] = [dict(pairs or ()) for pairs in index.column(name).to_pylist()]
    return rows


def _logprobs(columns: pa.Table, name: str, num_rows: int) -> np.ndarray:
    """Sum of the column `name` over each row's loss tokens, float64 [N]; NaN where it was not computed."""
    if name not in columns.column_names:
        return np.full(num_rows, np.nan)
    return masked_sum(columns, name)


def _less_kl(rows: RewardedRows, columns: pa.Table, run: BoundRun) -> RewardedRows:
    """Subtract coef times k1, summed over the row's loss tokens, for each KL anchor of place reward."""
    for section, column in ANCHOR_COLUMNS.items():
        anchor: KLConfig = getattr(run.config, section)
        if anchor.coef > 0 and anchor.place == "reward":
            policy, reference = (loss_values(columns, name) for name in ("proximal_logprobs", column))
            log_ratio = sum_by_row(columns, policy - reference)
            rows = rows.with_rewards(rows.rewards_N - anchor.coef * log_ratio[rows.row_N])
    return rows
