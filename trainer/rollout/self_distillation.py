"""Self-distillation: rows that a teacher scores, who reads what the policy did not when it answered.

The refiner `sdpo` (SDPO, arXiv 2601.20802). Nothing is sampled: a row of origin distilled repeats an answer
of the group token by token, and holds the prompt of the teacher, which is the question with a right answer
of a sibling, feedback on this answer, or both. The learner scores the answer's tokens under both prompts.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from configs.kinds.refiners import SdpoOptions
from configs.origins import DISTILLED
from configs.templates import PromptSet, load_prompt_set
from rollouts.records import Critique, Group, Prompt, Sample
from trainer.rollout.critique import (
    CRITIC_FAILED,
    LEAKED,
    NO_ROOM,
    Case,
    check_truth,
    critic_of,
    question_of,
    with_question,
)
from trainer.rollout.refiner import Attempt, is_right, policy_samples
from trainer.rollout.rollouter import RolloutTools

HAS_SOLUTION: Final = "teacher/solution"
HAS_FEEDBACK: Final = "teacher/feedback"
"""Numbers of a distilled row: 1 if its teacher is shown a solution, or feedback, else 0."""
SOLUTION_OF: Final = "teacher/solution_of"
"""Text of a distilled row: the sample_id of the answer that the teacher is shown."""


async def add_taught_rows(group: Group, tools: RolloutTools, options: SdpoOptions) -> list[Attempt]:
    """A row of origin distilled for each policy row with a reward whose teacher has something to read.

    The row has the tokens, logprobs, mask, scores and reward of its parent. Where the teacher's prompt and
    the tokens are too long together there is none (`no_room`).

    Raises:
        ValueError: a template of the model refuses the context, or with_truth has a prompt without an answer.
        TimeoutError: the group's deadline has passed.
    """
    prompt, prompts, own = group.submission.prompt, load_prompt_set(options.prompts), policy_samples(group)
    check_truth(options.writer, prompt)
    solutions = [_solution(prompt, own, each, options) for each in own]
    feedback = await _feedback(group, solutions, prompts, tools, options)
    attempts = (
        _attempt(prompt, *each, prompts, tools) for each in zip(own, solutions, feedback, strict=True)
    )
    return [each for each in attempts if each is not None]


def _solution(
    prompt: Prompt, own: list[Sample], parent: Sample, options: SdpoOptions
) -> tuple[str, str] | None:
    """(sample_id, text) of the first right answer of the group that is another than `parent`."""
    if not options.solutions or parent.reward is None:
        return None
    for each in own:
        # By identity: the parent's own success would teach it to copy itself.
        if each is parent or not is_right(each, options.threshold):
            continue
        text = prompt.prefill + each.completion.text
        text = without_thinking(text) if options.drop_thinking else text
        if text.strip():
            return each.completion.sample_id, text
    return None


def without_thinking(text: str) -> str:
    """The text without <think>...</think>, whose opening tag may be part of the prompt."""
    before, closing, after = text.rpartition("</think>")
    return (after if closing else before + after).partition("<think>")[0].strip()


async def _feedback(
    group: Group,
    solutions: list[tuple[str, str] | None],
    prompts: PromptSet,
    tools: RolloutTools,
    options: SdpoOptions,
) -> list[Critique | str | None]:
    """What is said of each answer: a critique, `critic_failed`, or None where nothing is to be said."""
    own, prompt = policy_samples(group), group.submission.prompt
    if options.writer == "none":
        return [None] * len(own)
    writes = critic_of(options, prompts, tools, tools.next_turn())
    # The policy as a critic samples with the seed of the answer, which an own rollouter may have none for.
    last = {"policy": len(group.submission.seeds)}.get(options.writer, len(own))

    async def said(number: int) -> Critique | str | None:
        parent, shown = own[number], solutions[number] is not None and not options.feedback_with_solution
        is_wrong = parent.reward is not None and not is_right(parent, options.threshold)
        if not is_wrong or shown or number >= last:
            return None
        case = Case(number=number, parent=parent, prompt=prompt, is_right=False)
        return await writes(case) or CRITIC_FAILED

    return await asyncio.gather(*(said(number) for number in range(len(own))))


def _attempt(
    prompt: Prompt,
    parent: Sample,
    solution: tuple[str, str] | None,
    said: Critique | str | None,
    prompts: PromptSet,
    tools: RolloutTools,
) -> Attempt | None:
    """The row of one answer, or why there is none; None if its teacher would know nothing more."""
    failure = said if isinstance(said, str) else ""
    critique = said if isinstance(said, Critique) else None
    if solution is None and critique is None:
        return Attempt(parent=parent, sample=None, failure=failure) if failure else None
    shown, told = solution[1] if solution else None, critique.text if critique else None
    text = prompts.teacher(question_of(prompt), shown, told)
    context = tools.encode_prompt(with_question(prompt, text))
    if tools.room(context, continued=False) < len(parent.completion.token_ids):
        return Attempt(parent=parent, sample=None, failure=NO_ROOM)
    numbers = {HAS_SOLUTION: float(solution is not None), HAS_FEEDBACK: float(critique is not None)}
    name = parent.completion.sample_id
    sample = replace(
        parent,
        completion=replace(parent.completion, sample_id=f"{name}.taught"),
        origin=DISTILLED,
        parent_id=name,
        critique=critique,
        teacher_prompt_ids=context,
        numbers={**parent.numbers, **numbers, **({LEAKED: float(critique.leaked)} if critique else {})},
        texts={**parent.texts, **({SOLUTION_OF: solution[0]} if solution else {})},
    )
    return Attempt(parent=parent, sample=sample, failure=failure)
