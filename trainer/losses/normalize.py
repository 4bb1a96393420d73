"""Loss aggregation: a weight per row, computed from counts over the whole update and all ranks.

loss = sum over rows of row_weight x sum over the row's loss tokens of the loss per token. The weights come
from global counts, so the result does not depend on microbatches or on how rows are assigned to ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from configs.kinds.losses import LossCommon


def row_weights(
    num_loss_tokens_N: np.ndarray,
    origin_N: np.ndarray,
    update_N: np.ndarray,
    losses: Mapping[str, LossCommon],
    max_tokens: int,
) -> np.ndarray:
    """token_mean: weight / tokens; sequence_mean: weight / (rows x tokens of the row); sequence_sum:
    weight / (rows x constant)

    of each origin in each update: DAPO, arXiv 2503.14476; GRPO, arXiv 2402.03300; Dr.GRPO, arXiv 2503.20783.
    All inputs are [N]. Returns float64 [N]: 0 for rows without loss tokens and for origins without a loss.
    A `sum_constant` of 0 means `max_tokens`.
    """
    weights = np.zeros(len(num_loss_tokens_N))
    for origin, common in losses.items():
        # Each update is a step of the optimizer, with a mean of its own.
        for update in np.unique(update_N):
            mine = (origin_N == origin) & (update_N == update) & (num_loss_tokens_N > 0)
            if not mine.any():
                continue
            tokens = num_loss_tokens_N[mine]
            if common.aggregate == "token_mean":
                weights[mine] = common.weight / tokens.sum()
            elif common.aggregate == "sequence_mean":
                weights[mine] = common.weight / (mine.sum() * tokens)
            else:
                constant = common.sum_constant or max_tokens
                weights[mine] = common.weight / (mine.sum() * constant)
    return weights
