"""A step's rewarded rows: all that reward shapes, advantages, bonuses and prompt weights are computed from.

`trainer.credit.credit` builds them from the buffer's index and the learner's columns; a function of any of
those kinds is called as ``fn(rows, options)`` and returns one float64 per row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from configs.origins import parts


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardedRows:
    """N rows; entry i of every column is of the same row. None of them has a null reward."""

    row_N: np.ndarray
    """int64, the row's number in the step's batch."""
    rewards_N: np.ndarray
    """float64, finite."""
    group_N: np.ndarray
    """int64, the number of the row's group within the step; rows of one group share their prompt."""
    origin_N: np.ndarray
    """str: policy, refined or replay."""
    prompt_id_N: np.ndarray
    """str."""
    answer_N: np.ndarray
    """The normalised answer as str, or None where none was read."""
    answer_ok_N: np.ndarray
    """True or False, or None where no scorer judged an answer."""
    num_tokens_N: np.ndarray
    """int64, sampled completion tokens (those of `loss_mask`), the end-of-text token included."""
    finish_reason_N: np.ndarray
    """str; ``length`` is a completion that was cut off at its limit."""
    ref_logprob_N: np.ndarray
    """float64 in nats, the completion's logprob under the reference; NaN where it was not scored."""
    visits_N: np.ndarray
    """int64, samples of the prompt with this answer that earlier steps trained on."""
    successes_N: np.ndarray
    """int64, earlier samples of the prompt whose answer was right."""
    failures_N: np.ndarray
    """int64, earlier samples of the prompt whose answer was wrong or could not be read."""

    def __post_init__(self) -> None:
        lengths = {item.name: len(getattr(self, item.name)) for item in fields(self)}
        assert len(set(lengths.values())) == 1, f"columns of one length, got {lengths}"

    def __len__(self) -> int:
        return len(self.rewards_N)

    def only(self, chosen: np.ndarray) -> RewardedRows:
        """The rows that `chosen` (bool [N] or row numbers) picks."""
        return RewardedRows(**{item.name: getattr(self, item.name)[chosen] for item in fields(self)})

    def with_rewards(self, rewards_N: np.ndarray) -> RewardedRows:
        """Other rewards; a row that has none any more (NaN, or no finite number) is left out."""
        return replace(self, rewards_N=rewards_N).only(np.isfinite(rewards_N))

    def parts(self) -> list[np.ndarray]:
        """Row numbers of the step's own rows, of replayed ones, ..., as far as there are any.

        What is taken over a whole step is taken over each: replayed rows do not move the others.
        """
        found = (np.flatnonzero(np.isin(self.origin_N, part)) for part in parts())
        return [rows for rows in found if len(rows)]


def group_bounds(values_N: np.ndarray, group_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per row: the lowest and the highest of `values_N` in the row's group; NaN counts for nothing.

    inf and -inf in a group without a value.
    """
    groups, inverse = np.unique(group_N, return_inverse=True)
    lowest, highest = np.full(len(groups), np.inf), np.full(len(groups), -np.inf)
    known = np.isfinite(values_N)
    np.minimum.at(lowest, inverse[known], values_N[known])
    np.maximum.at(highest, inverse[known], values_N[known])
    return lowest[inverse], highest[inverse]


def group_sums(values_N: np.ndarray, group_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per row: the sum of `values_N` over the row's group, and the group's size."""
    _, inverse = np.unique(group_N, return_inverse=True)
    return np.bincount(inverse, values_N)[inverse], np.bincount(inverse)[inverse].astype(np.float64)
