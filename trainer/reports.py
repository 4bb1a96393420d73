"""Callbacks for the reports of a run: metrics, notes, events and phases. Passed in by `cluster.attempt`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """Functions called during a run. Steps are counted from 1 in all of them."""

    step: Callable[[Mapping[str, float]], None]
    """The metrics of a finished step."""
    note: Callable[[str], None]
    """A sentence for the user."""
    event: Callable[..., None] = lambda kind, **fields: None
    """A failure, recovery or resume: its kind and details. Shown to the user and written to events.jsonl."""
    record: Callable[..., None] = lambda kind, **fields: None
    """Like `event`, but only written, not shown."""
    scorer_log: Callable[[str], str] = lambda name: f"the log of scorer {name}"
    """The log file of a scorer, by its name."""
    phase: Callable[[int, str], None] = lambda step, name: None
    """The step and its current phase: generating, scoring, learning, publishing, committing, checkpointing,
    idle."""
