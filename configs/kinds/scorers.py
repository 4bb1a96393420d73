"""Scorers by name. A target is ``fn(prompt, completions, options) -> list[Judgement]``, one per completion.

Every entry under `scorers:` in a config also takes the common keys of `ScorerCommon`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from configs.kinds.base import Kind


@dataclass
class ScorerCommon:
    """Keys every scorer takes beside its own options."""

    kind: str = ""
    weight: float = 0.0
    """Factor in the weighted sum; a scorer with weight 0 and combine=sum only tags and records."""
    combine: str = "sum"
    """sum (weight x score), multiply (a factor of the whole sum) or gate (0 where the score is 0)."""
    replicas: int = 1
    """Processes that score, each on its own."""
    concurrency: int = 1
    """Groups that a replica has in flight at a time, each with a limit of its own."""
    num_gpus: float = 0.0
    """GPUs that each replica asks the cluster for: a share such as 0.25, or a whole number."""
    num_cpus: float = 0.0
    """CPUs that each replica asks the cluster for; 0 reserves none."""
    secrets: tuple[str, ...] = ()
    """Environment variables of the driver that its processes receive, and no other does."""


@dataclass
class LabAnswerOptions:
    """1 when the last integer of the text equals the answer, else 0."""


@dataclass
class LabPreferenceOptions:
    """The open-ended domain's fixed preference function, in [0, 1]."""

    table_seed: int = 7


@dataclass
class MathOptions:
    """math-verify in a process that is killed after `limit_s` seconds on one sample."""

    limit_s: float = 5.0
    num_processes: int = 1
    max_chars: int = 8192


@dataclass
class FormatTagsOptions:
    """Tags each text with the one format whose whole grammar it matches; scores 1 if there is one, else 0."""

    grammars: tuple[str, ...] = ("code", "prose", "symbolic", "tagged")


@dataclass
class LengthOptions:
    """Linear from 1 at `target_tokens` or fewer down to 0 at `max_tokens`."""

    target_tokens: int = 32
    max_tokens: int = 64


@dataclass
class RandomOptions:
    """A coin flip per sample, a pure function of (seed, the sample's seed): the control without a gain."""

    seed: int = 0
    probability: float = 0.5


@dataclass
class ConstantOptions:
    """The same score for everyone."""

    value: float = 1.0


@dataclass
class CustomOptions:
    """The user's ``compute_score(data_source, solution_str, ground_truth, extra_info)`` (verl's signature).

    `function` is "module:attr"; the module must stand under a prefix in `allow`.
    """

    function: str = ""
    limit_s: float = 10.0
    num_processes: int = 1
    options: dict[str, Any] = field(default_factory=dict)


SCORERS: dict[str, Kind] = {
    "lab_answer": Kind(LabAnswerOptions, "rewards.lab:lab_answer"),
    "lab_preference": Kind(LabPreferenceOptions, "rewards.lab:lab_preference"),
    "math": Kind(MathOptions, "rewards.math:math"),
    "format_tags": Kind(FormatTagsOptions, "rewards.formats:format_tags"),
    "length": Kind(LengthOptions, "rewards.simple:length"),
    "random": Kind(RandomOptions, "rewards.simple:random"),
    "constant": Kind(ConstantOptions, "rewards.simple:constant"),
    "custom": Kind(CustomOptions, "rewards.custom:custom"),
}
ANSWERING = frozenset({"lab_answer", "math", "custom"})
"""Kinds that can say which answer a text gives and whether it is right (custom: by `pred` and `acc`)."""
ISOLATED = frozenset({"math", "custom"})
"""Kinds that run code we cannot trust to end: judged one sample at a time in killable processes."""
