"""HICRA: a larger advantage on planning tokens, which are inside a strategic n-gram; and a random control."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from configs.kinds.token_advantages import HicraOptions
from trainer.label_entropy import entropy_of
from trainer.losses.batch_statistics import Prepared
from trainer.losses.per_token import LossInputs
from trainer.token_advantages.strategic_ngrams import Grams, find_grams, load_grams
from trainer.token_advantages.transforms import TokenTransform


def hicra(inputs: LossInputs, options: HicraOptions) -> TokenTransform:
    """A' = A + alpha |A| on planning tokens, else A. [T] -> [T]

    HICRA, arXiv 2509.03646. `mark_planning` finds these tokens before the update.
    """
    planning = inputs.prepared["planning"].bool()
    bonus = torch.where(planning, options.alpha * inputs.advantages.abs(), 0.0)
    return TokenTransform(advantages=inputs.advantages + bonus, marks={"planning": planning})


def mark_planning(columns: Mapping[str, np.ndarray], options: HicraOptions) -> Prepared:
    """The tokens inside an n-gram of the file; with `mask: random` as many random tokens of each row.

    Stats, always for the mined mask: the share of planning tokens, the entropy (nats) of the frequencies of
    the n-grams found, and the mean token entropy inside and outside of them, before this step's updates.
    """
    grams = read_grams(options.path)
    row = np.unique(columns["sample_id"], return_inverse=True)[1]
    ends = segment_ends(row, columns["position"])
    mined, matches = find_grams(columns["token_ids"], ends, grams.documents)
    stats = {"strategy_entropy": entropy_of(matches)}
    for name, where in (("planning_entropy", mined), ("execution_entropy", ~mined)):
        if where.any():
            stats[name] = float(columns["entropy"][where].astype(np.float64).mean())
    if len(mined):
        stats["planning_share"] = float(mined.mean())
    masks = {"mined": lambda: mined, "random": lambda: random_mask_like(row, mined, columns["draw"])}
    return Prepared(columns={"planning": masks[options.mask]()}, stats=stats)


def segment_ends(row: np.ndarray, position: np.ndarray) -> np.ndarray:
    """The exclusive end [T] of each token's segment: consecutive positions of one row. [T], [T] -> [T]"""
    breaks = np.flatnonzero((np.diff(row) != 0) | (np.diff(position) != 1)) + 1
    bounds = np.append(breaks, len(row))
    return bounds[np.searchsorted(bounds, np.arange(len(row)), side="right")]


def random_mask_like(row: np.ndarray, mask: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """A random mask with as many tokens of each row as `mask` has. [T], [T], [T] -> bool [T]"""
    # The lower bits of the draws, because Clip-Cov selects by the upper ones: the masks stay independent.
    fresh = np.modf(draw * 2.0**20)[0]
    order = np.lexsort((fresh, row))
    counts = np.bincount(row)
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(row), np.bool_)
    chosen[order] = place < np.bincount(row, mask)[row[order]]
    return chosen


def locate_grams(options: HicraOptions) -> HicraOptions:
    """Check the file of `options`, and make its path absolute for ranks with another working directory.

    Raises:
        ValueError: the file is missing or damaged; see
            `trainer.token_advantages.strategic_ngrams.load_grams`.
    """
    path = Path(options.path).resolve()
    load_grams(path)
    return replace(options, path=str(path))


def read_grams(path: str) -> Grams:
    """The n-grams of a file, cached until the file changes. Raises like `load_grams`."""
    # The time of change is part of the key of the cache.
    return _read_once(path, os.stat(path).st_mtime_ns)


@lru_cache(maxsize=4)
def _read_once(path: str, _modified_ns: int) -> Grams:
    return load_grams(Path(path))
