"""The rollouter `single_turn`: generate, score with every scorer at once, combine. Evaluations use it too."""

from __future__ import annotations

from configs.kinds.rollouters import SingleTurnOptions
from rollouts.records import Group, Submission
from trainer.rollout.rollouter import RolloutTools


async def single_turn(
    submission: Submission, tools: RolloutTools, options: SingleTurnOptions | None = None
) -> Group:
    """A sample for each seed of the submission: a completion of its prompt, judged by every scorer.

    Raises:
        TimeoutError: the completions were not there by the deadline. A scorer that is late gives nulls.
    """
    completions = await tools.generate()
    verdicts = await tools.score(completions)
    samples = [tools.combined(*pair) for pair in zip(completions, verdicts, strict=True)]
    return Group(submission=submission, samples=tuple(samples))
