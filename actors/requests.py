"""Records and errors that pass between `cluster` and the actors. Imports no torch and no vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

LocalMicrobatches = Sequence[Sequence[Sequence[int]]]
"""[update][microbatch] -> row numbers within this rank's shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankUpdate:
    """What `LearnerRank.update` needs besides the shard: arrays [rows], and a learning rate per update."""

    microbatches: LocalMicrobatches
    advantages_N: np.ndarray
    bonuses_N: np.ndarray
    """Added to the advantage of every token outside the row's answer."""
    row_weights_N: np.ndarray
    learning_rates: tuple[float, ...]
    settings: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the objective that a controller has changed, by dotted config key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlace:
    """A rank's place in its process group, its device and its CPU threads."""

    rank: int
    world_size: int
    rendezvous: str
    """`init_method` of the process group: file:///path on one machine (opens no socket), else tcp://."""
    device: str
    num_threads: int


class EngineFailedError(RuntimeError):
    """A generator's engine failed; a new process must replace it.

    Takes one text argument, so that Ray can pickle it.
    """


class CallStuckError(RuntimeError):
    """A call exceeded its limit and cannot be stopped; the process must be replaced to free its place."""
