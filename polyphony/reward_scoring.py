"""Score completions that exist already with the scorers of a config, in this process and its sandboxes.

In: a bound run and groups of completions. Out: `Scored` rows, or how fast each scorer is. No engine, no Ray.
Used by `polyphony.reward_verbs`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from actors.requests import CallStuckError
from actors.scorer import ScorerActor
from actors.secrets import Secrets
from cluster.score_limits import score_limit_s
from cluster.secrets import secrets_of
from cluster.user_code import UserCode, check_user_code
from configs.bound import BoundEntry, BoundRun, started
from configs.errors import nearest
from configs.kinds.scorers import ScorerCommon
from rewards.combine import check_tags
from rollouts.events import describe_event
from rollouts.records import Completion, Judgement, Prompt, Sample, Sampling, Submission
from trainer.data.completion_rows import CompletionGroup
from trainer.rollout.pausable_clock import Clock
from trainer.rollout.rollouter import RolloutTools, ScorerSet
from trainer.step_records import Probe

_SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One completion with its judgements; `stored` are the scores that its run had."""

    place: str
    prompt_id: str
    sample: Sample
    judgements: Mapping[str, Judgement]
    stored: Mapping[str, float | None]


def without_reward(row: Scored) -> Scored:
    """The row of a trial in which no scorer enters the reward, which is then unknown and not 0."""
    return replace(row, sample=replace(row.sample, reward=None))


class OpenScorers:
    """The scorers of a run, started in this process; `seconds` sums what each spent on its groups."""

    def __init__(self, run: BoundRun, code: UserCode, group_size: int) -> None:
        """Raises ValueError if a scorer cannot start; those that did are closed."""
        self.run, self.seconds = run, dict.fromkeys(run.scorers, 0.0)
        self._actors: dict[str, ScorerActor] = {}
        self._limits: dict[str, float] = {}
        try:
            for name, entry in run.scorers.items():
                secrets = secrets_of(run.config, name)
                self._limits[name] = score_limit_s(run.config, entry, code.in_actor, group_size)
                self._actors[name] = _started(entry, secrets)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End every scorer's processes."""
        for actor in self._actors.values():
            actor.close()

    async def judge(self, name: str, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        """One scorer's judgements of a group, within its limit."""
        began = time.perf_counter()
        try:
            return await self._actors[name].score(prompt, completions, self._limits[name])
        except CallStuckError as error:
            return [Judgement(score=None, status="timeout", detail=str(error)) for _ in completions]
        finally:
            self.seconds[name] += time.perf_counter() - began

    async def reports(self) -> list[str]:
        """What the scorers report of themselves, such as calls, costs and failed canaries, as sentences."""
        lines = []
        for name, actor in self._actors.items():
            report = await actor.take_report()
            for event in report.events:
                lines.append(describe_event(event.kind, {"scorer": name, **event.fields}))
            if sums := ", ".join(f"{number} {value:.6g}" for number, value in report.sums.items() if value):
                lines.append(f"scorer {name}: {sums}")
            if report.stop:
                lines.append(f"scorer {name} would stop a run: {report.stop}")
        return lines

    def as_set(self) -> ScorerSet:
        """The scorers as rollouters know them."""
        return ScorerSet(
            scorers={name: _One(self, name) for name in self.run.scorers},
            common_keys={name: entry.common for name, entry in self.run.scorers.items()},
            after=self.run.scored_after(),
        )


def _started(entry: BoundEntry[ScorerCommon], secrets: Secrets) -> ScorerActor:
    common = entry.common
    try:
        return ScorerActor(common.kind, entry.options, common.concurrency, secrets)
    except ValueError as error:
        raise ValueError(f"{entry.key}: {error}") from error


@dataclass(frozen=True, slots=True)
class _One:
    """One of the scorers, as `trainer.roles.Scorer`."""

    scorers: OpenScorers
    name: str

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        return await self.scorers.judge(self.name, prompt, completions)


@contextmanager
def opened(
    run: BoundRun, groups: Sequence[CompletionGroup], note: Callable[[str], None]
) -> Iterator[OpenScorers]:
    """The scorers of a run, checked and started, closed at the end.

    Raises:
        ValueError: a scorer's code, secret or options cannot be used, or rows lack the tokens that it reads.
    """
    _check_tokens(run, groups)
    check_tags({name: entry.common for name, entry in run.scorers.items()})
    code = check_user_code(run, note, sections=("scorers.",))
    # The limit of a group grows with its size; the largest one decides.
    scorers = OpenScorers(run, code, max(len(group.completions) for group in groups))
    try:
        yield scorers
    finally:
        scorers.close()


def with_scorers(run: BoundRun, names: Sequence[str]) -> BoundRun:
    """The run with only the scorers `names` (all if empty), which must need no model.

    Raises:
        ValueError: there is no such scorer, or one needs a model, another scorer's judgements or a file that
            cannot be used.
    """
    for name in names:
        if name not in run.scorers:
            close = nearest(name, run.scorers)
            hint = f" (did you mean {close}?)" if close else ""
            raise ValueError(f"--scorer must be one of {', '.join(run.scorers)}, got {name!r}{hint}")
    chosen = {name: entry for name, entry in run.scorers.items() if not names or name in names}
    for name, entry in chosen.items():
        if needed := sorted(set(entry.options.model_names().values())):
            raise ValueError(
                f"{entry.key} ({entry.kind_name}) needs the model {', '.join(needed)}, which only a run "
                f"starts: choose other scorers with --scorer: {_others(run)}"
            )
        if missing := [other for other in run.scored_after()[name] if other not in chosen]:
            raise ValueError(f"{entry.key} reads the judgements of {', '.join(missing)}: add --scorer for it")
    return started(replace(run, named={**run.named, "scorers": chosen}), "scorers")


def _others(run: BoundRun) -> str:
    plain = [name for name, entry in run.scorers.items() if not entry.options.model_names()]
    return ", ".join(plain) or "this config has none without a model"


def _check_tokens(run: BoundRun, groups: Sequence[CompletionGroup]) -> None:
    lacking = next((group for group in groups if not group.has_tokens), None)
    for entry in run.scorers.values():
        if lacking is not None and entry.options.reads_tokens():
            raise ValueError(
                f"{lacking.places[0]}: {entry.key} ({entry.kind_name}) reads tokens: give the row token_ids, "
                "or choose other scorers with --scorer"
            )


async def score_groups(scorers: OpenScorers, groups: Sequence[CompletionGroup]) -> list[Scored]:
    """Every group scored by every scorer, as many at a time as the scorers have places."""
    entries = scorers.run.scorers.values()
    places = asyncio.Semaphore(max(entry.common.concurrency for entry in entries))
    roles = scorers.as_set()

    async def score(number: int, group: CompletionGroup) -> list[Scored]:
        async with places:
            return await _score_group(roles, number, group)

    found = await asyncio.gather(*(score(number, group) for number, group in enumerate(groups)))
    return [row for rows in found for row in rows]


async def _score_group(roles: ScorerSet, number: int, group: CompletionGroup) -> list[Scored]:
    tools = _tools(roles, number, group)
    judged = await tools.score(group.completions)
    return [
        Scored(
            place=place,
            prompt_id=group.prompt.prompt_id,
            sample=tools.combined(completion, judgements),
            judgements=judgements,
            stored=stored,
        )
        for place, completion, judgements, stored in zip(
            group.places, group.completions, judged, group.scores, strict=True
        )
    ]


def _tools(roles: ScorerSet, number: int, group: CompletionGroup) -> RolloutTools:
    submission = Submission(
        submission_index=number,
        group_id=f"{number:08d}",
        prompt=group.prompt,
        prompt_ids=(),
        seeds=tuple(each.seed for each in group.completions),
        sampling=_SAMPLING,
    )
    return RolloutTools(submission, _NoGenerator(), roles, longest=1, limit_s=float("inf"), clock=Clock())


class _NoGenerator:
    """The `trainer.roles.Generator` of completions that exist already."""

    async def generate(self, submission: Submission) -> list[Completion]:
        raise RuntimeError(f"group {submission.group_id} exists already, and nothing can be generated")

    async def probe(self, probes: Sequence[Probe]) -> list[np.ndarray]:
        return []

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """How fast one scorer was: completions scored, and the seconds that each group took."""

    entry: BoundEntry[ScorerCommon]
    num_rows: int
    wall_s: float
    group_s: tuple[float, ...]
    num_null: int


async def measure(
    scorers: OpenScorers, name: str, groups: Sequence[CompletionGroup], seconds: float
) -> Measured:
    """Score `groups` again and again for `seconds`, `concurrency` at a time, after one group to warm up.

    A scorer that needs the judgements of others is given null scores of them.
    """
    entry = scorers.run.scorers[name]
    others = scorers.run.scored_after()[name]
    given = [_with_nulls(group, others) for group in groups]
    # The first call starts processes and fills caches, which no later one does.
    await scorers.judge(name, given[0].prompt, given[0].completions)
    began = time.perf_counter()
    took: list[float] = []
    counts = [0, 0]
    # All workers take from one counter, so that every group is scored about equally often.
    order = iter(range(1 << 62))

    async def worker() -> None:
        while time.perf_counter() - began < seconds:
            group = given[next(order) % len(given)]
            start = time.perf_counter()
            judged = await scorers.judge(name, group.prompt, group.completions)
            took.append(time.perf_counter() - start)
            counts[0] += len(judged)
            counts[1] += sum(each.score is None for each in judged)

    await asyncio.gather(*(worker() for _ in range(entry.common.concurrency)))
    wall_s = time.perf_counter() - began
    return Measured(entry=entry, num_rows=counts[0], wall_s=wall_s, group_s=tuple(took), num_null=counts[1])


def _with_nulls(group: CompletionGroup, others: Sequence[str]) -> CompletionGroup:
    if not others:
        return group
    nulls = {name: Judgement(score=None, status="error", detail="not scored here") for name in others}
    return replace(group, completions=tuple(replace(each, judgements=nulls) for each in group.completions))
