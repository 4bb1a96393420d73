"""A rank's shard of rollout rows as numpy, and the Arrow columns it gives back. Used by learners only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from configs.origins import origins_where


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRows:
    """Rows in shard order. Token columns are one array per row, over the completion's tokens."""

    sample_ids: list[str]
    origins: np.ndarray
    prompts: list[np.ndarray]
    tokens: list[np.ndarray]
    loss_masks: list[np.ndarray]
    answer_masks: list[np.ndarray]
    """True at the tokens of the answer, as far as a scorer said which they are."""
    behavior_logprobs: list[np.ndarray]
    temperature_N: np.ndarray
    """At which the row is scored."""

    def __len__(self) -> int:
        return len(self.sample_ids)


def _split(column: pa.ListArray, dtype: type) -> list[np.ndarray]:
    flat = column.flatten()
    values = flat.fill_null(float("nan")) if pa.types.is_floating(flat.type) else flat
    lengths = column.value_lengths().fill_null(0).to_numpy()
    return np.split(values.to_numpy(zero_copy_only=False).astype(dtype), np.cumsum(lengths)[:-1])


def read_rows(batch: pa.RecordBatch, training_temperature: float | None = None) -> RankRows:
    """Rows of a GROUP_SCHEMA batch; null logprobs (masked tokens, sft rows) become NaN.

    A row is scored at the temperature it was sampled at, but for tempered ones at `training_temperature` if
    that is given: it is the difference that they teach.
    """
    origins = np.array(batch.column("origin").to_pylist(), dtype=object)
    temperature = batch.column("temperature").to_numpy(zero_copy_only=False).astype(np.float32)
    if training_temperature is not None:
        moved = origins_where(lambda spec: spec.at_training_temperature)
        temperature = np.where(np.isin(origins, moved), np.float32(training_temperature), temperature)
    tokens = _split(batch.column("token_ids"), np.int64) if len(batch) else []
    behavior = _split(batch.column("behavior_logprobs"), np.float32) if len(batch) else []
    filled = [
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
        temperature_N=temperature,
    )


def answer_masks(spans: pa.Array | pa.ChunkedArray, num_tokens: Sequence[int]) -> list[np.ndarray]:
    """Per row, bool over its completion tokens: those within its spans labelled ``answer``."""
    masks = [np.zeros(count, np.bool_) for count in num_tokens]
    for mask, mine in zip(masks, spans.to_pylist(), strict=True):
        for span in mine:
            if span["label"] == "answer":
                mask[span["start"] : span["end"]] = True
    return masks


def token_advantages(advantage: float, bonus: float, answer_mask: np.ndarray) -> np.ndarray:
    """[T] of one row: A + bonus outside the answer, A on it.

    Outcome-based exploration, arXiv 2509.06941: a bonus on the answer itself would teach to edit it alone.
    """
    return advantage + bonus * ~answer_mask


def list_column(rows: Sequence[np.ndarray], dtype: type = np.float32) -> pa.ListArray:
    """A list column of `dtype` from one array per row."""
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    flat = np.concatenate(rows).astype(dtype) if rows else np.zeros(0, dtype)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


def masked_means(rows: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> pa.Array:
    """Mean of each row over its loss tokens, float32; null for a row without any."""
    means = [float(row[mask].mean()) if mask.any() else None for row, mask in zip(rows, masks, strict=True)]
    return pa.array(means, pa.float32())


def score_columns(rows: RankRows, columns: Mapping[str, Sequence[np.ndarray]]) -> pa.RecordBatch:
    """The learner's columns keyed by sample_id: `proximal_logprobs`, `entropy`, means, anchors if scored.

    `loss_mask` stands beside them, so that whoever reads the token columns knows which tokens count
    (`trainer.loss_tokens`).
    Two more columns are measurements only, sums over the row's loss tokens where the sampler saw the same
    context: `mismatch_abs` of |behaviour - proximal| and `mismatch_k3` of k3(behaviour, proximal), in nats.
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
    # Rows that no policy of ours sampled in this context (sft) are not compared; any other NaN must show.
    sampled = origins_where(lambda spec: spec.sampled == "same_context")
    compared = [
        mask & (origin in sampled) for mask, origin in zip(rows.loss_masks, rows.origins, strict=True)
    ]
    differences = [
        (proximal.astype(np.float64) - behavior)[chosen]
        for chosen, proximal, behavior in zip(
            compared, columns["proximal_logprobs"], rows.behavior_logprobs, strict=True
        )
    ]
    arrays["mismatch_abs"] = pa.array([float(np.abs(d).sum()) for d in differences], pa.float64())
    arrays["mismatch_k3"] = pa.array([float((np.expm1(d) - d).sum()) for d in differences], pa.float64())
    return pa.RecordBatch.from_pydict(arrays)
