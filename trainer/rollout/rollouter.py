"""Rollouters turn a submission into a scored group: their protocol, tools, and the check of their groups.

`single_turn` is built in; a config chooses another as `rollouter: {kind: "module:attr"}`. Used by the
producer; evaluations always use `single_turn`. Runs in the driver, so it should await and not compute.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from configs.bound import BoundRun
from configs.kinds.scorers import ScorerCommon
from configs.origins import POLICY
from rewards.combine import combine
from rewards.limited_model import LimitedModel
from rewards.model_calls import Model
from rollouts.records import Completion, Group, Judgement, Prompt, Sample, Sampling, Submission
from trainer.data.prompts import TokenPrompt
from trainer.roles import Generator, Scorer
from trainer.rollout.pausable_clock import Clock
from trainer.rollout.scorer_calls import ScorerCalls
from trainer.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerSet:
    """The scorers by their names in the config, and the options of how their scores combine."""

    scorers: Mapping[str, Scorer]
    common_keys: Mapping[str, ScorerCommon]
    after: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Scorer -> the scorers whose judgements it gets (`configs.bound.BoundRun.scored_after`)."""
    calls: Mapping[str, ScorerCalls] = field(default_factory=dict)
    """Scorer -> the times of its calls for training groups."""
    observe: Callable[[str, Judgement], None] = lambda name, judgement: None
    """Called with every judgement and its scorer's name (`trainer.reward_watch.FirstFailures`)."""
    failure_limits: Mapping[str, float] = field(default_factory=dict)
    """The share of its recent scores that may be missing, of each scorer that has such a limit."""


_LATE = Judgement(score=None, status="timeout", detail="the group reached rollout.group_timeout_s")
_SPAN_BEYOND = Judgement(score=None, status="invalid", detail="a span ends beyond the completion")


class Rollouter(Protocol):
    """Makes the group of one submission.

    The group has at least one sample. Each sample has a unique sample_id that begins with "<group_id>." and
    at most `submission.sampling.max_tokens` tokens. Tokens that no policy sampled (between two turns) have
    `Completion.loss_mask` false and count towards that limit. Samples may have other origins than policy; see
    `RolloutTools.combined`.
    """

    async def __call__(self, submission: Submission, tools: RolloutTools, options: Any) -> Group: ...


def no_tokenizer(text: str) -> tuple[int, ...]:
    """What `RolloutTools.encode` does where no tokenizer was given.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"encode must have a tokenizer, got none for the text {text[:40]!r}")


def no_prompt_encoder(prompt: Prompt) -> tuple[int, ...]:
    """What `RolloutTools.encode_prompt` does where no tokenizer was given.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"encode_prompt must have a tokenizer, got none for prompt {prompt.prompt_id}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoders:
    """How text becomes token ids, by the tokenizer of the model."""

    text: Callable[[str], tuple[int, ...]] = no_tokenizer
    """Without special tokens; see `RolloutTools.encode`."""
    prompt: Callable[[Prompt], tuple[int, ...]] = no_prompt_encoder
    """Messages by the chat template; see `trainer.data.encode.prompt_ids`."""
    end_ids: tuple[int, ...] = ()
    """The end-of-sequence token; empty if the tokenizer has none."""


NO_ENCODERS: Final = Encoders()


class RolloutTools:
    """The functions that a rollouter may call for one submission. All of them end at the group's deadline."""

    def __init__(
        self,
        submission: Submission,
        generator: Generator,
        scorers: ScorerSet,
        *,
        longest: int,
        limit_s: float,
        clock: Clock,
        encoders: Encoders = NO_ENCODERS,
        models: Mapping[str, Model] | None = None,
    ) -> None:
        """`longest` is the largest number of tokens of a context and its completion; `limit_s` counts from
        now, by `clock`. `models` are the frozen models of the run that some option names."""
        self._submission, self._generator, self._scorers = submission, generator, scorers
        self._longest, self._clock = longest, clock
        self._deadline = clock.now() + limit_s
        self._asked: set[tuple[int, int]] = set()
        self._encoders = encoders
        self.models: Mapping[str, Model] = {
            name: LimitedModel(model, lambda: clock.timeout_at(self._deadline))
            for name, model in (models or {}).items()
        }
        """The frozen models by their names in the config; past the deadline calls raise TimeoutError."""

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """The token ids of a whole context: the prompt's messages under the chat template, as in datasets.

        Raises:
            ValueError: the template or the vocabulary of the model refuses the messages.
        """
        return self._encoders.prompt(prompt)

    def encode_solution(self, text: str) -> tuple[int, ...]:
        """The token ids of a whole answer that was not sampled, with the end-of-sequence token behind it.

        Raises:
            ValueError: the tokenizer has no such token.
        """
        if not self._encoders.end_ids:
            raise ValueError("the tokenizer must have an end-of-sequence token to end a solution, got none")
        return (*self._encoders.text(text), *self._encoders.end_ids)

    def next_turn(self) -> int:
        """The lowest turn after all turns that were generated for any sample."""
        return 1 + max((turn for _, turn in self._asked), default=-1)

    def encode(self, text: str) -> tuple[int, ...]:
        """The token ids of a text, such as what a tool answered, by the model's tokenizer.

        Without special tokens: those of a chat template are part of the text.
        """
        return self._encoders.text(text)

    def remaining_s(self) -> float:
        """Seconds until the deadline; time during which the engines are paused does not count."""
        return self._deadline - self._clock.now()

    def room(self, prompt_ids: Sequence[int], continued: bool = True) -> int:
        """The number of tokens that may follow `prompt_ids`, at least 0.

        If `prompt_ids` begin with the submission's prompt, the tokens after it count as completion, unless
        what follows becomes a row of its own (`continued` false).
        """
        own, limit = self._submission.prompt_ids, self._submission.sampling.max_tokens
        room = min(limit, self._longest - len(prompt_ids))
        if continued and tuple(prompt_ids[: len(own)]) == own:
            room = min(room, limit - (len(prompt_ids) - len(own)))
        return max(0, room)

    async def generate(
        self,
        prompt_ids: Sequence[int] | None = None,
        samples: Sequence[int] | None = None,
        turn: int = 0,
        max_tokens: int | None = None,
        temperature: float | None = None,
        continued: bool = True,
    ) -> list[Completion]:
        """One completion of `prompt_ids` for each of `samples`, with the submission's sampling parameters.

        `prompt_ids` default to the submission's prompt, `samples` to one per seed, numbered from 0. Seeds and
        ids depend only on (sample, turn), not on order or timing, so a later call for the same sample needs
        another `turn`. Ids are "<group_id>.<sample>", and "<group_id>.<sample>.<turn>" in later turns.
        `max_tokens` leaves room for turns to come; it is at most `room` in any case, for which
        `continued` is. Rows are scored and trained at the submission's temperature, so one that was sampled
        at another `temperature` must not be of origin policy.

        Raises:
            ValueError: there is no room after `prompt_ids`, or a sample was already generated in this turn.
            TimeoutError: the deadline has passed.
        """
        submission = self._derived(prompt_ids, samples, turn, max_tokens, continued)
        if temperature is not None:
            submission = replace(submission, sampling=replace(submission.sampling, temperature=temperature))
        async with self._clock.timeout_at(self._deadline):
            return await self._generator.generate(submission)

    def _derived(
        self,
        prompt_ids: Sequence[int] | None,
        samples: Sequence[int] | None,
        turn: int,
        max_tokens: int | None,
        continued: bool,
    ) -> Submission:
        """The submission that `generate` sends: the own one, or one with other ids, seeds and limits."""
        own = self._submission
        chosen = range(len(own.seeds)) if samples is None else samples
        context = own.prompt_ids if prompt_ids is None else tuple(prompt_ids)
        if (room := self.room(context, continued)) < 1:
            raise ValueError(
                f"prompt_ids must leave room for a token within {self._longest} and rollout.max_tokens, got "
                f"{len(context)}; see RolloutTools.room"
            )
        asked = {(sample, turn) for sample in chosen}
        if again := asked & self._asked or len(asked) < len(chosen):
            raise ValueError(f"a sample must be generated once in a turn, got {again or chosen} again")
        self._asked |= asked
        # Unchanged in the usual case, so that a single turn has the ids and seeds that it always had.
        if turn == 0 and samples is None and prompt_ids is None and max_tokens is None:
            return own
        seeds = [own.seeds[sample] for sample in chosen]
        return replace(
            own,
            prompt_ids=context,
            seeds=tuple(derive_seed(seed, "turn", turn) if turn else seed for seed in seeds),
            sample_ids=tuple(own.sample_id(sample) + (f".{turn}" if turn else "") for sample in chosen),
            sampling=replace(own.sampling, max_tokens=room if max_tokens is None else min(room, max_tokens)),
        )

    async def score(
        self, completions: Sequence[Completion], prompt: Prompt | None = None
    ) -> list[dict[str, Judgement]]:
        """Every scorer's judgement of each completion, by the scorer's name. Scorers get the `text`.

        `prompt` defaults to the submission's. A scorer that is not done by the deadline gives null scores
        with status timeout. Scorers run at the same time, except that one which reads the judgements of
        others waits for them and gets them in `Completion.judgements`.
        """
        tasks: dict[str, asyncio.Task[list[Judgement]]] = {}

        async def judge(name: str) -> list[Judgement]:
            earlier = {other: await tasks[other] for other in self._scorers.after.get(name, ())}
            given = [
                replace(each, judgements={other: found[at] for other, found in earlier.items()})
                for at, each in enumerate(completions)
            ]
            return await self._score_with(name, given if earlier else completions, prompt)

        tasks |= {name: asyncio.create_task(judge(name)) for name in self._scorers.scorers}
        judgements = await asyncio.gather(*tasks.values())
        return [{name: judgements[k][i] for k, name in enumerate(tasks)} for i in range(len(completions))]

    async def _score_with(
        self, name: str, completions: Sequence[Completion], prompt: Prompt | None
    ) -> list[Judgement]:
        """One scorer's judgements; null scores if it is late or reports spans beyond the completion."""
        try:
            async with self._clock.timeout_at(self._deadline):
                judgements = await self._scorers.scorers[name].score(
                    prompt or self._submission.prompt, completions
                )
        except TimeoutError:
            judgements = [_LATE for _ in completions]
        checked = [
            _SPAN_BEYOND
            if any(span.end > len(completion.token_ids) for span in judgement.spans)
            else judgement
            for judgement, completion in zip(judgements, completions, strict=True)
        ]
        for judgement in checked:
            self._scorers.observe(name, judgement)
        return checked

    def combined(
        self,
        completion: Completion,
        judgements: Mapping[str, Judgement],
        origin: str = POLICY,
        parent_id: str | None = None,
        behavior_prompt_ids: tuple[int, ...] | None = None,
    ) -> Sample:
        """A `Sample` of the completion, with its judgements combined into a reward."""
        sample = combine(completion, judgements, self._scorers.common_keys, origin)
        return replace(sample, parent_id=parent_id, behavior_prompt_ids=behavior_prompt_ids)


def make_submission(
    index: int, prompt: TokenPrompt, num_samples: int, sampling: Sampling, seed: int
) -> Submission:
    """A submission whose seeds derive from (run seed, submission index, sample index)."""
    return Submission(
        submission_index=index,
        group_id=f"{index:08d}",
        prompt=prompt.prompt,
        prompt_ids=prompt.token_ids,
        seeds=tuple(derive_seed(seed, index, sample) for sample in range(num_samples)),
        sampling=sampling,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundRollouter:
    """A rollouter with its options, as a config names it."""

    kind: str
    function: Rollouter
    options: Any

    async def roll_out(self, submission: Submission, tools: RolloutTools) -> Group:
        """The group of a submission, checked.

        Raises:
            ValueError: the run cannot train on the group; the message names the rollouter.
        """
        group = await self.function(submission, tools, self.options)
        if problem := group_problem(group, submission):
            raise ValueError(f"rollouter {self.kind}, group {submission.submission_index}: {problem}")
        return group


def bound_rollouter(run: BoundRun) -> BoundRollouter:
    """The rollouter of a run, its code imported."""
    entry = run.rollouter
    return BoundRollouter(kind=entry.kind_name, function=entry.function(), options=entry.options)


def whole_texts(prompt: Prompt, completions: Sequence[Completion]) -> list[Completion]:
    """The completions as scorers get them: the prompt's prefill and the completion together, as in TRL."""
    if not prompt.prefill:
        return list(completions)
    return [replace(each, text=prompt.prefill + each.text) for each in completions]


def group_problem(group: object, submission: Submission) -> str:
    """What is wrong with a rollouter's group, or "". The buffer checks the rows themselves."""
    if not isinstance(group, Group) or group.submission != submission:
        return f"must return the Group of its submission, got {type(group).__name__}"
    # A rollouter is the user's code: what would fail later in the buffer is reported here with its name.
    names = [sample.completion.sample_id for sample in group.samples]
    if not names:
        return "must have at least one sample, got none"
    if len(set(names)) < len(names):
        return f"every sample must have a sample_id of its own, got {names}"
    prefix = f"{submission.group_id}."
    if wrong := [name for name in names if not name.startswith(prefix)]:
        return f"sample_id must begin with {prefix!r}, got {wrong[0]!r}"
    limit = submission.sampling.max_tokens
    longest = max(len(sample.completion.token_ids) for sample in group.samples)
    return f"a sample must have at most {limit} tokens, got {longest}" if longest > limit else ""
