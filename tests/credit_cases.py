"""Rewarded rows made by hand, for the tests of whatever is computed from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.rewarded import RewardedRows

Answers = Sequence[str | None]


def rewarded(
    rewards: Sequence[float] | np.ndarray,
    groups: Sequence[int] | np.ndarray,
    *,
    origins: Sequence[str] | None = None,
    answers: Answers | None = None,
    right: Sequence[bool | None] | None = None,
    tokens: Sequence[int] | None = None,
    finish: Sequence[str] | None = None,
    ref: Sequence[float] | None = None,
    visits: Sequence[int] | None = None,
    successes: Sequence[int] | None = None,
    failures: Sequence[int] | None = None,
) -> RewardedRows:
    """Rows of prompts p<group>; what is not given is plain: policy rows, one token, no answer, no history."""
    num_rows = len(rewards)

    def objects(values: Sequence[object] | None, default: object) -> np.ndarray:
        column = np.empty(num_rows, dtype=object)
        column[:] = [default] * num_rows if values is None else list(values)
        return column

    def integers(values: Sequence[int] | None, default: int = 0) -> np.ndarray:
        return np.array([default] * num_rows if values is None else values, np.int64)

    return RewardedRows(
        row_N=np.arange(num_rows),
        rewards_N=np.array(rewards, np.float64),
        group_N=np.array(groups, np.int64),
        origin_N=objects(origins, "policy"),
        prompt_id_N=objects([f"p{group}" for group in groups], ""),
        answer_N=objects(answers, None),
        answer_ok_N=objects(right, None),
        num_tokens_N=integers(tokens, 1),
        finish_reason_N=objects(finish, "stop"),
        ref_logprob_N=np.array([np.nan] * num_rows if ref is None else ref, np.float64),
        visits_N=integers(visits),
        successes_N=integers(successes),
        failures_N=integers(failures),
    )
