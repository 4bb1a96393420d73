"""Rows with tokens that were not sampled, by hand: what must fail when `loss_tokens` is changed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from trainer.loss_tokens import loss_values, masked_sum, sum_by_row

Check = Callable[[], None]
FLOATS = pa.list_(pa.float32())
COLUMNS = pa.table(
    {
        "loss_mask": [[True, False, True], [], [False], [True, True]],
        "known": pa.array([[1.0, 90.0, 2.0], [], [70.0], [4.0, 8.0]], FLOATS),
        "partly": pa.array([None, [], None, [4.0, 8.0]], FLOATS),
        "nulls": pa.array([[1.0, None, 2.0], [], [None], [4.0, 8.0]], FLOATS),
    }
)
"""Rows of 2 of 3, no, 0 of 1 and 2 of 2 loss tokens; `partly` was not scored in two of them."""


def check_loss_values() -> None:
    """The five tokens that count, in order; NaN where the row is null."""
    assert loss_values(COLUMNS, "known").tolist() == loss_values(COLUMNS, "nulls").tolist() == [1, 2, 4, 8]
    assert loss_values(COLUMNS, "known").dtype == np.float32
    found = loss_values(COLUMNS, "partly")
    assert np.isnan(found[:2]).all() and found[2:].tolist() == [4.0, 8.0]
    assert len(loss_values(COLUMNS.slice(1, 2), "known")) == 0
    assert loss_values(COLUMNS.slice(3), "known").tolist() == [4.0, 8.0], "a slice is not its parent"


def check_masked_sum() -> None:
    """3, nothing, nothing, 12; NaN where the row is null."""
    assert masked_sum(COLUMNS, "known").tolist() == masked_sum(COLUMNS, "nulls").tolist() == [3, 0, 0, 12]
    assert sum_by_row(COLUMNS, np.array([1.0, 1.0, 2.0, 2.0])).tolist() == [2.0, 0.0, 0.0, 4.0]
    found = masked_sum(COLUMNS, "partly").tolist()
    assert math.isnan(found[0]) and math.isnan(found[2]) and (found[1], found[3]) == (0.0, 12.0)


MASK_CHECKS: dict[str, tuple[Check, ...]] = {
    "loss_values": (check_loss_values,),
    "sum_by_row": (check_masked_sum,),
    "masked_sum": (check_masked_sum,),
}
"""By function of `trainer.loss_tokens`."""
