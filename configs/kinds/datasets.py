"""Datasets by name. A target is called as ``fn(options) -> list[Prompt]`` and reads only local files.

Every entry under `data:` has `kind` beside its own options.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.fields import NOT_EMPTY, NOT_NEGATIVE, one_of, option
from configs.kinds.base import Kind, Options


@dataclass
class LabOptions(Options):
    """Arithmetic problems of the lab corpus, a fixed finite set per split, or its open-ended prompts."""

    split: str = option("train", one_of("train", "heldout", "creative"))
    """train, heldout or creative."""
    corpus_seed: int = 0
    """Seed of the set of problems."""
    limit: int = option(0, NOT_NEGATIVE)
    """Keep the first `limit` prompts; 0 keeps all."""
    tests: bool = False
    """Give each problem a test for the scorer `code`: the program must print the answer."""
    solutions: str = option("", one_of("", "code", "prose", "symbolic", "tagged"))
    """A format: each arithmetic prompt has its right solution in this format as `extra.solution`."""


@dataclass
class FileOptions(Options):
    """A .jsonl or .parquet file: `prompt` (text or chat), and `answer`, `solution` or `reward_model`."""

    path: str = option("", NOT_EMPTY)
    """The file, relative to the working directory."""
    domain: str = ""
    """Domain of all rows, for metrics; empty takes `data_source` or `domain` of each row."""
    limit: int = option(0, NOT_NEGATIVE)
    """Keep the first `limit` rows; 0 keeps all."""


DATASETS: dict[str, Kind] = {
    "lab": Kind(LabOptions, "lab.corpus:load_prompts"),
    "file": Kind(FileOptions, "trainer.data.file_dataset:load_file"),
}
