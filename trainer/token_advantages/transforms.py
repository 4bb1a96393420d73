"""Changes of the advantage, token by token, before the loss. `trainer.objective` applies them.

A transform is ``transform(inputs, options) -> [T]``: the advantages of `inputs` as they go on to the next
transform and
then to the loss (a `TokenTransform` if it also has something to log). It has no gradient. One that needs
batch statistics has a ``prepare(columns, options)`` as a loss has, see `trainer.losses.batch_statistics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.bound import BoundRun, bind
from configs.kinds.base import Kind, load_target
from configs.kinds.token_advantages import PositiveReweightOptions, RepoOptions, RepoROptions
from configs.origins import origins_where
from configs.schema import RunConfig
from trainer.losses.batch_statistics import Gather, Prepared, TokenTable, gather_tokens
from trainer.losses.per_token import LossInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTransform:
    """Advantages per token [T], and what was done to them: boolean [T] by name, logged as share of the tokens
    (clip/token_advantage.<transform>/<name>)."""

    advantages: Tensor
    marks: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundTransform:
    """A transform kind with its options."""

    kind: Kind
    options: Any

    def change(self, inputs: LossInputs) -> TokenTransform:
        """The advantages and marks; a function that gives the advantages alone has no marks."""
        found = load_target(self.kind.target)(inputs, self.options)
        return found if isinstance(found, TokenTransform) else TokenTransform(advantages=found, marks={})


def bound_transforms(run: BoundRun) -> dict[str, BoundTransform]:
    """The transforms of a run by name, in its order."""
    return {
        name: BoundTransform(kind=entry.kind, options=entry.options)
        for name, entry in run.token_advantages.items()
    }


def start_transforms(config: RunConfig) -> dict[str, Any]:
    """The entries of `token_advantage` after each kind's `start`: checked, with absolute paths.

    Raises:
        ValueError: what an entry names cannot be used; the message names the entry.
    """
    entries = dict(config.token_advantage)
    for name, transform in bound_transforms(bind(config)).items():
        if transform.kind.start:
            try:
                started = load_target(transform.kind.start)(transform.options)
            except ValueError as error:
                raise ValueError(f"token_advantage.{name}: {error}") from error
            entries[name] = {**entries[name], **asdict(started)}
    return entries


def apply_transforms(
    inputs: LossInputs, transforms: Mapping[str, BoundTransform], prepared: Mapping[str, Mapping[str, Tensor]]
) -> tuple[LossInputs, dict[str, Tensor]]:
    """`inputs` with the advantages as all transforms leave them, and the transforms' marks.

    `prepared` has by transform what its `prepare` returned, for the same tokens.
    """
    marks: dict[str, Tensor] = {}
    advantages = inputs.advantages
    for name, transform in transforms.items():
        found = transform.change(replace(inputs, advantages=advantages, prepared=prepared.get(name, {})))
        advantages = found.advantages
        marks |= {f"token_advantage.{name}/{mark}": where for mark, where in found.marks.items()}
    return replace(inputs, advantages=advantages), marks


def prepare_transforms(
    local: TokenTable, transforms: Mapping[str, BoundTransform], gather: Gather
) -> dict[str, Prepared]:
    """By token_advantage.<name>: what the transforms' `prepare` found of the policy tokens.

    Each sees as `advantage` what the transforms before it make of the advantages, as its function will.
    """
    wanting = [name for name, transform in transforms.items() if transform.kind.prepare]
    if not wanting:
        return {}
    gathered = gather_tokens(local, origins_where(lambda spec: spec.transformed), gather)
    columns, results = dict(gathered.columns), {}
    for name, transform in transforms.items():
        found = Prepared(columns={})
        if transform.kind.prepare:
            found = gathered.apply(partial(_call_prepare, transform), columns)
            results[f"token_advantage.{name}"] = gathered.to_local(found)
        if name == wanting[-1]:
            break
        columns["advantage"] = transform.change(_inputs_of(columns, found)).advantages.numpy()
    return results


def _call_prepare(
    transform: BoundTransform, columns: Mapping[str, np.ndarray]
) -> Prepared | Mapping[str, np.ndarray]:
    return load_target(transform.kind.prepare)(columns, transform.options)  # type: ignore[no-any-return]


def _inputs_of(columns: Mapping[str, np.ndarray], found: Prepared) -> LossInputs:
    """A table of `prepare` as a transform sees it; the policy is the one the update starts from."""

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
