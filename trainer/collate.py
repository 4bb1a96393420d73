"""From the buffer's index of a step to the learner's input: a plan, then credit and row weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.bound import BoundRun
from configs.origins import ORIGINS, POLICY, parts
from configs.schema import RunConfig
from trainer.controllers.schedule import learning_rate
from trainer.credit.advantage_inputs import refined_rows
from trainer.credit.credit import CREDIT_SECTIONS, credit
from trainer.credit.history import AnswerHistory
from trainer.losses.normalize import row_weights
from trainer.model.batch_plan import plan_batch
from trainer.model.rows import answer_masks, token_advantages
from trainer.rollout.dynamic_sampling import left_out_rows
from trainer.rollout.tempered import positive_tempered_rows
from trainer.step_records import Batch, Learnable, origins_of


def collate(index: pa.Table, config: RunConfig, joins_refined: bool = True) -> Batch:
    """Number the groups, distribute them over the step's updates, and plan ranks and microbatches.

    `joins_refined` as `BoundRun.joins_refined`.
    """
    learner = config.learner
    submissions = index.column("submission_index").to_numpy()
    reward = index.column("reward").cast(pa.float64()).fill_null(float("nan")).to_numpy()
    origins = origins_of(index)
    group_N = _number_groups(submissions, origins)
    left_out_N = left_out_rows(reward, group_N, origins, config.rollout, joins_refined)
    update_N = _spread_groups(group_N, origins, left_out_N, learner.updates_per_step, joins_refined)
    lengths = index.column("num_prompt_tokens").to_numpy() + index.column("num_tokens").to_numpy()
    plan = plan_batch(
        lengths, update_N, learner.updates_per_step, learner.num_ranks, learner.microbatch_tokens
    )
    return Batch(index=index, plan=plan, group_N=group_N, update_N=update_N, reward_N=reward)


def _parts(origin_N: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rows whose groups are numbered and distributed together, bool [N] each, in the order of ORIGINS."""
    return tuple(np.isin(origin_N, part) for part in parts())


def _number_groups(submission_N: np.ndarray, origin_N: np.ndarray) -> np.ndarray:
    """Each row's group, [N] from 0: the step's own in order of submission, then replay, tempered, sft."""
    group_N, num_groups = np.zeros(len(submission_N), np.int64), 0
    for part in _parts(origin_N):
        submissions, number = np.unique(submission_N[part], return_inverse=True)
        group_N[part] = num_groups + number
        num_groups += len(submissions)
    return group_N


def _spread_groups(
    group_N: np.ndarray,
    origin_N: np.ndarray,
    left_out_N: np.ndarray,
    num_updates: int,
    joins_refined: bool = True,
) -> np.ndarray:
    """Each row's update, [N] from 0: groups are distributed evenly, separately for each part of the origins.

    Within a part, groups that are learned from and groups that are left out are distributed separately too,
    and so are refined rows that are not compared with their group.
    """
    update_N = np.zeros(len(group_N), np.int64)
    apart = np.zeros(len(group_N), bool) if joins_refined else refined_rows(origin_N)
    # Separately, because replay has older submissions: it would otherwise all be in the first update.
    for part in (each for whole in _parts(origin_N) for each in (whole & ~apart, whole & apart)):
        # Otherwise an update could get only groups that are left out, and have nothing to learn from.
        for chosen in (part & ~left_out_N, part & left_out_N):
            groups, number = np.unique(group_N[chosen], return_inverse=True)
            update_N[chosen] = number * num_updates // max(1, len(groups))
    return update_N


def align(index: pa.Table, columns: pa.Table) -> pa.Table:
    """`columns` in the index's row order, matched by sample_id."""
    position = pc.index_in(index.column("sample_id"), value_set=columns.column("sample_id").combine_chunks())
    return columns.take(position)


def with_advantages(
    batch: Batch,
    columns: pa.Table,
    run: BoundRun,
    step: int,
    settings: Mapping[str, float] | None = None,
    history: AnswerHistory | None = None,
) -> Learnable:
    """The credit of the rows that have a reward, and the weight of every row in its update's loss.

    `columns` are the learner's scores in the row order of the batch's index, `step` is 0-based. `settings`
    are the controllers' values for this step by dotted config key, `history` counts what earlier steps
    sampled.

    Rows of origins that are not learned by their advantage (`OriginSpec.learned`) differ: demonstrations are
    always learned, with an advantage of 0, and tempered rows with a reward above 0 have an advantage of 1.
    Groups that `rollout.zero_variance_groups` leaves out have neither advantage nor weight, whatever a KL
    term in the reward would give them.
    """
    settings, history = settings or {}, history or AnswerHistory()
    config, origins = run.config, origins_of(batch.index)
    learned_how = np.array([ORIGINS[origin].learned for origin in origins], dtype=object)
    left_out = left_out_rows(batch.reward_N, batch.group_N, origins, config.rollout, run.joins_refined)
    # Without a reward these rows are in no baseline, so they change the advantage of no other row.
    rewards = np.where(left_out | (learned_how != "by_advantage"), np.nan, batch.reward_N)
    row_credit = credit(batch.index, batch.group_N, rewards, columns, run.with_settings(settings), history)
    losses = {origin: loss.common for origin, loss in run.losses.items()}
    is_positive = positive_tempered_rows(batch.reward_N, origins)
    learned = row_credit.has_reward_N | is_positive | (learned_how == "always")
    # A row without tokens here gets no weight, and does not count in the mean over rows or tokens.
    tokens = np.where(learned, batch.index.column("num_loss_tokens").to_numpy(), 0)
    return Learnable(
        advantage_N=np.where(is_positive, 1.0, row_credit.advantage_N),
        bonus_N=row_credit.bonus_N,
        visits_N=row_credit.visits_N,
        row_weight_N=row_weights(tokens, origins, batch.update_N, losses, config.rollout.max_tokens),
        learning_rates=(learning_rate(config.learner, step, config.num_steps),)
        * config.learner.updates_per_step,
        settings=_of_objective(settings),
    )


def _of_objective(settings: Mapping[str, float]) -> dict[str, float]:
    """The settings that ranks need: those of the objective. The others act on the credit."""
    return {key: value for key, value in settings.items() if key.split(".")[0] not in CREDIT_SECTIONS}


NOT_COMMITTED: Final = ("loss_mask", "teacher_gain", "mismatch_abs", "mismatch_k3")
"""The learner's columns that are not committed: the mask, which the rows have already, and metrics."""


def learner_columns(batch: Batch, columns: pa.Table, learnable: Learnable) -> pa.Table:
    """The learner's columns and the credit, as they are committed with the rows."""
    kept = columns.drop_columns([name for name in NOT_COMMITTED if name in columns.column_names])
    added = {
        "advantage": pa.array(learnable.advantage_N, from_pandas=True),
        "advantage_with_bonus": _advantages_with_bonus(batch, columns, learnable),
        "visit_count": pa.array(learnable.visits_N, mask=origins_of(batch.index) != POLICY),
        "update_count": pa.array((learnable.row_weight_N > 0).astype("int64")),
    }
    for name, values in added.items():
        kept = kept.append_column(name, values)
    return kept


def _advantages_with_bonus(batch: Batch, columns: pa.Table, learnable: Learnable) -> pa.Array:
    """The column `advantage_with_bonus`: per loss token of rows with a bonus, null elsewhere."""
    has_bonus = learnable.bonus_N != 0
    lists: list[list[float | None] | None] = [None] * len(has_bonus)
    for row in np.flatnonzero(has_bonus).tolist():
        loss_mask = np.array(columns.column("loss_mask")[row].as_py(), np.bool_)
        (answer,) = answer_masks(batch.index.column("spans").slice(row, 1), [len(loss_mask)])
        values = token_advantages(learnable.advantage_N[row], learnable.bonus_N[row], answer)
        lists[row] = [float(value) if kept else None for value, kept in zip(values, loss_mask, strict=True)]
    return pa.array(lists, pa.list_(pa.float32()))
