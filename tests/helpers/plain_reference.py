"""Policy-gradient training written from the equations: full logits, one row at a time, torch's own AdamW.

Shares no code with the trainer or the learner, so that agreement between the two means something.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

ADAM_EPS = 1.0e-5
"""Adam's eps here and in the learners compared. Adam divides a gradient by its own size plus eps.

At the usual 1e-8, rounding of 1e-9 moves a weight whose first gradient is about as small as eps by 5 % of the
learning rate. One such weight then decides the distance between two correct runs.
"""


def load_model(folder: Path) -> PreTrainedModel:
    """The model in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def row_logprobs(model: PreTrainedModel, row: Mapping[str, Any]) -> Tensor:
    """log p(token | prompt, tokens before) of the completion's tokens at the row's temperature, [T]."""
    prompt, tokens = row["prompt_ids"], row["token_ids"]
    logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    logp = torch.log_softmax(logits / row["temperature"], dim=-1)
    return logp[torch.arange(len(tokens)), torch.tensor(tokens, dtype=torch.long)]


def all_logprobs(model: PreTrainedModel, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """By sample_id."""
    return {row["sample_id"]: row_logprobs(model, row) for row in rows}


def group_advantages(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """(r - mean) / (std + 1e-6) over the rewards of each group, by sample_id; no entry without a reward."""
    advantages: dict[str, float] = {}
    for group in {row["group_id"] for row in rows}:
        valid = [row for row in rows if row["group_id"] == group and row["reward"] is not None]
        rewards = torch.tensor([row["reward"] for row in valid], dtype=torch.float64)
        values = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        advantages |= {row["sample_id"]: float(value) for row, value in zip(valid, values, strict=True)}
    return advantages


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What training does; `learning_rates` has one entry per step."""

    learning_rates: tuple[float, ...]
    weight_decay: float
    max_grad_norm: float
    aggregate: str
    kl_coef: float
    groups_of_update: tuple[tuple[int, ...], ...]
    """Which groups of a step, by place, make up each of its updates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One entry per update, and the weights after the last."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]


def make_optimizer(model: PreTrainedModel, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices alone."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.99), eps=ADAM_EPS)


def take_update(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, loss: Tensor, max_grad_norm: float
) -> float:
    """One update; the gradient's norm before it was clipped."""
    optimizer.zero_grad()
    loss.backward()
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm))
    optimizer.step()
    return norm


def weights_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Copies of the parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def update_loss(
    model: PreTrainedModel,
    rows: Sequence[Mapping[str, Any]],
    advantages: Mapping[str, float],
    proximal: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    recipe: Recipe,
) -> Tensor:
    """Mean over tokens (or over rows of their means) of -min(r A, clip(r, 0.8, 1.2) A) + kl_coef k3."""
    total, num_tokens, num_rows = torch.zeros(()), 0, 0
    for row in rows:
        if row["sample_id"] not in advantages or not any(row["loss_mask"]):
            continue
        logp, advantage = row_logprobs(model, row), advantages[row["sample_id"]]
        ratio = torch.exp(logp - proximal[row["sample_id"]])
        loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        log_ratio = reference[row["sample_id"]] - logp
        loss = loss + recipe.kl_coef * (torch.exp(log_ratio) - 1 - log_ratio)
        learned = loss[torch.tensor(row["loss_mask"])]
        total = total + (learned.sum() if recipe.aggregate == "token_mean" else learned.mean())
        num_tokens, num_rows = num_tokens + len(learned), num_rows + 1
    return total / (num_tokens if recipe.aggregate == "token_mean" else num_rows)


def train_plainly(folder: Path, steps: Sequence[pa.RecordBatch], recipe: Recipe) -> Trained:
    """All updates of all steps, one rank, no microbatches."""
    torch.set_num_threads(1)  # the ranks have the other cores, and these matrices are too small to share
    model, frozen = load_model(folder), load_model(folder)
    optimizer = make_optimizer(model, recipe.learning_rates[0], recipe.weight_decay)
    losses, norms = [], []
    for batch, rate in zip(steps, recipe.learning_rates, strict=True):
        rows = batch.to_pylist()
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.no_grad():
            proximal = all_logprobs(model, rows)
            reference = proximal if recipe.kl_coef == 0 else all_logprobs(frozen, rows)
        names = list(dict.fromkeys(row["group_id"] for row in rows))
        for members in recipe.groups_of_update:
            chosen = {names[place] for place in members}
            mine = [row for row in rows if row["group_id"] in chosen]
            loss = update_loss(model, mine, group_advantages(rows), proximal, reference, recipe)
            norms.append(take_update(model, optimizer, loss, recipe.max_grad_norm))
            losses.append(loss.item())
    return Trained(losses=losses, norms=norms, weights=weights_of(model))
