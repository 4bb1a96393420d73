"""Changes of the advantage, token by token, before the loss. `trainer.objective` applies those under `shape`.

A shape is ``shape(inputs, options) -> [T]``: the advantages of `inputs` as they go on to the next shape and
then to the loss. It has no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from configs.entries import plain_options
from configs.kinds.base import Kind, load_target
from configs.kinds.shapes import PositiveReweightOptions, RepoOptions, RepoROptions
from configs.schema import RunConfig
from trainer.losses import LossInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundShape:
    """A shape kind with its options."""

    kind: Kind
    options: Any


def bound_shapes(config: RunConfig) -> dict[str, BoundShape]:
    """The shapes of a config by name, in its order."""
    shapes = {}
    for name, entry in config.shape.items():
        options, kind = plain_options(entry, "shape")
        shapes[name] = BoundShape(kind=kind, options=options)
    return shapes


def apply_shapes(inputs: LossInputs, shapes: Mapping[str, BoundShape]) -> LossInputs:
    """`inputs` with the advantages that all shapes, one after the other, make of them."""
    for shape in shapes.values():
        inputs = replace(inputs, advantages=load_target(shape.kind.target)(inputs, shape.options))
    return inputs


def positive_reweight(inputs: LossInputs, options: PositiveReweightOptions) -> Tensor:
    """A' = weight A where A > 0, else A. [T] -> [T]

    Positive-advantage reweighting, arXiv 2511.05993 (its lambda).
    """
    return torch.where(inputs.advantages > 0, options.weight * inputs.advantages, inputs.advantages)


def repo(inputs: LossInputs, options: RepoOptions) -> Tensor:
    """A' = A - beta L with L = log pi of the token now, without gradient. [T] -> [T]

    REPO, arXiv 2603.11682. Entropy falls with E[A L]; the term makes advantage and logprob less alike. It
    acts on tokens of advantage 0 as well.
    """
    return inputs.advantages - options.beta * inputs.policy_logprobs.detach()


def repo_r(inputs: LossInputs, options: RepoROptions) -> Tensor:
    """A' = A - zeta |A| L with L = log pi of the token now, without gradient. [T] -> [T]

    REPO-R, arXiv 2603.11682: REPO in proportion to the advantage, so groups that teach nothing stay so.
    """
    return inputs.advantages - options.zeta * inputs.advantages.abs() * inputs.policy_logprobs.detach()
