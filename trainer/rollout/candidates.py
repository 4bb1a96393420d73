"""The rollouter `candidates`: a completion that holds several answers, each scored on its own.

For Vector Policy Optimization (the reward shape `vpo`), which rewards a completion for the best of its
answers under random weights of several scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from configs.kinds.rollouters import CandidatesOptions
from rollouts.records import Completion, Group, Judgement, Sample, Submission
from trainer.reward_ties import first_best
from trainer.rollout.rollouter import RolloutTools


async def candidates(submission: Submission, tools: RolloutTools, options: CandidatesOptions) -> Group:
    """One sample per seed; its scores are those of its best answer, by the reward that it gives.

    A completion is split at `separator`. The scores of answer k are also stored as the numbers
    ``candidate/<k>/<scorer>``, without those that are null, and the number of answers as
    ``candidate/count``. Scorers that compare completions see the answers of the whole group. Spans are left
    out: a scorer counts them within an answer.

    Raises:
        TimeoutError: the completions were not ready by the deadline. A scorer that is late gives null scores.
    """
    completions = await tools.generate()
    prefill = submission.prompt.prefill
    answers = [split(prefill + each.text, options) for each in completions]
    every = [
        replace(completion, text=text)
        for completion, texts in zip(completions, answers, strict=True)
        for text in texts
    ]
    judged = iter(await tools.score(every))
    samples = []
    for completion, texts in zip(completions, answers, strict=True):
        samples.append(_sample(completion, [next(judged) for _ in texts], tools))
    return Group(submission=submission, samples=tuple(samples))


def split(text: str, options: CandidatesOptions) -> list[str]:
    """The answers in a text: at most `max_candidates`, none of them empty unless there is no other."""
    pieces = [piece.strip() for piece in text.split(options.separator)]
    return [piece for piece in pieces if piece][: options.max_candidates] or [""]


def _sample(completion: Completion, judged: Sequence[Mapping[str, Judgement]], tools: RolloutTools) -> Sample:
    """The sample of the best answer: the first of those of highest reward; a null reward is the lowest."""
    made = [tools.combined(completion, _without_spans(each)) for each in judged]
    best = made[first_best([each.reward for each in made])]
    numbers = {
        f"candidate/{k}/{name}": score
        for k, sample in enumerate(made)
        for name, score in sample.scores.items()
        if score is not None
    }
    return replace(best, numbers={**best.numbers, "candidate/count": float(len(made)), **numbers})


def _without_spans(judgements: Mapping[str, Judgement]) -> dict[str, Judgement]:
    return {name: replace(judgement, spans=()) for name, judgement in judgements.items()}
