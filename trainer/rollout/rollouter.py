"""Rollouters: what turns a submission into a judged group, what one may call, and what its group must be.

`single_turn` is the first; a config names another as `rollouter: {kind: "module:attr"}`. Called by the
producer, and with `single_turn` by evaluations. Runs in the driver, so it should await and not compute.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from configs.bound import bind_entry
from configs.kinds.scorers import ScorerCommon
from configs.origins import POLICY
from configs.schema import RunConfig
from rewards.combine import combine
from rollouts.records import Completion, Group, Judgement, Prompt, Sample, Sampling, Submission
from trainer.data.prompts import TokenPrompt
from trainer.roles import Generator, Scorer
from trainer.rollout.pausable_clock import Clock
from trainer.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerSet:
    """The scorers by the names the config gives them, with the keys that say how their scores combine."""

    scorers: Mapping[str, Scorer]
    commons: Mapping[str, ScorerCommon]


class Rollouter(Protocol):
    """Makes the group of one submission: at least one sample, each with a sample_id of its own that begins
    with "<group_id>.", and with at most `submission.sampling.max_tokens` tokens.

    Tokens that no policy sampled (between two turns) have `Completion.loss_mask` false; they count towards
    that limit. Rows may be of other origins than policy, see `RolloutTools.combined`.
    """

    async def __call__(self, submission: Submission, tools: RolloutTools, options: Any) -> Group: ...


class RolloutTools:
    """What a rollouter may call for one submission. All of it ends at the group's deadline."""

    def __init__(
        self,
        submission: Submission,
        generator: Generator,
        scorers: ScorerSet,
        *,
        longest: int,
        limit_s: float,
        clock: Clock,
    ) -> None:
        """`longest` is the most tokens that a context and what follows it may have; `limit_s` counts from
        now, by `clock`."""
        self._submission, self._generator, self._scorers = submission, generator, scorers
        self._longest, self._clock = longest, clock
        self._deadline = clock.now() + limit_s
        self._asked: set[tuple[int, int]] = set()

    def remaining_s(self) -> float:
        """Seconds until the deadline; they stand still while the engines are paused."""
        return self._deadline - self._clock.now()

    def room(self, prompt_ids: Sequence[int]) -> int:
        """How many tokens may follow `prompt_ids`, 0 if none.

        A context that begins with the submission's prompt is a row under way: its completion so far counts.
        """
        own, limit = self._submission.prompt_ids, self._submission.sampling.max_tokens
        room = min(limit, self._longest - len(prompt_ids))
        if tuple(prompt_ids[: len(own)]) == own:
            room = min(room, limit - (len(prompt_ids) - len(own)))
        return max(0, room)

    async def generate(
        self,
        prompt_ids: Sequence[int] | None = None,
        samples: Sequence[int] | None = None,
        turn: int = 0,
        max_tokens: int | None = None,
    ) -> list[Completion]:
        """One completion of `prompt_ids` for each of `samples`, by the submission's sampling.

        Without `prompt_ids` they follow the submission's prompt; without `samples` there is one per seed of
        it, numbered from 0. Seeds and ids are made from (sample, turn) alone, so neither order nor timing
        changes them: a later call for the same sample takes another `turn`. Ids are "<group_id>.<sample>",
        and "<group_id>.<sample>.<turn>" in later turns. `max_tokens` leaves room for turns to come; it is at
        most `room` in any case.

        Raises:
            ValueError: there is no room behind `prompt_ids`, or a sample was generated in this turn already.
            TimeoutError: the deadline has passed.
        """
        submission = self._derived(prompt_ids, samples, turn, max_tokens)
        async with self._clock.timeout_at(self._deadline):
            return await self._generator.generate(submission)

    def _derived(
        self,
        prompt_ids: Sequence[int] | None,
        samples: Sequence[int] | None,
        turn: int,
        max_tokens: int | None,
    ) -> Submission:
        own = self._submission
        chosen = range(len(own.seeds)) if samples is None else samples
        context = own.prompt_ids if prompt_ids is None else tuple(prompt_ids)
        if (room := self.room(context)) < 1:
            raise ValueError(
                f"prompt_ids must leave room for a token within {self._longest} and rollout.max_tokens, got "
                f"{len(context)}; see RolloutTools.room"
            )
        asked = {(sample, turn) for sample in chosen}
        if again := asked & self._asked or len(asked) < len(chosen):
            raise ValueError(f"a sample must be generated once in a turn, got {again or chosen} again")
        self._asked |= asked
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
        """What every scorer says of each completion, by the scorer's name; scorers see their `text`.

        `prompt` is the submission's unless another is given. A scorer that has not judged by the deadline
        gives nulls with status timeout.
        """
        names = list(self._scorers.scorers)
        verdicts = await asyncio.gather(*(self._judge(name, completions, prompt) for name in names))
        return [{name: verdicts[k][i] for k, name in enumerate(names)} for i in range(len(completions))]

    async def _judge(
        self, name: str, completions: Sequence[Completion], prompt: Prompt | None
    ) -> list[Judgement]:
        try:
            async with self._clock.timeout_at(self._deadline):
                found = await self._scorers.scorers[name].score(
                    prompt or self._submission.prompt, completions
                )
        except TimeoutError:
            return [Judgement(score=None, status="timeout") for _ in completions]
        return [
            Judgement(score=None, status="invalid")
            if any(span.end > len(completion.token_ids) for span in judgement.spans)
            else judgement
            for judgement, completion in zip(found, completions, strict=True)
        ]

    def combined(
        self,
        completion: Completion,
        judgements: Mapping[str, Judgement],
        origin: str = POLICY,
        parent_id: str | None = None,
        behavior_prompt_ids: tuple[int, ...] | None = None,
    ) -> Sample:
        """The completion with its judgements combined into a reward, as `Sample` has them."""
        sample = combine(completion, judgements, self._scorers.commons, origin)
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
        """The group of a submission.

        Raises:
            ValueError: it is none that the run could train on; the message names the rollouter.
        """
        group = await self.function(submission, tools, self.options)
        if problem := _problem(group, submission):
            raise ValueError(f"rollouter {self.kind}, group {submission.submission_index}: {problem}")
        return group


def bound_rollouter(config: RunConfig) -> BoundRollouter:
    """The rollouter that a config names."""
    entry = bind_entry(config.rollouter, "rollouter")
    return BoundRollouter(kind=entry.kind_name, function=entry.function(), options=entry.options)


def _problem(group: object, submission: Submission) -> str:
    """What is wrong with a group that a rollouter made, or "". The buffer checks its rows one by one."""
    if not isinstance(group, Group) or group.submission != submission:
        return f"must return the Group of its submission, got {type(group).__name__}"
    names = [sample.completion.sample_id for sample in group.samples]
    if not names:
        return "must have at least one sample, got none"
    if len(set(names)) < len(names):
        return f"every sample must have a sample_id of its own, got {names}"
    prefix = f"{submission.group_id}."
    if strangers := [name for name in names if not name.startswith(prefix)]:
        return f"sample_id must begin with {prefix!r}, got {strangers[0]!r}"
    limit = submission.sampling.max_tokens
    longest = max(len(sample.completion.token_ids) for sample in group.samples)
    return f"a sample must have at most {limit} tokens, got {longest}" if longest > limit else ""
