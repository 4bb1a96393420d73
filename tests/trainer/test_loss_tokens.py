"""Reading token columns through the loss mask, by hand."""

from __future__ import annotations

import mask_cases


def test_values_at_loss_tokens() -> None:
    mask_cases.check_loss_values()


def test_sums_by_row() -> None:
    mask_cases.check_masked_sum()
