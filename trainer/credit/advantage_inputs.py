"""A step's rewarded rows: the input of reward shapes, advantage estimators, bonuses and prompt weights.

`trainer.credit.credit` builds them from the buffer's index and the learner's columns. A function of any of
these kinds is called as ``fn(rows, options)`` and returns float64 [N], one number per row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from configs.origins import origins_where, parts


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardedRows:
    """N rows with a reward; entry i of every column belongs to row i."""

    row_N: np.ndarray
    """int64, the index of the row in the step's batch."""
    rewards_N: np.ndarray
    """float64, finite."""
    group_N: np.ndarray
    """int64, the row's group within the step; rows of one group share their prompt."""
    origin_N: np.ndarray
    """str: policy, refined or replay."""
    prompt_id_N: np.ndarray
    """str."""
    answer_N: np.ndarray
    """The normalised answer as str, or None where no answer was extracted."""
    answer_ok_N: np.ndarray
    """True or False, or None where no scorer checked an answer."""
    num_tokens_N: np.ndarray
    """int64, sampled completion tokens (those of `loss_mask`), the end-of-sequence token included."""
    finish_reason_N: np.ndarray
    """str; ``length`` means truncated at the token limit."""
    ref_logprob_N: np.ndarray
    """float64 in nats, the completion's logprob under the reference; NaN where it was not computed."""
    logprob_N: np.ndarray
    """float64 in nats, its logprob under the policy at the start of the step; NaN where not computed."""
    partition_N: np.ndarray
    """int64, the class of the row within its group (`rollouts.records.Partition`); -1 for none."""
    scores_N: np.ndarray
    """dict: scorer -> score, None where it is null."""
    numbers_N: np.ndarray
    """dict: what scorers ("<scorer>/<name>") and the rollouter stored beside the scores."""
    tags_N: np.ndarray
    """dict: tag -> value, as scorers gave them."""
    tag_visits_N: np.ndarray
    """dict: tag -> earlier samples of the prompt with the row's value of it; of tags that a bonus counts."""
    visits_N: np.ndarray
    """int64, earlier samples of the prompt with this answer."""
    successes_N: np.ndarray
    """int64, earlier samples of the prompt with a correct answer."""
    failures_N: np.ndarray
    """int64, earlier samples of the prompt with a wrong answer or none that could be extracted."""

    def __post_init__(self) -> None:
        lengths = {item.name: len(getattr(self, item.name)) for item in fields(self)}
        assert len(set(lengths.values())) == 1, f"columns of one length, got {lengths}"

    def __len__(self) -> int:
        return len(self.rewards_N)

    def only(self, chosen: np.ndarray) -> RewardedRows:
        """The rows that `chosen` selects: bool [N], or row indexes."""
        return RewardedRows(**{item.name: getattr(self, item.name)[chosen] for item in fields(self)})

    def with_rewards(self, rewards_N: np.ndarray) -> RewardedRows:
        """The same rows with `rewards_N`; rows whose new reward is not finite are dropped."""
        return replace(self, rewards_N=rewards_N).only(np.isfinite(rewards_N))

    def parts(self) -> list[np.ndarray]:
        """Row indexes of the origins that are normalised together: the step's own rows, replayed ones, ...

        Statistics over a whole step are computed over each part, so replayed rows do not change the others.
        Empty parts are left out.
        """
        indexes = (np.flatnonzero(np.isin(self.origin_N, part)) for part in parts())
        return [rows for rows in indexes if len(rows)]


def refined_rows(origin_N: np.ndarray) -> np.ndarray:
    """bool [N]: rows that were sampled under another context than the one they are trained under."""
    return np.isin(origin_N, origins_where(lambda spec: spec.sampled == "other_context"))


def group_bounds(values_N: np.ndarray, group_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest of `values_N` in each row's group, [N] each; NaN is ignored.

    A group without a value has inf and -inf.
    """
    groups, inverse = np.unique(group_N, return_inverse=True)
    # Identity elements of min and max: a group without values keeps them.
    lowest, highest = np.full(len(groups), np.inf), np.full(len(groups), -np.inf)
    known = np.isfinite(values_N)
    np.minimum.at(lowest, inverse[known], values_N[known])
    np.maximum.at(highest, inverse[known], values_N[known])
    return lowest[inverse], highest[inverse]


def group_sums(values_N: np.ndarray, group_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of `values_N` over each row's group and the group's size, float64 [N] each."""
    _, inverse = np.unique(group_N, return_inverse=True)
    return np.bincount(inverse, values_N)[inverse], np.bincount(inverse)[inverse].astype(np.float64)
