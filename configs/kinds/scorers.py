"""Scorers by name. A target is ``fn(prompt, completions, options) -> list[Judgement]``, one per completion.

Every entry under `scorers:` in a config also takes the common keys of `ScorerCommon`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from configs.errors import Broken
from configs.fields import NOT_EMPTY, NOT_NEGATIVE, NOTHING, POSITIVE, SHARE, Rule, one_of, option
from configs.kinds.base import Common, Kind, Options
from configs.kinds.code import CODE_SCORERS
from configs.kinds.judges import JudgeOptions
from configs.kinds.partition import PartitionOptions
from configs.kinds.reward_model import RewardModelOptions
from configs.kinds.text_scorers import TEXT_SCORERS
from configs.redact import VARIABLE_NAME

_VARIABLES: Final = Rule(
    lambda names: all(VARIABLE_NAME.fullmatch(name) for name in names),
    "must be names of environment variables (capitals, digits and _), not their values",
)

_WINDOW: Final = Rule(lambda steps: steps == 0 or steps >= 10, "must be 0 or at least 10")


@dataclass
class ScorerCommon(Common):
    """Keys every scorer takes beside its own options."""

    weight: float = 0.0
    """Factor in the weighted sum; a scorer with weight 0 and combine=sum only tags and records."""
    combine: str = option("sum", one_of("sum", "multiply", "gate"))
    """sum (weight x score), multiply (a factor of the whole sum) or gate (0 where the score is 0)."""
    replicas: int = option(1, POSITIVE, NOTHING)
    """Processes that score, each on its own."""
    concurrency: int = option(1, POSITIVE, NOTHING)
    """Groups that a replica has in flight at a time, each with a limit of its own."""
    num_gpus: float = option(0.0, NOT_NEGATIVE, NOTHING)
    """GPUs of each replica: a share such as 0.25, beside engine and learner if it fits, or a whole number."""
    num_cpus: float = option(0.0, NOT_NEGATIVE, NOTHING)
    """CPUs that each replica asks the cluster for; 0 reserves none."""
    secrets: tuple[str, ...] = option((), _VARIABLES, NOTHING)
    """Environment variables of the driver that its processes receive, and no other does."""

    after: tuple[str, ...] = ()
    """Scorers that run before this one, which finds what they said in `Completion.judgements`."""

    watch_steps: int = option(0, _WINDOW, NOTHING)
    """Steps over which its mean score is watched against the reward, which it must not enter; 0 for none."""

    def check(self) -> Iterator[Broken]:
        if self.num_gpus > 1 and self.num_gpus % 1:
            yield "num_gpus", "must be a share of one GPU or a whole number of them"
        if self.watch_steps and (self.weight != 0 or self.combine != "sum"):
            yield "watch_steps", "must be 0 for a scorer that enters the reward: only another one can tell"


@dataclass
class LabAnswerOptions(Options):
    """1 when the last integer of the text equals the answer, else 0."""


@dataclass
class LabPreferenceOptions(Options):
    """The open-ended domain's fixed preference function, in [0, 1]."""

    table_seed: int = 7
    """Seed of the weights of pairs of syllables."""


@dataclass
class MathOptions(Options):
    """math-verify in a process that is killed after `limit_s` seconds on one sample."""

    limit_s: float = option(5.0, POSITIVE)
    """Seconds for one sample. Past it the score is null, so another limit may give other scores."""
    num_processes: int = option(1, POSITIVE, NOTHING)
    """Sandbox processes of each replica."""
    max_chars: int = option(8192, POSITIVE)
    """Characters at the end of a completion that are searched for the answer."""


@dataclass
class FormatTagsOptions(Options):
    """Tags each text with the one format whose whole grammar it matches; scores 1 if there is one, else 0."""

    grammars: tuple[str, ...] = option(("code", "prose", "symbolic", "tagged"), NOT_EMPTY)
    """Names of the formats, in rewards/formats.py."""


@dataclass
class LengthOptions(Options):
    """Linear from 1 at `target_tokens` or fewer down to 0 at `max_tokens`."""

    target_tokens: int = option(32, POSITIVE)
    """Length up to which the score is 1, in tokens."""
    max_tokens: int = option(64, POSITIVE)
    """Length from which the score is 0, in tokens."""

    def check(self) -> Iterator[Broken]:
        if not self.target_tokens < self.max_tokens:
            yield "target_tokens", f"must be below max_tokens ({self.max_tokens})"

    def reads_tokens(self) -> bool:
        return True


@dataclass
class RandomOptions(Options):
    """A coin flip per sample, a pure function of (seed, the sample's seed): the control without a gain."""

    seed: int = 0
    """With another seed other samples score 1."""
    probability: float = option(0.5, SHARE)
    """Probability of a 1."""


@dataclass
class ConstantOptions(Options):
    """The same score for every completion."""

    value: float = 1.0
    """The score."""


@dataclass
class CustomOptions(Options):
    """The user's ``compute_score(data_source, solution_str, ground_truth, extra_info)`` (verl's signature).

    `function` is "module:attr"; the module must be under a prefix in `allow`.
    """

    function: str = option("", NOT_EMPTY)
    """The function or class, as "module:attr"."""
    limit_s: float = option(10.0, POSITIVE)
    """Seconds for one sample. Past it the score is null, so another limit may give other scores."""
    num_processes: int = option(1, POSITIVE, NOTHING)
    """Sandbox processes of each replica."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments that the function gets beside those of verl."""

    def own_code(self) -> Mapping[str, str]:
        return {"function": self.function} if self.function else {}


SCORERS: dict[str, Kind] = {
    "lab_answer": Kind(LabAnswerOptions, "rewards.lab:lab_answer", answers=True, needs_answer=True),
    "lab_preference": Kind(LabPreferenceOptions, "rewards.lab:lab_preference"),
    "math": Kind(
        MathOptions,
        "rewards.math:math",
        answers=True,
        needs_answer=True,
        isolated=True,
        warm_up="rewards.math:warm_up",
    ),
    "format_tags": Kind(FormatTagsOptions, "rewards.formats:format_tags", tags=("format",)),
    "length": Kind(LengthOptions, "rewards.simple:length"),
    "random": Kind(RandomOptions, "rewards.simple:random"),
    "constant": Kind(ConstantOptions, "rewards.simple:constant"),
    **TEXT_SCORERS,
    **CODE_SCORERS,
    "partition": Kind(
        PartitionOptions,
        "rewards.partition:PartitionScorer",
        partitions=True,
        start="rewards.partition_pairs:start",
    ),
    "judge": Kind(JudgeOptions, "rewards.judge:Judge", start="rewards.judge_rubric:start", reports=True),
    "reward_model": Kind(RewardModelOptions, "rewards.reward_model:RewardModel"),
    # It answers by what it returns as `pred` and `acc`.
    "custom": Kind(
        CustomOptions, "rewards.custom:custom", answers=True, isolated=True, warm_up="rewards.custom:warm_up"
    ),
}
