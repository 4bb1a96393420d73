"""A listener and a reporter for a series of runs that keep everything they receive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster.job import Reporter


@dataclass
class Recorder:
    """A listener and a reporter that keep what they are given."""

    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    def reporter(self, index: int) -> Reporter:
        return self

    def begins(self, index: int) -> None:
        self.notes.append(f"run {index}")

    def finished(self, index: int, run_dir: Path) -> None:
        self.folders.append(run_dir)

    def failed(self, index: int, reason: str) -> None:
        self.failures.append(reason)

    def header(self, *, run_dir: Path, model: str, num_parameters: int = 0) -> None:
        self.notes.append(f"header {run_dir.name} {num_parameters}")

    def step(self, metrics: Mapping[str, float]) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def phase(self, step: int, name: str) -> None: ...
