"""Refiners turn a judged group into more rows: their protocol, and which of their rows a group keeps.

A config chooses one as `refiner: {kind: ...}`. Called by the producer after the rollouter, before the group
is stored; evaluations never refine. The rows have another origin than policy (refined, distilled), so that no
metric, answer count or dynamic sampling sees them. Runs in the driver, so a refiner should await and not
compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from configs.bound import BoundRun
from configs.kinds.refiners import NONE, AnswerOptions, RefinerOptions
from configs.origins import POLICY
from rollouts.records import Group, Sample
from trainer.reward_ties import first_best, reaches
from trainer.rollout.rollouter import RolloutTools, group_problem

TRIED: Final = "critique/tried"
"""Number in the row of an answer: 1 if a refiner sampled a row for it, 0 if it tried and could not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What a refiner made of one answer of a group; without a `parent` it belongs to the whole group.

    `sample` is None if there is no row: its context left no room (`no_room`), or its critic failed
    (`critic_failed`). The answer's row stores `failure`, which a row with less in its context has too.
    """

    parent: Sample | None
    sample: Sample | None
    failure: str = ""


class Refiner(Protocol):
    """Makes rows, refined or distilled, for one judged group. Every sample_id begins with "<group_id>."."""

    async def __call__(self, group: Group, tools: RolloutTools, options: Any) -> Sequence[Attempt]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundRefiner:
    """A refiner with its options, as a config names it; `function` is None for kind none."""

    kind: str
    function: Refiner | None
    options: Any

    async def refine(self, group: Group, tools: RolloutTools) -> Group:
        """The group with the refined rows that it keeps; the same group if it is not to be refined.

        Raises:
            ValueError: the run cannot train on the rows; the message names the refiner.
        """
        if self.function is None or not is_refined(group, self.options):
            return group
        attempts = await self.function(group, tools, self.options)
        made = [each.sample for each in attempts if each.sample is not None]
        kept = best_rows(made, self.options.keep) if isinstance(self.options, AnswerOptions) else made
        known = {sample.completion.sample_id for sample in group.samples}
        refined = replace(group, samples=(*_with_tries(group.samples, attempts), *kept))
        # Rows of user code are checked before they are stored: a wrong one would fail later, in the learner.
        problem = group_problem(refined, group.submission)
        if not problem and any(sample.origin == POLICY for sample in kept):
            problem = "a refined row must have another origin than policy"
        if problem:
            new = [sample.completion.sample_id for sample in kept if sample.completion.sample_id not in known]
            place = f"refiner {self.kind}, group {group.submission.submission_index}, rows {new}"
            raise ValueError(f"{place}: {problem}")
        return refined


def bound_refiner(run: BoundRun) -> BoundRefiner:
    """The refiner of a run, its code imported."""
    entry = run.refiner
    function = None if entry.kind_name == NONE else entry.function()
    return BoundRefiner(kind=entry.kind_name, function=function, options=entry.options)


def policy_samples(group: Group) -> list[Sample]:
    """The answers of a group that may be refined: its samples of origin policy."""
    return [sample for sample in group.samples if sample.origin == POLICY]


def is_right(sample: Sample, threshold: float) -> bool:
    """Whether the sample has a reward of at least `threshold`."""
    return sample.reward is not None and bool(reaches(sample.reward, threshold))


def is_refined(group: Group, options: RefinerOptions) -> bool:
    """Whether a group is refined: with groups failed, if all its policy rows have a reward and none is right.

    A group of which a reward is missing may hold a right answer, so it does not count as failed.
    """
    own = policy_samples(group)
    if options.groups == "all":
        return bool(own)
    return bool(own) and not any(
        sample.reward is None or is_right(sample, options.threshold) for sample in own
    )


def best_rows(samples: Sequence[Sample], keep: int) -> list[Sample]:
    """The `keep` samples of the highest rewards, equal ones in their order; all of them if `keep` is 0.

    Rewards that differ by rounding are equal. Samples without a reward come last. The result is in the order
    of `samples`.
    """
    if keep == 0:
        return list(samples)
    left, chosen = list(range(len(samples))), list[int]()
    while left and len(chosen) < keep:
        chosen.append(left.pop(first_best([samples[number].reward for number in left])))
    return [samples[number] for number in sorted(chosen)]


def _with_tries(samples: Sequence[Sample], attempts: Sequence[Attempt]) -> list[Sample]:
    """The samples, with what became of the attempts at those that have one."""
    tried = {each.parent.completion.sample_id: each for each in attempts if each.parent is not None}
    return [_with_try(sample, tried.get(sample.completion.sample_id)) for sample in samples]


def _with_try(sample: Sample, attempt: Attempt | None) -> Sample:
    if attempt is None:
        return sample
    numbers = {TRIED: float(attempt.sample is not None)}
    if attempt.failure:
        numbers[f"critique/{attempt.failure}"] = 1.0
    return replace(sample, numbers={**sample.numbers, **numbers})
