"""The records of a rollout, one type for each stage, from the producer to scorers and the buffer.

A `Prompt` becomes `Completion`s, scorers return `Judgement`s, and a `Sample` is a completion with its
judgements combined into a reward. No field is ``None`` to be filled in later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rollouts.files import Json

Status = Literal["ok", "timeout", "error", "invalid", "crashed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One dataset row.

    `messages` is a tuple of (role, content). `answer` is the ground truth as text, or None if there is none
    or it is not a single value. A reward function gets `ground_truth` and `data_source`: what the dataset
    has, if that differs from `answer` (a number, a list, a mapping) and from `domain` (which a config may
    set). `extra` has the other fields of the row. All keep the types of the file, where JSON has them.
    `is_text`: the prompt was given as plain text, which is the user's message in `messages`; a model without
    a chat template gets the text unchanged. `place` is the row's place for messages to the user, such as
    ``train.jsonl, line 3``.
    """

    prompt_id: str
    messages: tuple[tuple[str, str], ...]
    answer: str | None
    domain: str
    epoch: int = 0
    extra: Mapping[str, Json] = field(default_factory=dict)
    ground_truth: Json = None
    """None if it is `answer`."""
    data_source: str = ""
    """Empty if it is `domain`."""
    is_text: bool = False
    place: str = field(default="", compare=False)

    @property
    def prefill(self) -> str:
        """The last message if it is the assistant's, else "": the model continues it."""
        role, content = self.messages[-1] if self.messages else ("", "")
        return content if role == "assistant" else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A prompt and the answer to imitate; `format_tag` is the answer's format, if known.

    `messages`, `is_text` and `place` are as in `Prompt`.
    """

    prompt_id: str
    messages: tuple[tuple[str, str], ...]
    completion: str
    domain: str
    format_tag: str | None = None
    is_text: bool = False
    place: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are sampled. `temperature` divides the logits; `max_tokens` limits the completion."""

    temperature: float
    top_p: float
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One prompt sent to a generator, with one seed for each of the G completions."""

    submission_index: int
    group_id: str
    prompt: Prompt
    prompt_ids: tuple[int, ...]
    seeds: tuple[int, ...]
    sampling: Sampling
    sample_ids: tuple[str, ...] = ()
    """Ids of the completions, if they are not the default ones of `sample_id`."""

    def sample_id(self, number: int) -> str:
        """Id of the completion of seed `number`: from `sample_ids` if given, else "<group_id>.<number>"."""
        return self.sample_ids[number] if self.sample_ids else f"{self.group_id}.{number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled answer of T tokens.

    `behavior_logprobs` [T] are the sampler's, at the sampling temperature, in nats.
    `versions` has (first token position, policy_version) spans, in order, starting at 0.
    `loss_mask` [T] is false at tokens that no policy sampled (those of an environment, between turns), whose
    `behavior_logprobs` are ignored; None means that every token was sampled.
    `judgements` has what other scorers said of it, by their names: a scorer gets those of the scorers that it
    runs after, and nothing else gets any.
    """

    sample_id: str
    seed: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: str
    behavior_logprobs: tuple[float, ...]
    versions: tuple[tuple[int, int], ...]
    loss_mask: tuple[bool, ...] | None = None
    judgements: Mapping[str, Judgement] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        assert self.loss_mask is None or len(self.loss_mask) == len(self.token_ids), (
            "a loss mask has an entry per token"
        )

    @property
    def num_sampled(self) -> int:
        """Number of tokens that were sampled."""
        return len(self.token_ids) if self.loss_mask is None else sum(self.loss_mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A labelled half-open range of token positions [start, end): the answer, a plan, a candidate."""

    label: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """The part of its group that a completion belongs to: those that a scorer holds equivalent."""

    partition_id: int
    """From 0; the scorer says in which order."""
    size: int
    """Completions in the part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Critique:
    """What was said about a completion, and led to a refined one."""

    text: str
    kind: str
    verdict: str = ""
    """What the critique concludes, such as ``wrong``; empty if it concludes nothing."""
    leaked: bool = False
    """Whether the reference answer is in the critique."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One scorer's result for one completion. `score` is None exactly when `status` is not ``ok``.

    `numbers` and `texts` are stored beside the score, as "<scorer>/<name>": the tokens that a judge took, the
    reason that it gave. They must not depend on timing, so that a repeated run stores the same rows.
    `detail` is the reason why there is no score, for the scorer's log; it is not stored.
    """

    score: float | None
    status: Status = "ok"
    tags: Mapping[str, str] = field(default_factory=dict)
    spans: tuple[Span, ...] = ()
    answer: str | None = None
    answer_ok: bool | None = None
    partition: Partition | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    detail: str = ""

    def __post_init__(self) -> None:
        assert (self.score is None) == (self.status != "ok"), (
            "a score is null exactly when its status is not ok"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A scored completion. `reward` is None if any score that enters it is; such rows never train."""

    completion: Completion
    origin: str
    """One of configs.origins.ORIGINS."""
    scores: Mapping[str, float | None]
    score_status: Mapping[str, str]
    tags: Mapping[str, str]
    spans: tuple[Span, ...]
    answer: str | None
    answer_ok: bool | None
    reward_vector: tuple[float | None, ...]
    reward: float | None
    parent_id: str | None = None
    """The sample_id of the sample that this one refines."""
    behavior_prompt_ids: tuple[int, ...] | None = None
    """The context it was sampled under, if that is not the submission's prompt."""
    teacher_prompt_ids: tuple[int, ...] | None = None
    """The prompt under which a teacher scores its tokens; only of origins that are taught."""
    partition: Partition | None = None
    critique: Critique | None = None
    """What the context of a refined sample, or of a distilled one's teacher, said about its parent."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Of scorers, as "<scorer>/<name>", and of rollouters."""
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All G scored completions of one submission."""

    submission: Submission
    samples: tuple[Sample, ...]
