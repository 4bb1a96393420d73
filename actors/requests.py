"""What the cluster says to actors, and they to it: plain records and errors, without torch or vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

LocalMicrobatches = Sequence[Sequence[Sequence[int]]]
"""[update][microbatch] -> row numbers within this rank's shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankUpdate:
    """What a rank needs beside its shard: one entry per shard row, one learning rate per update."""

    microbatches: LocalMicrobatches
    advantages_N: np.ndarray
    bonuses_N: np.ndarray
    """Added to the advantage of every token outside the row's answer."""
    row_weights_N: np.ndarray
    learning_rates: tuple[float, ...]
    settings: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the objective that a controller moved, by dotted config key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlace:
    """Where a rank stands in its group and how many CPU threads it may use."""

    rank: int
    world_size: int
    rendezvous: str
    """Where the ranks meet: file:///path on one machine (no socket that others could reach), else tcp://."""
    device: str
    num_threads: int


class EngineFailedError(RuntimeError):
    """A generator's engine broke; only another process with a new engine can go on. One text argument."""


class CallStuckError(RuntimeError):
    """A call went past its limit and cannot be stopped; only another process frees its place."""
