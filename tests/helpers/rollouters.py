"""Rollouters of a user's own, for tests: two turns with an environment between, and refined rows."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from configs.kinds.base import OwnOptions
from rollouts.records import Completion, Group, Submission
from trainer.rollout.rollouter import RolloutTools

ENVIRONMENT = (7, 8)
"""What the environment says between two turns."""
FEEDBACK = (4, 4)
"""What a critic puts behind an answer before it is asked for another."""


async def two_turns(submission: Submission, tools: RolloutTools, options: OwnOptions) -> Group:
    """Every sample is answered by the environment and goes on from there, each as soon as it can."""
    first = await tools.generate()
    rows = await asyncio.gather(*(_second_turn(submission, tools, k, row) for k, row in enumerate(first)))
    verdicts = await tools.score(rows)
    samples = [tools.combined(*pair) for pair in zip(rows, verdicts, strict=True)]
    return Group(submission=submission, samples=tuple(samples))


async def _second_turn(
    submission: Submission, tools: RolloutTools, sample: int, row: Completion
) -> Completion:
    context = (*submission.prompt_ids, *row.token_ids, *ENVIRONMENT)
    if not tools.room(context):
        return row
    (then,) = await tools.generate(context, samples=[sample], turn=1)
    return joined(row, ENVIRONMENT, then)


def joined(first: Completion, between: tuple[int, ...], then: Completion) -> Completion:
    """Two turns as one row: what is between them was not sampled."""
    start = len(first.token_ids) + len(between)
    return replace(
        first,
        token_ids=(*first.token_ids, *between, *then.token_ids),
        text=f"{first.text} | {then.text}",
        finish_reason=then.finish_reason,
        behavior_logprobs=(*first.behavior_logprobs, *(0.0 for _ in between), *then.behavior_logprobs),
        versions=(*first.versions, *((start + at, version) for at, version in then.versions)),
        loss_mask=(True,) * len(first.token_ids) + (False,) * len(between) + (True,) * len(then.token_ids),
    )


async def with_refined(submission: Submission, tools: RolloutTools, options: OwnOptions) -> Group:
    """Each answer is asked for again behind its feedback; what comes is a row of the same group, judged as an
    answer to the prompt. `options.options` may name its origin."""
    first = await tools.generate()
    contexts = [(*submission.prompt_ids, *row.token_ids, *FEEDBACK) for row in first]
    again = [(await tools.generate(each, samples=[k], turn=1))[0] for k, each in enumerate(contexts)]
    verdicts = await tools.score([*first, *again])
    origin = str(options.options.get("origin", "refined"))
    samples = [tools.combined(*pair) for pair in zip(first, verdicts, strict=False)]
    for row, parent, context, verdict in zip(again, first, contexts, verdicts[len(first) :], strict=True):
        samples.append(tools.combined(row, verdict, origin, parent.sample_id, context))
    return Group(submission=submission, samples=tuple(samples))


async def broken(submission: Submission, tools: RolloutTools, options: OwnOptions) -> object:
    """A group as `options.options` asks for: of no samples, of one twice, of a stranger's, or no group."""
    group = await two_turns(submission, tools, options)
    first = group.samples[0]
    stranger = replace(first, completion=replace(first.completion, sample_id="elsewhere.0"))
    return {
        "empty": replace(group, samples=()),
        "twice": replace(group, samples=(first, first)),
        "stranger": replace(group, samples=(stranger,)),
        "samples": group.samples,
        "other": replace(group, submission=replace(submission, submission_index=99)),
    }[str(options.options["how"])]
