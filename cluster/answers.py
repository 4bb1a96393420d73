"""Checks before anything starts that scorers can read the reference answers of a run's prompts.

In: a bound run and its prompts. Out: notes, or one ValueError if no completion could have a reward.
Called by `cluster.checks`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from actors.sandbox import KillablePool
from actors.sandbox_protocol import check_judgements
from actors.scorer_targets import open_target
from configs.bound import BoundEntry, BoundRun
from configs.kinds.scorers import ScorerCommon
from rollouts.records import Completion, Judgement, Prompt
from trainer.data.encode import named_rows, row_of

_NUM_TRIED: Final = 32
_TRIAL: Final = Completion(
    sample_id="trial",
    seed=0,
    token_ids=(),
    text="",
    finish_reason="stop",
    behavior_logprobs=(),
    versions=((0, 0),),
)


def check_answers(run: BoundRun, prompts: Sequence[Prompt], note: Callable[[str], None]) -> None:
    """Note how many prompts cannot be scored, and the first of their rows, for each scorer in the reward.

    Each such scorer is tried on an empty completion of up to 32 prompts, spread evenly over all that have an
    answer.

    Raises:
        ValueError: a scorer can score none of them, so that no completion would have a reward.
    """
    for entry in run.scorers.values():
        key = f"{entry.key} ({entry.kind_name})"
        if entry.options.own_code() and (without := [each for each in prompts if not _has_truth(each)]):
            note(
                f"{key}: {len(without)} of {len(prompts)} rows of data.train have no answer "
                f"({_named(without)}); the function gets ground_truth=None"
            )
        if entry.common.weight == 0 and entry.common.combine == "sum":
            continue  # only logged: it does not enter the reward
        if entry.kind.needs_answer:
            _check(key, entry, prompts, note)


def _check(
    key: str, entry: BoundEntry[ScorerCommon], prompts: Sequence[Prompt], note: Callable[[str], None]
) -> None:
    # An answer of spaces is none.
    lacking = [prompt for prompt in prompts if not (prompt.answer or "").strip()]
    having = [prompt for prompt in prompts if (prompt.answer or "").strip()]
    what = "an answer in text or a number to compare with"
    if not having:
        raise ValueError(
            f"{key}: data.train must have {what}, got {len(prompts)} prompts without one "
            f"({_named(lacking)}): give its rows an `answer`, or use a scorer that needs none"
        )
    if lacking:
        note(
            f"{key}: {len(lacking)} of {len(prompts)} prompts of data.train lack {what} ({_named(lacking)}); "
            "their completions have no reward and are not trained on"
        )
    tried = having[:: -(-len(having) // _NUM_TRIED)]  # a stride rounded up, so at most _NUM_TRIED
    refused = [
        (prompt, judgement.detail)
        for prompt, judgement in zip(tried, _try(entry, tried), strict=True)
        if judgement.status != "ok"
    ]
    if not refused:
        return
    count = f"{len(refused)} of {len(tried)} that were tried ({_named([prompt for prompt, _ in refused])})"
    reason = f"{count}; the reason for the first: {refused[0][1]}"
    if len(refused) == len(tried):
        raise ValueError(f"{key}: data.train must have answers that the scorer can read, got {reason}")
    note(f"{key}: data.train has answers that the scorer cannot read: {reason}")


def _try(entry: BoundEntry[ScorerCommon], prompts: Sequence[Prompt]) -> list[Judgement]:
    """The scorer's result for an empty completion of each prompt."""
    if entry.kind.isolated:  # it may hang, and must not take the driver with it
        pool = KillablePool(entry.kind.target, entry.options, 1, entry.options.limit_s)
        try:
            return [pool.score(prompt, [_TRIAL])[0] for prompt in prompts]
        finally:
            pool.close()
    return asyncio.run(_try_here(entry, prompts))


async def _try_here(entry: BoundEntry[ScorerCommon], prompts: Sequence[Prompt]) -> list[Judgement]:
    """The same of a kind that needs no sandbox, whatever its form."""
    target, found = await open_target(entry.function(), entry.options, 1), []
    try:
        for prompt in prompts:
            try:
                found += check_judgements(await target.score(prompt, [_TRIAL]), 1)
            except ValueError as error:
                found.append(Judgement(score=None, status="error", detail=str(error)))
    finally:
        await target.close()
    return found


def _has_truth(prompt: Prompt) -> bool:
    return prompt.ground_truth is not None or prompt.answer is not None


def _named(prompts: Sequence[Prompt]) -> str:
    return named_rows([row_of(prompt) for prompt in prompts])
