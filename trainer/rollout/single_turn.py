"""The rollouter `single_turn`: generate, score with all scorers, combine. Evaluations use it too."""

from __future__ import annotations

from dataclasses import replace

from configs.kinds.rollouters import SingleTurnOptions
from rollouts.records import Group, Submission
from trainer.rollout.rollouter import RolloutTools


async def single_turn(
    submission: Submission, tools: RolloutTools, options: SingleTurnOptions | None = None
) -> Group:
    """One sample per seed of the submission: a completion of its prompt, scored by every scorer.

    Raises:
        TimeoutError: the completions were not ready by the deadline. A scorer that is late gives null scores.
    """
    completions = await tools.generate()
    # As in TRL, scorers get the prefill and the completion together.
    prefill = submission.prompt.prefill
    whole = [replace(each, text=prefill + each.text) for each in completions] if prefill else completions
    judgements = await tools.score(whole)
    # The stored completion is without the prefill, which is part of the prompt.
    samples = [tools.combined(*pair) for pair in zip(completions, judgements, strict=True)]
    return Group(submission=submission, samples=tuple(samples))
