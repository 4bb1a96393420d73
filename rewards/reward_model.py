"""The score of a frozen classifier, such as a reward model or a cross-encoder. The scorer `reward_model`.

In: prompts with completions, of several groups at once. Out: Judgements, whose numbers have the raw logit.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence

from configs.kinds.reward_model import RewardModelOptions
from rewards.model_calls import ClassifyReply, Messages, Model, TextOrPair
from rewards.target_forms import Item, batched
from rollouts.records import Completion, Judgement, Prompt


@batched
class RewardModel:
    """Scores with the model that `options.model` names among `models`.

    The score is scale x activation(logit of `label`) + bias. An input that the model refuses (too long with
    `over_long: no_score`, refused by the chat template) has no score; the others of its batch keep theirs.

    Raises:
        ModelCallError: (from `score`) the model could not be asked.
    """

    def __init__(self, options: RewardModelOptions, models: Mapping[str, Model]) -> None:
        self._options, self._model = options, models[options.model]

    async def score(self, items: Sequence[Item]) -> list[Judgement]:
        """One judgement for each pair of prompt and completion."""
        inputs = [self._input(prompt, completion) for prompt, completion in items]
        try:
            replies = await self._classify(inputs)
        except ValueError:
            # Some input was refused, and the message says which not. Asked alone, the others have scores.
            return list(await asyncio.gather(*(self._alone(each) for each in inputs)))
        return [self._judgement(reply) for reply in replies]

    async def _alone(self, given: TextOrPair) -> Judgement:
        try:
            (reply,) = await self._classify([given])
        except ValueError as error:
            return Judgement(score=None, status="error", detail=str(error))
        return self._judgement(reply)

    async def _classify(self, inputs: Sequence[TextOrPair]) -> list[ClassifyReply]:
        over_long = self._options.over_long
        return await self._model.classify(inputs, "refuse" if over_long == "no_score" else over_long)  # type: ignore[arg-type]

    def _input(self, prompt: Prompt, completion: Completion) -> TextOrPair:
        match self._options.input:
            case "chat":
                return conversation(prompt, completion.text)
            case "pair":
                question = [content for role, content in prompt.messages if role != "assistant"]
                return "\n".join(question), completion.text
            case "text":
                return "\n".join(content for _, content in conversation(prompt, completion.text))
        return completion.text

    def _judgement(self, reply: ClassifyReply) -> Judgement:
        options = self._options
        index = int(options.label)
        # Checked for each reply, because only the model knows how many labels it has.
        if not 0 <= index < len(reply.logits):
            detail = f"label must be below the model's {len(reply.logits)} labels, got {index}"
            return Judgement(score=None, status="error", detail=detail)
        logit = reply.logits[index]
        value = activated(options.activation, reply.logits, index)
        return Judgement(
            score=options.scale * value + options.bias,
            numbers={"logit": logit, "tokens": float(reply.num_tokens), "cut": float(reply.was_cut)},
        )


def conversation(prompt: Prompt, text: str) -> Messages:
    """The prompt's messages and the completion, which begins with a prefill, as the assistant's."""
    # A prefill is the last message, an unfinished one of the assistant, and scorers get it in the completion
    # (`trainer.rollout.rollouter.whole_texts`): it must not be there twice.
    before = prompt.messages[:-1] if prompt.prefill else prompt.messages
    return (*before, ("assistant", text))


def activated(activation: str, logits: Sequence[float], index: int) -> float:
    """The logit itself (none), 1 / (1 + exp(-logit)) (sigmoid), or the label's share of exp (softmax)."""
    logit = logits[index]
    if activation == "softmax":
        top = max(logits)
        return math.exp(logit - top) / sum(math.exp(each - top) for each in logits)
    if activation == "sigmoid":
        # Both forms are exact; each overflows where the other does not.
        return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))
    return logit
