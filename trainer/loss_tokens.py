"""Reading the learner's token columns through `loss_mask`.

A row may contain tokens that no policy sampled (those of an environment). They are context only: no loss,
reward term or metric may use their values. The learner's table includes the mask
(`trainer.model.rows.score_columns`). L is the number of loss tokens of all N rows, concatenated.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def loss_values(columns: pa.Table, name: str) -> np.ndarray:
    """Column `name` at the loss tokens of all rows, float32 [L]; NaN in rows where it is null."""
    masks = columns.column("loss_mask")
    mask = pc.list_flatten(masks).to_numpy().astype(np.bool_)
    column = columns.column(name)
    if column.null_count:  # list_flatten skips null rows, which would shift all values behind them
        present = np.repeat(column.is_valid().to_numpy(), pc.list_value_length(masks).to_numpy())
        values = np.full(len(mask), np.nan, np.float32)
        values[present] = pc.list_flatten(column).to_numpy()
    else:
        values = pc.list_flatten(column).to_numpy()
    return values[mask]


def sum_by_row(columns: pa.Table, values: np.ndarray) -> np.ndarray:
    """Sums of `values` [L] over each row's loss tokens: float64 [N], 0 for a row without any."""
    masks = columns.column("loss_mask")
    rows = np.repeat(np.arange(len(columns)), pc.list_value_length(masks).to_numpy())
    mask = pc.list_flatten(masks).to_numpy().astype(np.bool_)
    # The length is given, so that rows at the end without loss tokens get 0.
    return np.bincount(rows[mask], values, len(columns))


def masked_sum(columns: pa.Table, name: str) -> np.ndarray:
    """Sum of column `name` over each row's loss tokens: float64 [N]; NaN where it is null."""
    sums = sum_by_row(columns, loss_values(columns, name))
    return np.where(columns.column(name).is_valid().to_numpy(), sums, np.nan)
