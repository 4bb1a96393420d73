"""Weights of prompts by name. A target is ``fn(rows: RewardedRows, options) -> weight_N``.

The weight is the same for all rows of a group, and multiplies their advantages and bonuses.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.kinds.base import Kind


@dataclass
class PassAtKValueOptions:
    """The expected gain in pass@k of one more success on the prompt, by its earlier right and wrong samples.

    A derivation of ours in the direction of Bayesian boundary gating, arXiv 2606.15455 (abstract read only);
    so are the defaults.
    """

    k: int = 8
    prior_successes: float = 1.0
    """Pseudo-counts of the Beta prior of a prompt's success probability (a and b)."""
    prior_failures: float = 1.0
    normalise: bool = True
    """Whether weights have mean 1 over the groups of a step, replayed ones apart."""


PROMPT_WEIGHTS: dict[str, Kind] = {
    "pass_at_k_value": Kind(PassAtKValueOptions, "trainer.credit.prompt_weights:pass_at_k_value"),
}
