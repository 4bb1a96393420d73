"""Refinement by critique: an answer is criticised, and the policy answers again knowing the critique.

The refiners `critique_grpo` (arXiv 2506.03106) and `rltf_sd` (arXiv 2602.02482) sample their rows alike and
differ in options: which groups, how many rows, and which baseline. The second answer is sampled under
question, first answer and critique, and trained under the question alone: its token ids are kept as sampled,
its `behavior_prompt_ids` are the context, and no importance ratio between the two is valid.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from configs.kinds.base import load_target
from configs.kinds.refiners import CriticOptions, CritiqueOptions
from configs.origins import REFINED
from configs.templates import PromptSet, load_prompt_set
from rewards.model_calls import GenerateRequest, ModelCallError
from rollouts.records import Completion, Critique, Group, Prompt, Sample
from trainer.rollout.refiner import Attempt, is_right, policy_samples
from trainer.rollout.rollouter import RolloutTools, whole_texts
from trainer.seeds import derive_seed

NO_ROOM: Final = "no_room"
CRITIC_FAILED: Final = "critic_failed"
MENTIONS: Final = "critique/mentions"
LEAKED: Final = "critique/leaked"
VERDICTS: Final = ("indicative", "with_truth")
"""Writers that only say whether an answer is right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One answer to be criticised: `number` is its place among the group's samples of origin policy."""

    number: int
    parent: Sample
    prompt: Prompt
    is_right: bool

    @property
    def fields(self) -> dict[str, str]:
        """The fields of templates; without a known answer, {reference} is empty."""
        return {
            "question": question_of(self.prompt),
            "answer": self.prompt.prefill + self.parent.completion.text,
            "reference": self.prompt.answer or "",
        }


async def refine_by_critique(group: Group, tools: RolloutTools, options: CritiqueOptions) -> list[Attempt]:
    """A second answer for each policy row that has a reward, sampled knowing its critique.

    Raises:
        ValueError: a template of the model refuses the context, or with_truth has a prompt without an answer.
        TimeoutError: the group's deadline has passed.
    """
    prompts, prompt = load_prompt_set(options.prompts), group.submission.prompt
    check_truth(options.writer, prompt)
    cases = [
        Case(number=number, parent=each, prompt=prompt, is_right=is_right(each, options.threshold))
        for number, each in enumerate(policy_samples(group)[: len(group.submission.seeds)])
        if each.reward is not None
    ]
    # All numbers of turns are taken before the first call, so that they do not depend on timing.
    first_turn = tools.next_turn()
    critic = critic_of(options, prompts, tools, first_turn)
    attempts = await asyncio.gather(
        *(_attempt(each, critic, prompts, tools, first_turn + 1) for each in cases)
    )
    made = [each for each in attempts if isinstance(each, _Made)]
    judgements = await tools.score(whole_texts(prompt, [each.completion for each in made]))
    samples = iter(
        _refined(
            each, tools.combined(each.completion, judged, REFINED, each.parent_id, each.context), options
        )
        for each, judged in zip(made, judgements, strict=True)
    )
    return [
        Attempt(parent=case.parent, sample=next(samples))
        if isinstance(each, _Made)
        else Attempt(parent=case.parent, sample=None, failure=each)
        for case, each in zip(cases, attempts, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A second answer, its context in tokens, and the critique that the context holds."""

    completion: Completion
    context: tuple[int, ...]
    critique: Critique
    parent_id: str


Critic = Callable[[Case], Awaitable[Critique | None]]
"""None if the critic failed: the answer is then not refined."""


async def _attempt(
    case: Case, critic: Critic, prompts: PromptSet, tools: RolloutTools, turn: int
) -> _Made | str:
    """The second answer of one case, or why there is none."""
    critique = await critic(case)
    if critique is None:
        return CRITIC_FAILED
    text = prompts.refine({**case.fields, "critique": critique.text})
    context = tools.encode_prompt(with_question(case.prompt, text))
    if tools.room(context, continued=False) < 1:
        return NO_ROOM
    (completion,) = await tools.generate(context, samples=[case.number], turn=turn, continued=False)
    return _Made(
        completion=completion,
        context=context,
        critique=critique,
        parent_id=case.parent.completion.sample_id,
    )


def check_truth(writer: str, prompt: Prompt) -> None:
    """Raise a ValueError if the writer of critiques is to say an answer that the prompt does not have."""
    if writer == "with_truth" and prompt.answer is None:
        raise ValueError(
            f"refiner style with_truth must have an answer to say, prompt {prompt.prompt_id} has none"
        )


def critic_of(options: CriticOptions, prompts: PromptSet, tools: RolloutTools, turn: int) -> Critic:
    """The critic that the options name. Answers that are right get their verdict, whoever writes."""

    async def by_verdict(case: Case) -> Critique:
        with_truth = options.writer == "with_truth"
        text = prompts.verdict(case.fields, case.is_right, with_truth)
        kind = options.writer if options.writer in VERDICTS else "cot"
        verdict = "right" if case.is_right else "wrong"
        return Critique(text=text, kind=kind, verdict=verdict, leaked=leaks(text, case.prompt))

    if options.writer in VERDICTS:
        return by_verdict
    writers: Mapping[str, Critic] = {
        "rule": lambda case: _by_rule(case, options),
        "policy": lambda case: _by_policy(case, options, prompts, tools, turn),
        "model": lambda case: _by_model(case, options, prompts, tools),
    }
    writer = writers[options.writer]

    async def critic(case: Case) -> Critique | None:
        return await (by_verdict(case) if case.is_right else writer(case))

    return critic


async def _by_rule(case: Case, options: CriticOptions) -> Critique:
    verdict, text = load_target(options.rule)(case.prompt, case.fields["answer"])
    return Critique(text=text, kind="rule", verdict=verdict, leaked=leaks(text, case.prompt))


async def _by_policy(
    case: Case, options: CriticOptions, prompts: PromptSet, tools: RolloutTools, turn: int
) -> Critique | None:
    context = tools.encode_prompt(with_question(case.prompt, prompts.critic(case.fields)))
    if tools.room(context, continued=False) < 1:
        return None
    (written,) = await tools.generate(
        context, [case.number], turn, max_tokens=options.critic_tokens, continued=False
    )
    return Critique(text=written.text, kind="policy", leaked=leaks(written.text, case.prompt))


async def _by_model(
    case: Case, options: CriticOptions, prompts: PromptSet, tools: RolloutTools
) -> Critique | None:
    request = GenerateRequest(
        prompt=(("user", prompts.critic(case.fields)),),
        max_tokens=options.critic_tokens,
        temperature=options.critic_temperature,
        seed=derive_seed(case.parent.completion.seed, "critic"),
    )
    try:
        # A late critic fails its case and not the group: half of what is left is kept for the second answer.
        async with asyncio.timeout(max(tools.remaining_s() / 2, 0.0)):
            (reply,) = await tools.models[options.model].generate([request])
    except (ModelCallError, TimeoutError):
        return None
    return Critique(text=reply.text, kind="model", leaked=leaks(reply.text, case.prompt))


def _refined(made: _Made, sample: Sample, options: CritiqueOptions) -> Sample:
    """The scored second answer with its critique, and whether it betrays its context."""
    text = made.completion.text.lower()
    mentions = any(phrase.lower() in text for phrase in options.mentions)
    numbers = {**sample.numbers, MENTIONS: float(mentions), LEAKED: float(made.critique.leaked)}
    return replace(sample, critique=made.critique, numbers=numbers)


def leaks(text: str, prompt: Prompt) -> bool:
    """Whether the prompt's answer is in the text as a whole word; false if no answer is known."""
    if prompt.answer is None or not prompt.answer.strip():
        return False
    return bool(re.search(rf"(?<![\w.]){re.escape(prompt.answer.strip())}(?![\w]|\.\d)", text))


def question_of(prompt: Prompt) -> str:
    """The last message of the user, which templates call {question}."""
    return next((content for role, content in reversed(prompt.messages) if role == "user"), "")


def with_question(prompt: Prompt, text: str) -> Prompt:
    """The prompt with another last message of the user; system messages and a prefill stay."""
    last = max((at for at, (role, _) in enumerate(prompt.messages) if role == "user"), default=None)
    if last is None:
        raise ValueError(f"prompt {prompt.prompt_id} must have a message of the user to be refined, got none")
    messages = (*prompt.messages[:last], ("user", text), *prompt.messages[last + 1 :])
    return replace(prompt, messages=messages)
