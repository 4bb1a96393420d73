"""A learner rank of which some weights are frozen, as adapters and partial training have them."""

from __future__ import annotations

from typing import Final

from actors.learner import LearnerRank
from trainer.model.policy import PolicyModel

TARGET: Final = "frozen_rank:FrozenRank"
FROZEN: Final = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.input_layernorm.weight")
"""A matrix and a vector: one of each of the optimizer's groups."""


class FrozenRank(LearnerRank):
    """As `LearnerRank`, but the weights in FROZEN have no gradient."""

    def _start_policy(self) -> PolicyModel:
        policy = super()._start_policy()
        for name, parameter in policy.named_weights():
            if name in FROZEN:
                parameter.requires_grad_(False)
        return policy
