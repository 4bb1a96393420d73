"""Padded microbatches from rows of different lengths, and the plan of which rank computes which row when.

Shape letters used everywhere: G completions in a group, N sequences, B rows of a microbatch, D hidden size, V
vocabulary, T token positions (for a column named ``_T`` alone: the completion tokens of all rows,
concatenated).

The driver makes one `BatchPlan` per step from lengths alone. Ranks build `Microbatch`es from their shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.step_records import BatchPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Microbatch:
    """Padded rows and, for each completion token, where its prediction comes from.

    Token k is predicted by the hidden state at [source_rows_T[k], source_positions_T[k]].
    """

    ids_BT: Tensor
    attention_BT: Tensor
    positions_BT: Tensor
    source_rows_T: Tensor
    source_positions_T: Tensor
    targets_T: Tensor
    tau_T: Tensor
    support_Tk: Tensor | None = None
    """Token ids whose logprobs are wanted as well; see `trainer.losses.logprobs.TokenScores`."""
    top_k: int = 0
    """Without a support: the number of most likely tokens to take as one, in a forward without gradient."""


def split_rows(rows: Sequence[int], lengths_N: np.ndarray, max_tokens: int) -> list[tuple[int, ...]]:
    """Cut rows, longest first, into microbatches of one row or of at most `max_tokens` padded tokens."""
    # Sorting by length keeps padding small; the row number breaks ties, so every run cuts alike.
    ordered = sorted(rows, key=lambda row: (-int(lengths_N[row]), row))
    cuts: list[tuple[int, ...]] = []
    current: list[int] = []
    for row in ordered:
        longest = int(lengths_N[current[0]]) if current else int(lengths_N[row])
        if current and longest * (len(current) + 1) > max_tokens:
            cuts.append(tuple(current))
            current = []
        current.append(row)
    if current:
        cuts.append(tuple(current))
    return cuts


def deal_rows(rows: Sequence[int], lengths_N: np.ndarray, num_ranks: int) -> list[list[int]]:
    """Balance tokens over ranks: rows go, longest first, to the rank with the fewest tokens so far."""
    per_rank: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for row in sorted(rows, key=lambda row: (-int(lengths_N[row]), row)):
        lightest = min(range(num_ranks), key=lambda rank: (loads[rank], rank))
        per_rank[lightest].append(row)
        loads[lightest] += int(lengths_N[row])
    return per_rank


def plan_batch(
    lengths_N: np.ndarray, update_N: np.ndarray, num_updates: int, num_ranks: int, microbatch_tokens: int
) -> BatchPlan:
    """Plan a step. `lengths_N` are prompt plus completion tokens, `update_N` is each row's update (from 0).

    `microbatch_tokens` limits the padded tokens of a microbatch, unless a single row is longer.
    """
    per_rank: list[list[tuple[tuple[int, ...], ...]]] = [[] for _ in range(num_ranks)]
    for update in range(num_updates):
        rows = [int(row) for row in np.flatnonzero(update_N == update)]
        cuts = [
            split_rows(mine, lengths_N, microbatch_tokens) for mine in deal_rows(rows, lengths_N, num_ranks)
        ]
        # ZeRO-3 gathers weights in every forward, so all ranks must run the same number of them.
        most = max(1, *(len(cut) for cut in cuts))
        for rank, cut in enumerate(cuts):
            per_rank[rank].append(tuple(cut + [()] * (most - len(cut))))
    return BatchPlan(microbatches=tuple(tuple(updates) for updates in per_rank))


def build_microbatch(
    prompts: Sequence[np.ndarray], completions: Sequence[np.ndarray], tau_B: np.ndarray, device: torch.device
) -> Microbatch:
    """Pad rows on the right and index their completion tokens.

    `tau_B` is each row's temperature. Without rows, one dummy row without completion tokens is made, so that
    the rank can still take part in the forward.
    """
    if not prompts:
        prompts, completions, tau_B = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)], np.ones(1)
    starts = np.array([len(prompt) for prompt in prompts])
    counts = np.array([len(completion) for completion in completions])
    assert starts.min() > 0, "a row needs at least one prompt token to predict from"
    totals = starts + counts
    width = int(totals.max())
    ids = np.zeros((len(prompts), width), np.int64)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids[row, : starts[row]] = prompt
        ids[row, starts[row] : totals[row]] = completion
    columns = np.arange(width)
    rows_T = np.repeat(np.arange(len(prompts)), counts)
    # 0, 1, 2, ... within each row, without a loop over rows.
    offsets_T = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    positions_T = np.repeat(starts, counts) + offsets_T
    return Microbatch(
        ids_BT=torch.from_numpy(ids).to(device),
        attention_BT=torch.from_numpy((columns < totals[:, None]).astype(np.int64)).to(device),
        # Copied: `broadcast_to` returns a read-only view, which a tensor must not share.
        positions_BT=torch.from_numpy(np.broadcast_to(columns, ids.shape).copy()).to(device),
        source_rows_T=torch.from_numpy(rows_T).to(device),
        # A token is predicted by the hidden state before it.
        source_positions_T=torch.from_numpy(positions_T - 1).to(device),
        targets_T=torch.from_numpy(ids[rows_T, positions_T]).to(device),
        tau_T=torch.from_numpy(np.repeat(np.asarray(tau_B, np.float32), counts)).to(device),
    )
