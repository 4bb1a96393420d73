"""Controls of critique: refined rows of the same number that no critique led to.

`gold_injection` shows the dataset's own solution; `resample_hot` samples again at another temperature. Both
answer what a gain of a critique is due to: the critique, or that a right answer entered a group without one.
"""

from __future__ import annotations

from configs.kinds.refiners import GoldInjectionOptions, ResampleHotOptions
from configs.origins import REFINED
from rollouts.records import Completion, Group
from trainer.rollout.refiner import Attempt, policy_samples
from trainer.rollout.rollouter import RolloutTools, whole_texts
from trainer.seeds import derive_seed


async def gold_injection(group: Group, tools: RolloutTools, options: GoldInjectionOptions) -> list[Attempt]:
    """The solution of the dataset's row as one refined row, in a share of the groups drawn from the seed.

    It was not sampled: no behavior logprobs, no versions, no context. Its reward is the scorers'. One that is
    longer than `rollout.max_tokens` gives no row, and is counted.

    Raises:
        ValueError: the prompt has no solution of text in the field.
    """
    submission = group.submission
    drawn = derive_seed(submission.seeds[0], "gold") / 2**31
    if drawn >= options.share:
        return []
    solution = submission.prompt.extra.get(options.field)
    if not isinstance(solution, str) or not solution.strip():
        raise ValueError(
            f"refiner gold_injection must have a solution in the field {options.field!r} of every row, "
            f"prompt {submission.prompt.prompt_id} has {solution!r}"
        )
    token_ids = tools.encode_solution(solution)
    if len(token_ids) > tools.room(submission.prompt_ids):
        # Counted at the first answer, as no row of the solution exists.
        return [Attempt(parent=policy_samples(group)[0], sample=None, failure="no_room")]
    completion = Completion(
        sample_id=f"{submission.group_id}.gold",
        seed=0,
        token_ids=token_ids,
        text=solution,
        finish_reason="stop",
        behavior_logprobs=(),
        versions=(),
    )
    (judged,) = await tools.score(whole_texts(submission.prompt, [completion]))
    return [Attempt(parent=None, sample=tools.combined(completion, judged, REFINED))]


async def resample_hot(group: Group, tools: RolloutTools, options: ResampleHotOptions) -> list[Attempt]:
    """Another answer to the same prompt for every policy row, at `options.temperature`."""
    parents = policy_samples(group)[: len(group.submission.seeds)]
    completions = await tools.generate(
        samples=range(len(parents)), turn=tools.next_turn(), temperature=options.temperature
    )
    judgements = await tools.score(whole_texts(group.submission.prompt, completions))
    return [
        Attempt(
            parent=parent, sample=tools.combined(completion, judged, REFINED, parent.completion.sample_id)
        )
        for parent, completion, judged in zip(parents, completions, judgements, strict=True)
    ]
