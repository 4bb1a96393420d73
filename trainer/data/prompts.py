"""Token prompts from dataset rows, and the order of prompts. Used by the producer and the evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from configs.bound import BoundEntry
from configs.kinds.base import Common, OwnOptions
from configs.kinds.datasets import FileOptions
from rollouts.records import Prompt
from trainer.data.encode import named_rows, prompt_ids, row_of
from trainer.data.plain_values import plain_value
from trainer.data.row_files import check_file
from trainer.seeds import derive_seed

if TYPE_CHECKING:  # the base install reads datasets without transformers
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """A prompt with its token ids (`trainer.data.encode.prompt_ids`)."""

    prompt: Prompt
    token_ids: tuple[int, ...]


def load_dataset(entry: BoundEntry[Common]) -> list[Prompt]:
    """The prompts of a `data.train` or `data.eval` entry.

    Raises:
        ValueError: the dataset is empty, names a prompt twice, or has values that JSON cannot hold.
    """
    if isinstance(entry.options, FileOptions):
        check_file(f"{entry.key}.path", entry.options.path)
    prompts: list[Prompt] = entry.function()(entry.options)
    # Our own readers have converted values already, with the file and the line in their errors.
    if entry.kind.options is OwnOptions:
        prompts = [_with_plain_values(prompt) for prompt in prompts]
    if not prompts:
        raise ValueError(f"a dataset must have at least one prompt, got none from {entry.options}")
    if len({prompt.prompt_id for prompt in prompts}) != len(prompts):
        raise ValueError(
            f"prompt_id must be unique within a dataset, got a repeated one from {entry.options}"
        )
    return prompts


def check_fields(refiner: BoundEntry[Common], prompts: Sequence[Prompt]) -> None:
    """Check that each prompt has the fields of its dataset's row that the refiner reads.

    Raises:
        ValueError: one has no text there, so that the refiner would fail in the middle of the run.
    """
    for option, name in refiner.options.row_fields().items():
        given = [(prompt, prompt.extra.get(name)) for prompt in prompts]
        lacking = [row_of(prompt) for prompt, text in given if not (isinstance(text, str) and text.strip())]
        if lacking:
            some = f"{len(lacking)} of {len(prompts)} rows have no text ({named_rows(lacking)})"
            rule = "no row of data.train has it" if len(lacking) == len(prompts) else some
            raise ValueError(
                f"{refiner.key}.{option} = {name!r}: {rule}, and each must; for the lab set "
                "data.train.solutions=code"
            )


def _with_plain_values(prompt: Prompt) -> Prompt:
    """A prompt of a user's own dataset with the values that a reward function will get.

    Raises:
        ValueError: JSON cannot hold a value, or the answer is not text.
    """
    if not isinstance(prompt.answer, str | None):
        kind = type(prompt.answer).__name__
        raise ValueError(
            f"{row_of(prompt)}: answer must be text or None, got {kind}: give it as ground_truth"
        )
    try:
        extra = {key: plain_value(value) for key, value in prompt.extra.items()}
        return replace(prompt, extra=extra, ground_truth=plain_value(prompt.ground_truth))
    except ValueError as error:
        raise ValueError(
            f"{row_of(prompt)}: extra and ground_truth must be what JSON can hold: {error}"
        ) from error


def tokenize_prompts(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    max_tokens: int,
    key: str = "data",
) -> tuple[list[TokenPrompt], list[Prompt]]:
    """Token prompts of at most `max_tokens` tokens, and the prompts dropped as too long.

    `key` is the config key of the dataset, for messages.

    Raises:
        ValueError: a prompt cannot be encoded (`trainer.data.encode.prompt_ids`), or every one is too long.
    """
    kept: list[TokenPrompt] = []
    too_long: list[Prompt] = []
    longest = 0
    for prompt in prompts:
        ids = prompt_ids(prompt, tokenizer, vocab_size)
        longest = max(longest, len(ids))
        if len(ids) <= max_tokens:
            kept.append(TokenPrompt(prompt, ids))
        else:
            too_long.append(prompt)
    if not kept:
        raise ValueError(
            f"{key}: all {len(prompts)} prompts are longer than rollout.max_prompt_tokens = {max_tokens} "
            f"({named_rows([row_of(prompt) for prompt in too_long])}); the longest has {longest} tokens: "
            f"set rollout.max_prompt_tokens={longest} to keep them all"
        )
    return kept, too_long


@dataclass(frozen=True, slots=True)
class PromptOrder:
    """Which prompt a group gets: depends only on the run's seed, the step and the group's place in it."""

    prompts: Sequence[TokenPrompt]
    seed: int
    shuffle: bool

    def at(self, number: int) -> TokenPrompt:
        """The prompt at position `number` (from 0) of all epochs; each epoch has every prompt once."""
        epoch, place = divmod(number, len(self.prompts))
        return self._prompt(int(self._order(epoch)[place]), epoch)

    def of_step(self, step: int, place: int, num_groups: int) -> TokenPrompt:
        """The prompt of group `place` of a step (both from 0).

        The first `num_groups` places get the next prompts of the epoch. Further places (refill) get the other
        prompts in shuffled order, then these again, so a step repeats a prompt only if it runs out of them.
        """
        first, size = step * num_groups, len(self.prompts)
        if place < num_groups:
            return self.at(first + place)
        # A step may cross the boundary of two or more epochs, each with an order of its own.
        epochs = range(first // size, (first + num_groups - 1) // size + 1)
        in_turn = np.concatenate([self._order(epoch) for epoch in epochs])
        start = first - epochs.start * size
        mixed = np.random.default_rng(derive_seed(self.seed, "further", step)).permutation(size)
        is_used = np.isin(mixed, in_turn[start : start + num_groups])
        further = np.concatenate([mixed[~is_used], mixed[is_used]])
        return self._prompt(int(further[(place - num_groups) % size]), epochs.start)

    def _order(self, epoch: int) -> np.ndarray:
        """The indexes of all prompts in the order of that epoch."""
        if not self.shuffle:
            return np.arange(len(self.prompts))
        return np.random.default_rng(derive_seed(self.seed, "epoch", epoch)).permutation(len(self.prompts))

    def _prompt(self, index: int, epoch: int) -> TokenPrompt:
        chosen = self.prompts[index]
        return TokenPrompt(replace(chosen.prompt, epoch=epoch), chosen.token_ids)
