"""Weights of prompts by name. A target is ``fn(rows: RewardedRows, options) -> weight_N``.

The weight is the same for all rows of a group, and multiplies their advantages and bonuses.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.fields import POSITIVE, option
from configs.kinds.base import Kind, Options


@dataclass
class PassAtKValueOptions(Options):
    """The expected gain in pass@k of one more success on the prompt, by its earlier right and wrong samples.

    A derivation of ours in the direction of Bayesian boundary gating, arXiv 2606.15455 (abstract read only);
    so are the defaults.
    """

    k: int = option(8, POSITIVE)
    """The k of pass@k."""
    prior_successes: float = option(1.0, POSITIVE)
    """Pseudo-counts of the Beta prior of a prompt's success probability (a and b)."""
    prior_failures: float = option(1.0, POSITIVE)
    """See `prior_successes`."""
    normalise: bool = True
    """Whether weights have mean 1 over the groups of a step (replayed groups separately)."""


PROMPT_WEIGHTS: dict[str, Kind] = {
    "pass_at_k_value": Kind(PassAtKValueOptions, "trainer.credit.prompt_weights:pass_at_k_value"),
}
