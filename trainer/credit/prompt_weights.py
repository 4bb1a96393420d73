"""Weights of prompts. `trainer.credit.credit` multiplies advantages and bonuses by those of `prompt_weight`.

A prompt weight is ``weight(rows, options) -> [N]`` for the rewarded rows of a step, equal within a group.
"""

from __future__ import annotations

import numpy as np

from configs.kinds.prompt_weights import PassAtKValueOptions
from trainer.credit.advantage_inputs import RewardedRows


def pass_at_k_value(rows: RewardedRows, options: PassAtKValueOptions) -> np.ndarray:
    """w = E[k (1 - p)^(k - 1)], p ~ Beta(a + s, b + f) with s right and f wrong earlier samples of the prompt

    = k times the product over j = 0 .. k - 2 of (b + f + j) / (a + s + b + f + j). k (1 - p)^(k - 1) is the
    derivative of pass@k = 1 - (1 - p)^k. This estimate is our own derivation. It follows the finding of
    arXiv 2606.15455 that updates on solved prompts bring no gain; that paper's own estimate was not available
    to us. With `normalise`, weights are divided by their mean over the groups of the step, separately for
    replayed groups.
    """
    right = options.prior_successes + rows.successes_N
    wrong = options.prior_failures + rows.failures_N
    weight = np.full(len(rows), float(options.k))
    for j in range(options.k - 1):
        weight *= (wrong + j) / (right + wrong + j)
    if options.normalise:
        for part in rows.parts():
            # One row per group: the mean is over groups, whatever their sizes.
            _, first = np.unique(rows.group_N[part], return_index=True)
            weight[part] /= weight[part[first]].mean()
    return weight
