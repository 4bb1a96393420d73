"""From dataset rows to token prompts, and which prompt comes when. Used by the producer and the evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from configs.entries import plain_options
from configs.kinds.base import load_target
from configs.schema import ModelConfig
from rollouts.records import Prompt
from trainer.seeds import derive_seed


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """A prompt with its token ids under the chat template, generation prompt included."""

    prompt: Prompt
    token_ids: tuple[int, ...]


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        ValueError: there is none, or it has no chat template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.path must hold a tokenizer, got {model.path!r}: {error}") from error
    if not tokenizer.chat_template:
        raise ValueError(f"the tokenizer of {model.path!r} must have a chat template, got none")
    return tokenizer  # type: ignore[no-any-return]


def load_dataset(entry: dict[str, object]) -> list[Prompt]:
    """The prompts of a `data.train` or `data.eval` entry.

    Raises:
        ValueError: the dataset is empty or names a prompt twice.
    """
    options, kind = plain_options(entry, "data.train")
    prompts: list[Prompt] = load_target(kind.target)(options)
    if not prompts:
        raise ValueError(f"a dataset must have at least one prompt, got none from {entry}")
    if len({prompt.prompt_id for prompt in prompts}) != len(prompts):
        raise ValueError(f"prompt_id must be unique within a dataset, got a repeated one from {entry}")
    return prompts


def prompt_ids(messages: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Token ids of (role, content) messages under the chat template, generation prompt included.

    Raises:
        ValueError: the template puts the beginning-of-sequence token twice.
    """
    chat = [{"role": role, "content": content} for role, content in messages]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    start = tokenizer.bos_token_id
    if start is not None and list(ids[:2]) == [start, start]:
        raise ValueError(
            f"the chat template must put {tokenizer.bos_token!r} once, got it twice at the start"
        )
    return tuple(int(token) for token in ids)


def tokenize_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> tuple[list[TokenPrompt], int]:
    """Token prompts of at most `max_tokens` tokens, and how many were left out as too long.

    Raises:
        ValueError: the template puts the beginning-of-sequence token twice, or every prompt is too long.
    """
    kept: list[TokenPrompt] = []
    for prompt in prompts:
        ids = prompt_ids(prompt.messages, tokenizer)
        if len(ids) <= max_tokens:
            kept.append(TokenPrompt(prompt, ids))
    if not kept:
        raise ValueError(f"every prompt is longer than rollout.max_prompt_tokens = {max_tokens}")
    return kept, len(prompts) - len(kept)


@dataclass(frozen=True, slots=True)
class PromptOrder:
    """Which prompt a group gets: a pure function of the run's seed, the step and the group's place in it."""

    prompts: Sequence[TokenPrompt]
    seed: int
    shuffle: bool

    def at(self, number: int) -> TokenPrompt:
        """The prompt of that number in turn; every epoch has its own order and all prompts once."""
        epoch, place = divmod(number, len(self.prompts))
        return self._prompt(int(self._order(epoch)[place]), epoch)

    def of_step(self, step: int, place: int, num_groups: int) -> TokenPrompt:
        """The prompt of group `place` of a step (both from 0).

        The first `num_groups` are the next in turn. Further ones come from a shuffle of the others, then of
        these: a step has no prompt twice as long as there are enough.
        """
        first, size = step * num_groups, len(self.prompts)
        if place < num_groups:
            return self.at(first + place)
        epochs = range(first // size, (first + num_groups - 1) // size + 1)
        in_turn = np.concatenate([self._order(epoch) for epoch in epochs])
        start = first - epochs.start * size
        mixed = np.random.default_rng(derive_seed(self.seed, "further", step)).permutation(size)
        is_used = np.isin(mixed, in_turn[start : start + num_groups])
        further = np.concatenate([mixed[~is_used], mixed[is_used]])
        return self._prompt(int(further[(place - num_groups) % size]), epochs.start)

    def _order(self, epoch: int) -> np.ndarray:
        """The numbers of all prompts in the order of that epoch."""
        if not self.shuffle:
            return np.arange(len(self.prompts))
        return np.random.default_rng(derive_seed(self.seed, "epoch", epoch)).permutation(len(self.prompts))

    def _prompt(self, index: int, epoch: int) -> TokenPrompt:
        chosen = self.prompts[index]
        return TokenPrompt(replace(chosen.prompt, epoch=epoch), chosen.token_ids)
