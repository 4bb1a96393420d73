"""A rank's shard of rollout rows as numpy, and the Arrow columns it returns. Used by learner ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from configs.origins import origins_where

TEACHER_COLUMNS: Final = ("teacher_kl", "teacher_gain")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRows:
    """N rows in shard order. Token columns have one array per row, over the completion's tokens."""

    sample_ids: list[str]
    origins: np.ndarray
    prompts: list[np.ndarray]
    tokens: list[np.ndarray]
    loss_masks: list[np.ndarray]
    answer_masks: list[np.ndarray]
    """True at the tokens of the answer, if a scorer reported its span."""
    behavior_logprobs: list[np.ndarray]
    teacher_prompts: list[np.ndarray]
    """The prompt under which a teacher scores the row; empty for rows that are not taught."""
    temperature_N: np.ndarray
    """The temperature that the learner scores the row at."""

    def __len__(self) -> int:
        return len(self.sample_ids)


def _split(column: pa.ListArray, dtype: type) -> list[np.ndarray]:
    """One array per row of a list column; null rows are empty, null floats NaN."""
    flat = column.flatten()
    values = flat.fill_null(float("nan")) if pa.types.is_floating(flat.type) else flat
    lengths = column.value_lengths().fill_null(0).to_numpy()
    return np.split(values.to_numpy(zero_copy_only=False).astype(dtype), np.cumsum(lengths)[:-1])


def read_rows(batch: pa.RecordBatch, training_temperature: float | None = None) -> RankRows:
    """Rows of a GROUP_SCHEMA batch; null logprobs (masked tokens, sft rows) become NaN.

    A row is scored at the temperature it was sampled at. Tempered rows are scored at `training_temperature`
    if it is given: their gradient comes from the difference between the two temperatures.
    """
    origins = np.array(batch.column("origin").to_pylist(), dtype=object)
    temperature = batch.column("temperature").to_numpy(zero_copy_only=False).astype(np.float32)
    if training_temperature is not None:
        moved = origins_where(lambda spec: spec.at_training_temperature)
        temperature = np.where(np.isin(origins, moved), np.float32(training_temperature), temperature)
    # `np.split` of nothing returns one empty part, where no row needs none.
    tokens = _split(batch.column("token_ids"), np.int64) if len(batch) else []
    behavior = _split(batch.column("behavior_logprobs"), np.float32) if len(batch) else []
    filled = [
        # A null row (a demonstration) has no logprobs at all.
        logprobs if len(logprobs) == len(ids) else np.full(len(ids), np.nan, np.float32)
        for logprobs, ids in zip(behavior, tokens, strict=True)
    ]
    return RankRows(
        sample_ids=batch.column("sample_id").to_pylist(),
        origins=origins,
        prompts=_split(batch.column("prompt_ids"), np.int64) if len(batch) else [],
        tokens=tokens,
        loss_masks=_split(batch.column("loss_mask"), np.bool_) if len(batch) else [],
        answer_masks=answer_masks(batch.column("spans"), [len(ids) for ids in tokens]),
        behavior_logprobs=filled,
        teacher_prompts=_split(batch.column("teacher_prompt_ids"), np.int64) if len(batch) else [],
        temperature_N=temperature,
    )


def answer_masks(spans: pa.Array | pa.ChunkedArray, num_tokens: Sequence[int]) -> list[np.ndarray]:
    """Per row, bool over its completion tokens: those in its spans labelled ``answer``."""
    masks = [np.zeros(count, np.bool_) for count in num_tokens]
    for mask, row_spans in zip(masks, spans.to_pylist(), strict=True):
        for span in row_spans:
            if span["label"] == "answer":
                mask[span["start"] : span["end"]] = True
    return masks


def token_advantages(advantage: float, bonus: float, answer_mask: np.ndarray) -> np.ndarray:
    """[T] of one row: A + bonus outside the answer, A on it.

    Outcome-based exploration, arXiv 2509.06941: with a bonus on the answer tokens, the policy could collect
    it by changing only the answer and not the reasoning.
    """
    return advantage + bonus * ~answer_mask


def list_column(rows: Sequence[np.ndarray], dtype: type = np.float32) -> pa.ListArray:
    """An Arrow list column of `dtype` with one entry per array in `rows`."""
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    flat = np.concatenate(rows).astype(dtype) if rows else np.zeros(0, dtype)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


def masked_means(rows: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> pa.Array:
    """Mean over each row's loss tokens, float32 [N]; null for a row without any."""
    means = [float(row[mask].mean()) if mask.any() else None for row, mask in zip(rows, masks, strict=True)]
    return pa.array(means, pa.float32())


def _means_of_some(rows: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> pa.Array:
    """As `masked_means`, float64; null for rows that have no values."""
    pairs = zip(rows, masks, strict=True)
    means = [float(row[mask].mean()) if len(row) and mask.any() else None for row, mask in pairs]
    return pa.array(means, pa.float64())


def score_columns(rows: RankRows, columns: Mapping[str, Sequence[np.ndarray]]) -> pa.RecordBatch:
    """The learner's columns, keyed by sample_id: logprobs, entropy, means, and anchor logprobs if computed.

    `loss_mask` is included, so that readers of the token columns know which tokens count
    (`trainer.loss_tokens`). Of rows with a teacher, `teacher_kl` and `teacher_gain` are means over the loss
    tokens; see `trainer.losses.distillation.teacher_columns`. Two columns are metrics only: `mismatch_abs` is
    the sum of |behavior - proximal| and `mismatch_k3` the sum of k3(behavior, proximal), in nats, over the
    loss tokens of rows whose sampler had the same context.
    """
    arrays: dict[str, pa.Array] = {
        "sample_id": pa.array(rows.sample_ids, pa.string()),
        "loss_mask": list_column(rows.loss_masks, np.bool_),
    }
    for name in ("proximal_logprobs", "ref_logprobs", "base_logprobs", "entropy"):
        if name in columns:
            arrays[name] = list_column(columns[name])
        else:
            arrays[name] = pa.nulls(len(rows), pa.list_(pa.float32()))
    arrays["entropy_mean"] = masked_means(columns["entropy"], rows.loss_masks)
    arrays["entropy_mean_t1"] = masked_means(columns["entropy_t1"], rows.loss_masks)
    differences = _mismatch(rows, columns["proximal_logprobs"])
    for name in TEACHER_COLUMNS:
        arrays[name] = _means_of_some(columns.get(name, [np.zeros(0)] * len(rows)), rows.loss_masks)
    arrays["mismatch_abs"] = pa.array([float(np.abs(d).sum()) for d in differences], pa.float64())
    arrays["mismatch_k3"] = pa.array([float((np.expm1(d) - d).sum()) for d in differences], pa.float64())
    return pa.RecordBatch.from_pydict(arrays)


def _mismatch(rows: RankRows, proximal_logprobs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Per row: log proximal - log behavior, float64, at the loss tokens of rows that can be compared."""
    # Only rows sampled in this context are compared (not sft). Any other NaN must reach the metric.
    sampled = origins_where(lambda spec: spec.sampled == "same_context")
    compared = [
        mask & (origin in sampled) for mask, origin in zip(rows.loss_masks, rows.origins, strict=True)
    ]
    return [
        (proximal.astype(np.float64) - behavior)[chosen]
        for chosen, proximal, behavior in zip(
            compared, proximal_logprobs, rows.behavior_logprobs, strict=True
        )
    ]
