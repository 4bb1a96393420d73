"""Records and errors that pass between `cluster` and the actors; no torch, no vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

LocalMicrobatches = Sequence[Sequence[Sequence[int]]]
"""[update][microbatch] -> row numbers within this rank's shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankUpdate:
    """What `LearnerRank.update` needs beside the shard: an entry per row, a learning rate per update."""

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
    """A rank's place in its process group, its device and its CPU threads."""

    rank: int
    world_size: int
    rendezvous: str
    """The init_method of the process group: file:///path on one machine (opens no socket), else tcp://."""
    device: str
    num_threads: int


class EngineFailedError(RuntimeError):
    """A generator's engine failed; a new process must replace it. One text argument, so that it pickles."""


class CallStuckError(RuntimeError):
    """A call exceeded its limit and cannot be stopped; replacing the process frees its slot."""
