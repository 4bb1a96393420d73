"""Changes of the advantage, token by token, before the loss. `trainer.objective` applies those under `shape`.

A shape is ``shape(inputs, options) -> [T]``: the advantages of `inputs` as they go on to the next shape and
then to the loss (a `TokenShape` if it also has something to log). It has no gradient. One that needs batch
statistics has a ``prepare(columns, options)`` as a loss has, see `trainer.prepare`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.entries import plain_options
from configs.kinds.base import Kind, load_target
from configs.kinds.shapes import PositiveReweightOptions, RepoOptions, RepoROptions
from configs.schema import RunConfig
from trainer.losses import LossInputs
from trainer.prepare import Gather, Prepared, TokenTable, unite


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenShape:
    """Advantages per token [T], and what was done to them: boolean [T] by name, logged as share of the tokens
    (clip/shape.<shape>/<name>)."""

    advantages: Tensor
    marks: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundShape:
    """A shape kind with its options."""

    kind: Kind
    options: Any

    def change(self, inputs: LossInputs) -> TokenShape:
        """The advantages and marks; a function that gives the advantages alone has no marks."""
        found = load_target(self.kind.target)(inputs, self.options)
        return found if isinstance(found, TokenShape) else TokenShape(advantages=found, marks={})


def bound_shapes(config: RunConfig) -> dict[str, BoundShape]:
    """The shapes of a config by name, in its order."""
    shapes = {}
    for name, entry in config.shape.items():
        options, kind = plain_options(entry, "shape")
        shapes[name] = BoundShape(kind=kind, options=options)
    return shapes


def start_shapes(config: RunConfig) -> dict[str, Any]:
    """The entries of `shape` after each kind's `start`: checked, with absolute paths.

    Raises:
        ValueError: what an entry names cannot be used; the message names the entry.
    """
    entries = dict(config.shape)
    for name, shape in bound_shapes(config).items():
        if shape.kind.start:
            try:
                started = load_target(shape.kind.start)(shape.options)
            except ValueError as error:
                raise ValueError(f"shape.{name}: {error}") from error
            entries[name] = {**entries[name], **asdict(started)}
    return entries


def apply_shapes(
    inputs: LossInputs, shapes: Mapping[str, BoundShape], prepared: Mapping[str, Mapping[str, Tensor]]
) -> tuple[LossInputs, dict[str, Tensor]]:
    """`inputs` with the advantages that all shapes, one after the other, make of them; and the shapes' marks.

    `prepared` has by shape what its `prepare` returned, for the same tokens.
    """
    marks: dict[str, Tensor] = {}
    advantages = inputs.advantages
    for name, shape in shapes.items():
        found = shape.change(replace(inputs, advantages=advantages, prepared=prepared.get(name, {})))
        advantages = found.advantages
        marks |= {f"shape.{name}/{mark}": where for mark, where in found.marks.items()}
    return replace(inputs, advantages=advantages), marks


def prepare_shapes(
    local: TokenTable, shapes: Mapping[str, BoundShape], gather: Gather
) -> dict[str, Prepared]:
    """By shape.<name>: what the shapes' `prepare` found of the update's policy tokens, for the local ones.

    Each sees as `advantage` what the shapes before it make of the advantages, as its function will.
    """
    wanting = [name for name, shape in shapes.items() if shape.kind.prepare]
    if not wanting:
        return {}
    union = unite(local, "policy", gather)
    columns, results = dict(union.columns), {}
    for name, shape in shapes.items():
        found = Prepared(columns={})
        if shape.kind.prepare:
            found = union.ask(partial(_call_prepare, shape), columns)
            results[f"shape.{name}"] = union.to_local(found)
        if name == wanting[-1]:
            break
        columns["advantage"] = shape.change(_inputs_of(columns, found)).advantages.numpy()
    return results


def _call_prepare(
    shape: BoundShape, columns: Mapping[str, np.ndarray]
) -> Prepared | Mapping[str, np.ndarray]:
    return load_target(shape.kind.prepare)(columns, shape.options)  # type: ignore[no-any-return]


def _inputs_of(columns: Mapping[str, np.ndarray], found: Prepared) -> LossInputs:
    """A table of `prepare` as a shape sees its tokens; the policy is that which the update starts from."""

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(columns[name].astype(np.float32))

    _, rows = np.unique(columns["sample_id"], return_inverse=True)
    return LossInputs(
        policy_logprobs=tensor("policy_logprobs"),
        entropy=tensor("policy_entropy"),
        proximal_logprobs=tensor("proximal_logprobs"),
        behavior_logprobs=tensor("behavior_logprobs"),
        advantages=tensor("advantage"),
        rows=torch.from_numpy(rows),
        token_ids=torch.from_numpy(columns["token_ids"]),
        positions=torch.from_numpy(columns["position"]),
        prepared={name: torch.from_numpy(values) for name, values in found.columns.items()},
    )


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
