"""Clip-Cov and KL-Cov in a real learner: kinds that note what they selected, and a plain run beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learner_cases import LR, MAX_GRAD_NORM, NUM_UPDATES, WEIGHT_DECAY, Case, with_policy_loss
from plain_reference import (
    all_logprobs,
    group_advantages,
    load_model,
    make_optimizer,
    row_logprobs,
    take_update,
    weights_of,
)
from reference_covariance import Token, clip_cov_choice, kl_cov_choice
from torch import Tensor

from configs.bound import BoundRun
from configs.kinds.base import Kind, load_target
from configs.kinds.losses import LOSSES, ClipCovOptions, KlCovOptions
from configs.schema import RunConfig
from trainer.losses.batch_statistics import Prepared
from trainer.losses.per_token import LossInputs, TokenLoss

OPTIONS = {
    "clip_cov": ClipCovOptions(fraction=0.05, lower=0.02, upper=0.3, clip_low=0.2, clip_high=0.2),
    "kl_cov": KlCovOptions(fraction=0.1, beta=2.0),
}
Key = tuple[str, int]
TABLES: list[list[Token]] = []
"""The table of each update that this process prepared, with what was selected of it."""
LEARNED: list[int] = []
"""Numbers, in their tables, of the selected tokens that this process was given to learn."""


def take_seen() -> tuple[list[list[Token]], list[int]]:
    """What this process saw since the last call."""
    seen = (TABLES.copy(), LEARNED.copy())
    TABLES.clear()
    LEARNED.clear()
    return seen


def select(columns: Mapping[str, np.ndarray], options: Any) -> Prepared:
    """The kind's own choice, noted."""
    name = "clip_cov" if isinstance(options, ClipCovOptions) else "kl_cov"
    found: Prepared = load_target(LOSSES[name].prepare)(columns, options)
    names = ("sample_id", "position", "policy_logprobs", "proximal_logprobs", "advantage", "draw")
    rows = zip(*(columns[key].tolist() for key in names), found.columns["selected"].tolist(), strict=True)
    keys = ("sample_id", "position", "logp", "old", "advantage", "draw", "selected")
    TABLES.append([dict(zip(keys, row, strict=True)) for row in rows])
    number = np.arange(len(columns["draw"]))
    return Prepared(columns={**found.columns, "number": number}, stats=found.stats)


def per_token(inputs: LossInputs, options: Any) -> TokenLoss:
    """The kind's own loss; what it was told is noted."""
    name = "clip_cov" if isinstance(options, ClipCovOptions) else "kl_cov"
    LEARNED.extend(inputs.prepared["number"][inputs.prepared["selected"]].tolist())
    found: TokenLoss = load_target(LOSSES[name].target)(inputs, options)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class CovarianceCase(Case):
    """A case whose kind is clip_cov or kl_cov, two updates per step."""

    kind: str = "kl_cov"
    updates_per_step: int = 2

    def bound(self, config: RunConfig) -> BoundRun:
        """The kind with options of a tiny model, and with eyes."""
        options = OPTIONS[self.kind]
        kind = Kind(type(options), "covariance_cases:per_token", "covariance_cases:select")
        return with_policy_loss(Case.bound(self, config), kind, options)


@dataclass(slots=True, kw_only=True)
class Plain:
    """What plain torch makes of one step: per update its loss, norm and selected tokens; then the weights."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    chosen: list[set[Key]] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)


def choose(kind: str, tokens: Sequence[Token]) -> set[Key]:
    """The scalar loop's choice under the options above."""
    if kind == "kl_cov":
        return kl_cov_choice(tokens, 0.1)
    return clip_cov_choice(tokens, 0.05, (0.02, 0.3), (0.8, 1.2))


def token_losses(kind: str, logp: Tensor, old: Tensor, advantage: float, chosen: Tensor) -> Tensor:
    """The loss of one row's tokens, from the paper's equations."""
    r = torch.exp(logp - old)
    if kind == "kl_cov":
        return -r * advantage + 2.0 * (logp - old).abs() * chosen
    return torch.maximum(-r * advantage, -r.clamp(0.8, 1.2) * advantage) * ~chosen


def train_plainly(
    base: Path,
    rows: Sequence[Mapping[str, Any]],
    kind: str,
    updates: Sequence[Sequence[int]],
    draws: Mapping[Key, float],
) -> Plain:
    """The first step's updates in plain torch, one row at a time; `updates` are numbers of groups."""
    torch.set_num_threads(1)
    model = load_model(base)
    optimizer = make_optimizer(model, LR / NUM_UPDATES, WEIGHT_DECAY)
    advantages, result = group_advantages(rows), Plain()
    names = list(dict.fromkeys(row["group_id"] for row in rows))
    with torch.no_grad():
        old = all_logprobs(model, rows)
    for members in updates:
        wanted = {names[place] for place in members}
        mine = [row for row in rows if row["group_id"] in wanted and row["sample_id"] in advantages]
        with torch.no_grad():
            tokens = list_tokens(mine, all_logprobs(model, mine), old, advantages, draws)
        chosen = choose(kind, tokens)
        total = torch.zeros(())
        for row in mine:
            name, mask = row["sample_id"], torch.tensor(row["loss_mask"])
            hit = torch.tensor([(name, k) in chosen for k in range(len(row["token_ids"]))])
            per_row = token_losses(kind, row_logprobs(model, row), old[name], advantages[name], hit)
            total = total + per_row[mask].sum()
        loss = total / len(tokens)
        result.norms.append(take_update(model, optimizer, loss, MAX_GRAD_NORM))
        result.losses.append(loss.item())
        result.chosen.append(chosen)
    result.weights = weights_of(model)
    return result


def list_tokens(
    rows: Sequence[Mapping[str, Any]],
    now: Mapping[str, Tensor],
    old: Mapping[str, Tensor],
    advantages: Mapping[str, float],
    draws: Mapping[Key, float],
) -> list[Token]:
    """The learned tokens of the rows."""
    return [
        {
            "sample_id": (name := row["sample_id"]),
            "position": k,
            "logp": now[name][k].item(),
            "old": old[name][k].item(),
            "advantage": advantages[name],
            "draw": draws[name, k],
        }
        for row in rows
        for k, learned in enumerate(row["loss_mask"])
        if learned
    ]
