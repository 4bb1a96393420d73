"""The tokens of rows laid end to end: of a microbatch for its losses, of an update for batch statistics.

Used by learner ranks. What is learned is told by `weights`: the row's weight at its loss tokens, else 0, so
tokens that no policy sampled reach neither a loss nor a statistic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from trainer.credit.credit import ANCHOR_COLUMNS
from trainer.losses.batch_statistics import Prepared, TokenTable
from trainer.model.rows import RankRows, token_advantages
from trainer.objective import TokenColumns
from trainer.seeds import derive_seed

Scored = Mapping[str, Sequence[np.ndarray]]
"""By name one array per row, over its completion's tokens."""


class RowCredit(Protocol):
    """What a rank is told of its rows, [N] each: see `actors.requests.RankUpdate`."""

    @property
    def advantages_N(self) -> np.ndarray: ...

    @property
    def bonuses_N(self) -> np.ndarray: ...

    @property
    def row_weights_N(self) -> np.ndarray: ...


def token_columns(
    rows: RankRows,
    scored: Scored,
    credit: RowCredit,
    chosen: Sequence[int],
    prepared: Mapping[str, Mapping[str, np.ndarray]],
    device: torch.device,
) -> TokenColumns:
    """The tokens of the rows `chosen` in their order; `prepared` has columns for the same tokens."""
    counts = np.array([len(rows.tokens[row]) for row in chosen], np.int64)

    def flat(parts: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0)).to(device)

    def tensor(parts: Sequence[np.ndarray]) -> Tensor:
        return flat(parts).float()

    def known(name: str) -> Tensor:
        if name in scored:
            return tensor([scored[name][row] for row in chosen])
        return torch.full((int(counts.sum()),), float("nan"), device=device)

    origins = rows.origins[list(chosen)] if len(chosen) else np.zeros(0, object)
    return TokenColumns(
        proximal_logprobs=known("proximal_logprobs"),
        behavior_logprobs=tensor([rows.behavior_logprobs[row] for row in chosen]),
        anchor_logprobs={
            section: known(column) for section, column in ANCHOR_COLUMNS.items() if column in scored
        },
        advantages=tensor([_advantages(rows, credit, row) for row in chosen]),
        weights=tensor([_weights(rows, credit, row) for row in chosen]),
        rows=torch.from_numpy(np.repeat(np.arange(len(chosen)), counts)).to(device),
        token_ids=flat([rows.tokens[row] for row in chosen]).long(),
        positions=flat([np.arange(count) for count in counts]).long(),
        origins={
            str(name): torch.from_numpy(np.repeat(origins == name, counts)).to(device)
            for name in set(origins.tolist())
        },
        prepared={
            place: {name: torch.from_numpy(values).to(device) for name, values in columns.items()}
            for place, columns in prepared.items()
        },
    )


def cut_prepared(prepared: Mapping[str, Prepared], tokens: slice) -> dict[str, dict[str, np.ndarray]]:
    """The columns of `prepared` for these tokens of the update's local ones."""
    return {
        place: {name: values[tokens] for name, values in found.columns.items()}
        for place, found in prepared.items()
    }


def token_table(
    rows: RankRows, scored: Scored, credit: RowCredit, order: Sequence[int], seed: int
) -> TokenTable:
    """The columns that `configs.kinds.base.Kind.prepare` names, for the rows of `order` laid end to end."""
    counts = [len(rows.tokens[row]) for row in order]

    def flat(values: Mapping[int, np.ndarray] | Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([values[row] for row in order]) if order else np.zeros(0)

    return {
        "sample_id": np.repeat(np.array([rows.sample_ids[row] for row in order], dtype=np.str_), counts),
        "position": flat({row: np.arange(len(rows.tokens[row])) for row in order}).astype(np.int64),
        "token_ids": flat(rows.tokens).astype(np.int64),
        "origin": np.repeat(np.array([rows.origins[row] for row in order], dtype=np.str_), counts),
        "weight": flat({row: _weights(rows, credit, row) for row in order}),
        "advantage": flat({row: _advantages(rows, credit, row) for row in order}),
        "behavior_logprobs": flat(rows.behavior_logprobs),
        "draw": flat({row: _draws(seed, rows.sample_ids[row], rows.loss_masks[row]) for row in order}),
        **{name: flat(values) for name, values in scored.items()},
    }


def _weights(rows: RankRows, credit: RowCredit, row: int) -> np.ndarray:
    """[T] of one row: its weight at loss tokens, else 0."""
    weights: np.ndarray = rows.loss_masks[row] * credit.row_weights_N[row]
    return weights


def _advantages(rows: RankRows, credit: RowCredit, row: int) -> np.ndarray:
    """[T] of one row: its advantage, with its bonus on the tokens outside its answer."""
    return token_advantages(credit.advantages_N[row], credit.bonuses_N[row], rows.answer_masks[row])


def _draws(seed: int, sample_id: str, loss_mask: np.ndarray) -> np.ndarray:
    """[T] uniform numbers in [0, 1) for the loss tokens of a sample, equal on every rank and in every call.

    Other tokens have 0, so that tokens of an environment change no other token's draw.
    """
    draws = np.zeros(len(loss_mask))
    draws[loss_mask] = np.random.default_rng(derive_seed(seed, "draw", sample_id)).random(loss_mask.sum())
    return draws
