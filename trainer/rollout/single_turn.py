"""The rollouter `single_turn`: generate, score with every scorer at once, combine. Evaluations use it too."""

from __future__ import annotations

from dataclasses import replace

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
    # As in TRL: an answer that the prompt begins is judged whole.
    prefill = submission.prompt.prefill
    whole = [replace(each, text=prefill + each.text) for each in completions] if prefill else completions
    verdicts = await tools.score(whole)
    samples = [tools.combined(*pair) for pair in zip(completions, verdicts, strict=True)]
    return Group(submission=submission, samples=tuple(samples))
