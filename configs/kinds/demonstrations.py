"""Demonstrations by name. A target is called as ``fn(options) -> list[Demonstration]``, on local files only.

The entry `sft.data` has `kind` beside its own options.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from configs.kinds.base import Kind


@dataclass
class LabDemonstrationOptions:
    """Solutions of the lab's training problems, written as its corpus writes them.

    The format shares are those that the base `voices` was trained on (lab/bases/voices.yaml). Unlike there,
    steps are right: a share of wrong ones has to be asked for, and is the same for all formats.
    """

    corpus_seed: int = 0
    """As in `data`: with another one, held-out problems would be shown."""
    num_rows: int = 4096
    error_rate: float = 0.0
    """Probability, per step, that the written result is wrong."""
    formats: dict[str, float] = field(
        default_factory=lambda: {"code": 0.4, "prose": 0.24, "symbolic": 0.19, "tagged": 0.17}
    )
    """Share of the rows by format, over the sum of all; a format that is not named has none."""


@dataclass
class FileDemonstrationOptions:
    """A .jsonl or .parquet file: `prompt` as in `data`, and `completion`, `response` or `demonstration`.

    Or `messages`: a chat whose last message, the assistant's, is what is shown.
    """

    path: str = ""
    domain: str = ""
    limit: int = 0


DEMONSTRATIONS: dict[str, Kind] = {
    "lab": Kind(LabDemonstrationOptions, "lab.corpus:load_demonstrations"),
    "file": Kind(FileDemonstrationOptions, "trainer.data.demonstrations:load_file"),
}
