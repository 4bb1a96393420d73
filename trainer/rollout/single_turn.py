"""The rollouter `single_turn`: generate, score with all scorers, combine. Evaluations use it too."""

from __future__ import annotations

from configs.kinds.rollouters import SingleTurnOptions
from rollouts.records import Group, Submission
from trainer.rollout.rollouter import RolloutTools, whole_texts


async def single_turn(
    submission: Submission, tools: RolloutTools, options: SingleTurnOptions | None = None
) -> Group:
    """One sample per seed of the submission: a completion of its prompt, scored by every scorer.

    Raises:
        TimeoutError: the completions were not ready by the deadline. A scorer that is late gives null scores.
    """
    completions = await tools.generate()
    judgements = await tools.score(whole_texts(submission.prompt, completions))
    # The stored completion is without the prefill, which is part of the prompt.
    samples = [tools.combined(*pair) for pair in zip(completions, judgements, strict=True)]
    return Group(submission=submission, samples=tuple(samples))
