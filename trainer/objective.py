"""The objective of one microbatch: losses by origin, KL anchors and entropy bonus. Used by learner ranks.

Row weights come from `trainer.losses.normalize`. The sum of the returned loss over all microbatches and ranks
of an update is the update's loss, however its rows were divided. KL anchors and the entropy bonus are
aggregated like the policy loss, but without its weight.
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
    """Columns of T tokens that are known before the update's forward, [T] each.

    `weights` is the row's weight at loss tokens, else 0. Logprobs are in nats, NaN where not computed.
    """

    proximal_logprobs: Tensor
    behavior_logprobs: Tensor
    anchor_logprobs: Mapping[str, Tensor]
    """By the anchor's section of the config: `kl` (the reference), `kl_base` (the model of step 0)."""
    advantages: Tensor
    weights: Tensor
    rows: Tensor
    origins: Mapping[str, Tensor]
    """bool [T] for each origin in the microbatch."""
    token_ids: Tensor
    positions: Tensor
    """The token's position in its row's completion, from 0."""
    prepared: Mapping[str, Mapping[str, Tensor]]
    """The columns of each `prepare`: of a loss by origin, of a transform by token_advantage.<name>."""
    teacher: Tensor | None = None
    """[T, k + 1]: see `LossInputs`; rows without a teacher have 0. None in runs without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundLoss:
    """A loss kind with its options: `per_token(inputs, options)`."""

    common: LossCommon
    kind: Kind
    options: Any

    def per_token(self, inputs: LossInputs) -> TokenLoss:
        """The loss and its marks; a function that returns only the loss has no marks."""
        result = load_target(self.kind.target)(inputs, self.options)
        return result if isinstance(result, TokenLoss) else TokenLoss(loss=result, marks={})


def bound_losses(run: BoundRun) -> dict[str, BoundLoss]:
    """The losses of a run, by origin."""
    return {
        origin: BoundLoss(common=entry.common, kind=entry.kind, options=entry.options)
        for origin, entry in run.losses.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What an update minimises: losses by origin, plus KL anchors and entropy bonus on policy rows."""

    losses: Mapping[str, BoundLoss]
    anchors: Mapping[str, KLConfig]
    """By config section: `kl` and `kl_base`. Those of place loss are terms of the loss."""
    entropy_coef: float = 0.0
    entropy_clamp: float = 0.0
    """Share of the vocabulary that the bonus's entropy leaves out; above 0 this entropy is logged too."""
    transforms: Mapping[str, BoundTransform] = field(default_factory=dict)
    """Transforms of the policy rows' advantages, in order."""

    def with_settings(self, settings: Mapping[str, float]) -> Objective:
        """This objective with values set by controllers, by dotted config key.

        Keys are kl.coef, kl_base.coef, entropy.coef, loss.<origin>.<option> and
        token_advantage.<name>.<option>.

        Raises:
            ValueError: a key is not a number of the objective.
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
    """The objective of a run with the values of its config."""
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
        support=scores.support[chosen] if scores.support is not None else None,
        teacher=columns.teacher[chosen] if columns.teacher is not None else None,
    )


def _prepared(columns: TokenColumns, key: str, chosen: Tensor) -> dict[str, Tensor]:
    """The columns of a loss's or transform's `prepare` at the chosen tokens."""
    return {name: column[chosen] for name, column in columns.prepared.get(key, {}).items()}


def microbatch_loss(
    scores: TokenScores, columns: TokenColumns, objective: Objective
) -> tuple[Tensor, dict[str, float]]:
    """The microbatch's part of the loss (a scalar), and metric sums to add over microbatches and ranks."""
    # An empty sum keeps a microbatch without loss tokens in the graph, as ZeRO-3 needs. Unlike zero times the
    # sum, it is not NaN when a masked token has logprob -inf.
    total = scores.logprobs[:0].sum()
    if scores.support is not None:
        total = total + scores.support[:0].sum()
    sums: dict[str, float] = {}
    for origin in objective.losses:
        if origin in columns.origins:
            for term in _origin_terms(scores, columns, objective, origin, sums):
                total = total + term
    sums["loss/total"] = total.item()
    return total, sums


def _origin_terms(
    scores: TokenScores, columns: TokenColumns, objective: Objective, origin: str, sums: dict[str, float]
) -> Iterator[Tensor]:
    """The loss terms of one origin's tokens, a scalar each; their metrics are added to `sums`."""
    # A weight of 0 is not enough: the loss of a masked token may be infinite, and 0 x inf is NaN.
    chosen = columns.origins[origin] & (columns.weights > 0)
    inputs = _inputs(scores, columns, origin, chosen)
    if ORIGINS[origin].transformed:
        prepared = {
            name: _prepared(columns, f"token_advantage.{name}", chosen) for name in objective.transforms
        }
        inputs, marks = apply_transforms(inputs, objective.transforms, prepared)
        _count_marks(sums, origin, marks)
    token_loss = objective.losses[origin].per_token(inputs)
    weighted = (columns.weights[chosen] * token_loss.loss).sum()
    sums[f"loss/{origin}"] = weighted.item()
    sums[f"tokens/{origin}"] = float(chosen.sum().item())
    _count_marks(sums, origin, token_loss.marks)
    yield weighted
    if not ORIGINS[origin].transformed:
        return
    for name, term in _regularizers(scores, columns, objective, origin, chosen, inputs.policy_logprobs):
        _add(sums, f"loss/{name}", term)
        yield term
    with torch.no_grad():
        if objective.entropy_clamp:
            _add(sums, "sum/entropy_clamped", scores.entropy_clamped[chosen].sum())
        drift = k3(inputs.proximal_logprobs, inputs.policy_logprobs)
    _add(sums, "sum/k3_proximal_vs_policy", drift.sum())


def _count_marks(sums: dict[str, float], origin: str, marks: Mapping[str, Tensor]) -> None:
    """The number of marked tokens, as mark/<origin>/<mark>."""
    sums |= {f"mark/{origin}/{name}": float(mark.sum().item()) for name, mark in marks.items()}


def _add(sums: dict[str, float], name: str, value: Tensor) -> None:
    """Add to a sum that several origins share."""
    sums[name] = sums.get(name, 0.0) + value.item()


def _regularizers(
    scores: TokenScores,
    columns: TokenColumns,
    objective: Objective,
    origin: str,
    chosen: Tensor,
    policy_logprobs: Tensor,
) -> Iterator[tuple[str, Tensor]]:
    """KL anchors and entropy bonus on the `chosen` tokens of `origin`: name and scalar of each.

    They are aggregated like the origin's loss (`loss.policy.aggregate`). As in verl and TRL, the loss's
    weight does not apply to them: it is a factor of the row weights, and divided out here.
    """
    weights = columns.weights[chosen] / objective.losses[origin].common.weight
    for section, anchor in objective.anchors.items():
        if anchor.coef > 0 and anchor.place == "loss":
            reference = columns.anchor_logprobs[section][chosen]
            penalty = ESTIMATORS[anchor.estimator](policy_logprobs, reference)
            yield section, anchor.coef * (weights * penalty).sum()
    if objective.entropy_coef:
        yield "entropy", -objective.entropy_coef * (weights * scores.entropy_clamped[chosen]).sum()
