"""Demonstrations by name. A target is called as ``fn(options) -> list[Demonstration]``, on local files only.

The entry `sft.data` has `kind` beside its own options.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from configs.errors import Broken
from configs.fields import NOT_EMPTY, NOT_NEGATIVE, POSITIVE, SHARE, option
from configs.kinds.base import Kind, Options, RunView
from configs.origins import SFT


@dataclass
class LabDemonstrationOptions(Options):
    """Solutions of the lab's training problems, written as its corpus writes them.

    The format shares are those that the base `voices` was trained on (lab/bases/voices.yaml). Unlike there,
    steps are right: set `error_rate` for a share of wrong ones, the same for all formats.
    """

    corpus_seed: int = 0
    """As in `data`: with another one, held-out problems would be demonstrated."""
    num_rows: int = option(4096, POSITIVE)
    """Number of demonstrations."""
    error_rate: float = option(0.0, SHARE)
    """Probability, per step, that the written result is wrong."""
    formats: dict[str, float] = field(
        default_factory=lambda: {"code": 0.4, "prose": 0.24, "symbolic": 0.19, "tagged": 0.17}
    )
    """Share of the rows by format, over the sum of all; a format that is not named has none."""

    def check_run(self, key: str, run: RunView) -> Iterator[Broken]:
        # The default is checked, because a run with other prompts would train on arithmetic unnoticed.
        if SFT in run.losses and run.single["data.train"].kind_name != "lab":
            rule = "must be given: the lab's demonstrations answer the prompts of data.train lab"
            yield f"{key}.kind", rule


@dataclass
class FileDemonstrationOptions(Options):
    """A .jsonl or .parquet file: `prompt` as in `data`, and `completion`, `response` or `demonstration`.

    Or `messages`: a chat whose last message, the assistant's, is the demonstration.
    """

    path: str = option("", NOT_EMPTY)
    """The file, relative to the working directory."""
    domain: str = ""
    """As in `data`."""
    limit: int = option(0, NOT_NEGATIVE)
    """Keep the first `limit` rows; 0 keeps all."""


DEMONSTRATIONS: dict[str, Kind] = {
    "lab": Kind(LabDemonstrationOptions, "lab.corpus:load_demonstrations"),
    "file": Kind(FileDemonstrationOptions, "trainer.data.demonstrations:load_file"),
}
