"""Transforms of the advantage per token, before the loss. `trainer.objective` applies them in order.

A transform is ``transform(inputs, options) -> [T]``: the advantages for the next transform or for the loss (a
`TokenTransform` if it also logs marks). It has no gradient. One that needs batch statistics also has a
``prepare(columns, options)``, like a loss; see `trainer.losses.batch_statistics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.bound import BoundRun, started
from configs.kinds.base import Kind, load_target
from configs.kinds.token_advantages import PositiveReweightOptions, RepoOptions, RepoROptions
from configs.origins import origins_where
from trainer.losses.batch_statistics import Gather, Prepared, TokenTable, gather_tokens
from trainer.losses.per_token import LossInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTransform:
    """Advantages per token [T], and marks: bool [T] by name, logged as the share of tokens that have them
    (clip/token_advantage.<transform>/<name>)."""

    advantages: Tensor
    marks: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundTransform:
    """A transform kind with its options."""

    kind: Kind
    options: Any

    def apply(self, inputs: LossInputs) -> TokenTransform:
        """The new advantages and marks; a function that returns only advantages has no marks."""
        # Looked up by name in each call: the transform is sent to ranks, and a function of a user may not
        # pickle.
        result = load_target(self.kind.target)(inputs, self.options)
        return result if isinstance(result, TokenTransform) else TokenTransform(advantages=result, marks={})


def bound_transforms(run: BoundRun) -> dict[str, BoundTransform]:
    """The transforms of a run by name, in its order."""
    return {
        name: BoundTransform(kind=entry.kind, options=entry.options)
        for name, entry in run.token_advantages.items()
    }


def start_transforms(run: BoundRun) -> BoundRun:
    """The run after the `start` of each kind under `token_advantage`: files are checked, paths are absolute.

    Raises:
        ValueError: a file cannot be used; the message names the entry.
    """
    return started(run, "token_advantage")


def apply_transforms(
    inputs: LossInputs, transforms: Mapping[str, BoundTransform], prepared: Mapping[str, Mapping[str, Tensor]]
) -> tuple[LossInputs, dict[str, Tensor]]:
    """`inputs` with the advantages after all transforms, and the transforms' marks.

    `prepared` has the columns that each transform's `prepare` returned, by transform, for the same tokens.
    """
    marks: dict[str, Tensor] = {}
    advantages = inputs.advantages
    for name, transform in transforms.items():
        result = transform.apply(replace(inputs, advantages=advantages, prepared=prepared.get(name, {})))
        advantages = result.advantages
        marks |= {f"token_advantage.{name}/{mark}": where for mark, where in result.marks.items()}
    return replace(inputs, advantages=advantages), marks


def prepare_transforms(
    local: TokenTable, transforms: Mapping[str, BoundTransform], gather: Gather
) -> dict[str, Prepared]:
    """The results of the transforms' `prepare` for this rank's tokens, by token_advantage.<name>.

    Each `prepare` gets the advantages after the transforms before it, like its function later. A collective.
    """
    with_prepare = [name for name, transform in transforms.items() if transform.kind.prepare]
    if not with_prepare:
        return {}
    gathered = gather_tokens(local, origins_where(lambda spec: spec.transformed), gather)
    columns, results = dict(gathered.columns), {}
    for name, transform in transforms.items():
        prepared = Prepared(columns={})
        if transform.kind.prepare:
            prepared = gathered.apply(partial(_call_prepare, transform), columns)
            results[f"token_advantage.{name}"] = gathered.to_local(prepared)
        if name == with_prepare[-1]:  # no later `prepare` reads the advantages
            break
        # Each rank computes this for all tokens, so that no second gathering is needed.
        columns["advantage"] = transform.apply(_inputs_of(columns, prepared)).advantages.numpy()
    return results


def _call_prepare(
    transform: BoundTransform, columns: Mapping[str, np.ndarray]
) -> Prepared | Mapping[str, np.ndarray]:
    return load_target(transform.kind.prepare)(columns, transform.options)  # type: ignore[no-any-return]


def _inputs_of(columns: Mapping[str, np.ndarray], prepared: Prepared) -> LossInputs:
    """The columns of a `prepare` as the input of a transform, with the policy at the start of the update."""

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
        prepared={name: torch.from_numpy(values) for name, values in prepared.columns.items()},
    )


def positive_reweight(inputs: LossInputs, options: PositiveReweightOptions) -> Tensor:
    """A' = weight A where A > 0, else A. [T] -> [T]

    Positive-advantage reweighting, arXiv 2511.05993 (its lambda).
    """
    return torch.where(inputs.advantages > 0, options.weight * inputs.advantages, inputs.advantages)


def repo(inputs: LossInputs, options: RepoOptions) -> Tensor:
    """A' = A - beta L with L = log pi of the token now, without gradient. [T] -> [T]

    REPO, arXiv 2603.11682. Entropy falls with E[A L]; the term reduces the correlation of advantage and
    logprob. It also acts on tokens with advantage 0.
    """
    return inputs.advantages - options.beta * inputs.policy_logprobs.detach()


def repo_r(inputs: LossInputs, options: RepoROptions) -> Tensor:
    """A' = A - zeta |A| L with L = log pi of the token now, without gradient. [T] -> [T]

    REPO-R, arXiv 2603.11682: REPO in proportion to the advantage, so groups without signal still have none.
    """
    return inputs.advantages - options.zeta * inputs.advantages.abs() * inputs.policy_logprobs.detach()
