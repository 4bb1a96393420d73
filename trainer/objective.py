"""The objective of one microbatch: losses by origin and KL anchor, masked and weighted. Used by learners.

Row weights come from `trainer.losses.normalize`; summing the returned loss over all microbatches and ranks
of an update gives the update's loss, whatever the cut. KL anchors and the entropy bonus are aggregated like
the policy loss, but do not have its weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from configs.bound import BoundRun
from configs.kinds.base import Kind, load_target
from configs.kinds.losses import LossCommon
from configs.origins import ORIGINS
from configs.schema import KLConfig
from trainer.losses.kl import ESTIMATORS, k3
from trainer.losses.logprobs import TokenScores
from trainer.losses.per_token import LossInputs, TokenLoss
from trainer.token_advantages.transforms import BoundTransform, apply_transforms, bound_transforms


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenColumns:
    """What is known of T tokens before the update's forward; `weights` is 0 where nothing is learned."""

    proximal_logprobs: Tensor
    behavior_logprobs: Tensor
    anchor_logprobs: Mapping[str, Tensor]
    """By the anchor's section of the config: `kl` (the reference), `kl_base` (the model of step 0)."""
    advantages: Tensor
    weights: Tensor
    rows: Tensor
    origins: Mapping[str, Tensor]
    """Boolean [T] per origin present."""
    token_ids: Tensor
    positions: Tensor
    """Of each token in its row's completion, from 0."""
    prepared: Mapping[str, Mapping[str, Tensor]]
    """By origin what its loss's `prepare` returned, by token_advantage.<name> what that transform's did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundLoss:
    """A loss kind with its options: `per_token(inputs, options)`."""

    common: LossCommon
    kind: Kind
    options: Any

    def per_token(self, inputs: LossInputs) -> TokenLoss:
        """The loss and its marks; a function that gives the loss alone has none."""
        found = load_target(self.kind.target)(inputs, self.options)
        return found if isinstance(found, TokenLoss) else TokenLoss(loss=found, marks={})


def bound_losses(run: BoundRun) -> dict[str, BoundLoss]:
    """The losses of a run, by origin."""
    return {
        origin: BoundLoss(common=entry.common, kind=entry.kind, options=entry.options)
        for origin, entry in run.losses.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Everything an update minimises: losses by origin, and what is added for rows of origin policy."""

    losses: Mapping[str, BoundLoss]
    anchors: Mapping[str, KLConfig]
    """By section: `kl` and `kl_base`; those of place loss are terms of it."""
    entropy_coef: float = 0.0
    entropy_clamp: float = 0.0
    """Share of the vocabulary that the entropy of the bonus leaves out; above 0 it is logged by itself."""
    transforms: Mapping[str, BoundTransform] = field(default_factory=dict)
    """Changes of the advantages of origin policy, in order."""

    def with_settings(self, settings: Mapping[str, float]) -> Objective:
        """This objective with numbers that a controller moved, by dotted config key.

        Keys are kl.coef, kl_base.coef, entropy.coef, loss.<origin>.<option> and
        token_advantage.<name>.<option>.

        Raises:
            ValueError: a key that names no number of the objective.
        """
        changed = self
        for key, value in settings.items():
            section, _, rest = key.partition(".")
            name, _, option = rest.partition(".")
            losses, transforms, anchors = changed.losses, changed.transforms, changed.anchors
            if key == "entropy.coef":
                changed = replace(changed, entropy_coef=value)
            elif section in anchors and rest == "coef":
                moved_anchor = replace(anchors[section], coef=value)
                changed = replace(changed, anchors={**anchors, section: moved_anchor})
            elif section == "loss" and hasattr(getattr(losses.get(name), "options", None), option):
                moved = replace(losses[name].options, **{option: value})
                changed = replace(changed, losses={**losses, name: replace(losses[name], options=moved)})
            elif section == "token_advantage" and hasattr(
                getattr(transforms.get(name), "options", None), option
            ):
                moved = replace(transforms[name].options, **{option: value})
                changed = replace(
                    changed, transforms={**transforms, name: replace(transforms[name], options=moved)}
                )
            else:
                raise ValueError(f"setting must be a number of the objective, got {key!r}")
        return changed


def bound_objective(run: BoundRun) -> Objective:
    """What a run minimises, before controllers move anything."""
    config = run.config
    return Objective(
        losses=bound_losses(run),
        anchors={"kl": config.kl, "kl_base": config.kl_base},
        entropy_coef=config.entropy.coef,
        entropy_clamp=config.entropy.clamp,
        transforms=bound_transforms(run),
    )


def _inputs(scores: TokenScores, columns: TokenColumns, origin: str, chosen: Tensor) -> LossInputs:
    return LossInputs(
        policy_logprobs=scores.logprobs[chosen],
        entropy=scores.entropy[chosen],
        proximal_logprobs=columns.proximal_logprobs[chosen],
        behavior_logprobs=columns.behavior_logprobs[chosen],
        advantages=columns.advantages[chosen],
        rows=columns.rows[chosen],
        token_ids=columns.token_ids[chosen],
        positions=columns.positions[chosen],
        prepared=_prepared(columns, origin, chosen),
    )


def _prepared(columns: TokenColumns, place: str, chosen: Tensor) -> dict[str, Tensor]:
    """What the `prepare` of a loss or transform found, of the chosen tokens."""
    return {name: column[chosen] for name, column in columns.prepared.get(place, {}).items()}


def microbatch_loss(
    scores: TokenScores, columns: TokenColumns, objective: Objective
) -> tuple[Tensor, dict[str, float]]:
    """The microbatch's share of the loss (a scalar) and of the metrics (sums over microbatches and ranks)."""
    # An empty sum keeps a microbatch without loss tokens inside the graph, as ZeRO-3 needs; unlike zero times
    # the sum it is not NaN when a masked token has logprob -inf.
    total = scores.logprobs[:0].sum()
    sums: dict[str, float] = {}
    for origin, loss in objective.losses.items():
        present = columns.origins.get(origin)
        if present is None:
            continue
        chosen = present & (columns.weights > 0)
        weights = columns.weights[chosen]
        inputs = _inputs(scores, columns, origin, chosen)
        if ORIGINS[origin].transformed:
            found_by = {
                name: _prepared(columns, f"token_advantage.{name}", chosen) for name in objective.transforms
            }
            inputs, shaped = apply_transforms(inputs, objective.transforms, found_by)
            sums |= {f"mark/{origin}/{name}": float(mark.sum().item()) for name, mark in shaped.items()}
        found = loss.per_token(inputs)
        part = (weights * found.loss).sum()
        sums[f"loss/{origin}"] = part.item()
        sums[f"tokens/{origin}"] = float(chosen.sum().item())
        sums |= {f"mark/{origin}/{name}": float(mark.sum().item()) for name, mark in found.marks.items()}
        total = total + part
        if not ORIGINS[origin].transformed:
            continue
        for name, term in _terms(scores, columns, objective, origin, chosen, inputs.policy_logprobs):
            _add(sums, f"loss/{name}", term)
            total = total + term
        with torch.no_grad():
            if objective.entropy_clamp:
                _add(sums, "sum/entropy_clamped", scores.entropy_clamped[chosen].sum())
            drift = k3(inputs.proximal_logprobs, inputs.policy_logprobs)
        _add(sums, "sum/k3_proximal_vs_policy", drift.sum())
    sums["loss/total"] = total.item()
    return total, sums


def _add(sums: dict[str, float], name: str, value: Tensor) -> None:
    """Several origins may add to one sum."""
    sums[name] = sums.get(name, 0.0) + value.item()


def _terms(
    scores: TokenScores,
    columns: TokenColumns,
    objective: Objective,
    origin: str,
    chosen: Tensor,
    policy_logprobs: Tensor,
) -> Iterator[tuple[str, Tensor]]:
    """KL anchors and entropy bonus of the `chosen` tokens of `origin`: name and scalar of each.

    They are aggregated as the origin's loss is (`loss.policy.aggregate`), but its weight is not theirs, as in
    verl and TRL: it is a factor of the row weights, and taken out of them here.
    """
    weights = columns.weights[chosen] / objective.losses[origin].common.weight
    for section, anchor in objective.anchors.items():
        if anchor.coef > 0 and anchor.place == "loss":
            known = columns.anchor_logprobs[section][chosen]
            pull = ESTIMATORS[anchor.estimator](policy_logprobs, known)
            yield section, anchor.coef * (weights * pull).sum()
    if objective.entropy_coef:
        yield "entropy", -objective.entropy_coef * (weights * scores.entropy_clamped[chosen]).sum()
