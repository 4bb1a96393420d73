"""The tokens of rows, concatenated: of a microbatch for its losses, of an update for batch statistics.

Used by learner ranks. `weights` marks what is learned: the row's weight at its loss tokens, else 0. So tokens
that no policy sampled are in neither a loss nor a statistic.
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
"""By column name: one array per row, over its completion's tokens."""


class RowCredit(Protocol):
    """The credit and weights of a rank's rows, [N] each: see `actors.requests.RankUpdate`."""

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
    """The tokens of the rows `chosen`, in that order, as tensors on `device`.

    `scored` are the learner's columns of all the rank's rows; `prepared` has columns for the chosen tokens.
    """
    counts = np.array([len(rows.tokens[row]) for row in chosen], np.int64)

    def floats(parts: Sequence[np.ndarray]) -> Tensor:
        return _concatenated(parts, device).float()

    def score(name: str) -> Tensor:
        if name in scored:
            return floats([scored[name][row] for row in chosen])
        # NaN and not 0: a loss that reads what was not scored must fail and not train on a number.
        return torch.full((int(counts.sum()),), float("nan"), device=device)

    return TokenColumns(
        proximal_logprobs=score("proximal_logprobs"),
        behavior_logprobs=floats([rows.behavior_logprobs[row] for row in chosen]),
        anchor_logprobs={
            section: score(column) for section, column in ANCHOR_COLUMNS.items() if column in scored
        },
        advantages=floats([_advantages(rows, credit, row) for row in chosen]),
        weights=floats([_weights(rows, credit, row) for row in chosen]),
        rows=torch.from_numpy(np.repeat(np.arange(len(chosen)), counts)).to(device),
        token_ids=_concatenated([rows.tokens[row] for row in chosen], device).long(),
        positions=_concatenated([np.arange(count) for count in counts], device).long(),
        origins=_origin_masks(rows, chosen, counts, device),
        prepared={
            key: {name: torch.from_numpy(values).to(device) for name, values in columns.items()}
            for key, columns in prepared.items()
        },
    )


def _concatenated(parts: Sequence[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0)).to(device)


def _origin_masks(
    rows: RankRows, chosen: Sequence[int], counts: np.ndarray, device: torch.device
) -> dict[str, Tensor]:
    """bool [T] for each origin among the rows `chosen`; `counts` are their numbers of tokens."""
    origins = rows.origins[list(chosen)] if len(chosen) else np.zeros(0, object)
    return {
        str(name): torch.from_numpy(np.repeat(origins == name, counts)).to(device)
        for name in set(origins.tolist())
    }


def cut_prepared(prepared: Mapping[str, Prepared], tokens: slice) -> dict[str, dict[str, np.ndarray]]:
    """The columns of `prepared` for a slice of the rank's tokens of the update."""
    return {
        key: {name: values[tokens] for name, values in result.columns.items()}
        for key, result in prepared.items()
    }


def token_table(
    rows: RankRows, scored: Scored, credit: RowCredit, order: Sequence[int], seed: int
) -> TokenTable:
    """The input of `prepare` (columns: see `configs.kinds.base.Kind.prepare`) for the rows of `order`."""
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
    """[T] of one row: the row's weight at loss tokens, else 0."""
    weights: np.ndarray = rows.loss_masks[row] * credit.row_weights_N[row]
    return weights


def _advantages(rows: RankRows, credit: RowCredit, row: int) -> np.ndarray:
    """[T] of one row: its advantage, plus its bonus at tokens outside its answer."""
    return token_advantages(credit.advantages_N[row], credit.bonuses_N[row], rows.answer_masks[row])


def _draws(seed: int, sample_id: str, loss_mask: np.ndarray) -> np.ndarray:
    """[T] uniform numbers in [0, 1) for the loss tokens of a sample, 0 elsewhere.

    They depend on seed and sample only, so they are equal on every rank and in every call.
    """
    # Only loss tokens draw: inserted environment tokens must not change the draws of the others.
    draws = np.zeros(len(loss_mask))
    draws[loss_mask] = np.random.default_rng(derive_seed(seed, "draw", sample_id)).random(loss_mask.sum())
    return draws
