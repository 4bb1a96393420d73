"""Where a run reports: a line per step, notes, events and phases. Passed in by `cluster.attempt`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """Functions that are called as a run goes on. Steps are counted from 1 in all of them."""

    step: Callable[[Mapping[str, float]], None]
    note: Callable[[str], None]
    event: Callable[..., None] = lambda kind, **fields: None
    """Something went wrong, was mended or resumed: a kind and what there is to say."""
    record: Callable[..., None] = lambda kind, **fields: None
    """What belongs in the run's record but is not to be told: as `event`."""
    scorer_log: Callable[[str], str] = lambda name: f"the log of scorer {name}"
    """The log file of a scorer, by its name."""
    phase: Callable[[int, str], None] = lambda step, name: None
    """The step and what the run does now: generating, scoring, learning, publishing, committing,
    checkpointing, idle."""
