"""Demonstrations: supervised rows of origin sft, mixed into a step's batch. Used by the driver and the loop.

Input: the entry `sft.data`. Output: rows of GROUP_SCHEMA, tokenized like engine samples, and each step's draw
from them. `load_file` is the kind ``file``; ``lab`` is `lab.corpus.load_demonstrations`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from configs.bound import BoundEntry, BoundRun
from configs.kinds.base import Common
from configs.kinds.demonstrations import FileDemonstrationOptions
from configs.origins import SFT
from configs.schema import RolloutConfig, RunConfig
from rollouts.columns import GROUP_SCHEMA
from rollouts.records import Demonstration
from rollouts.schema import named_for_step, sft_batch
from trainer.data.encode import check_ids, named_rows, prompt_ids, row_of
from trainer.data.file_dataset import is_text, prompt_messages, row_domain, row_id
from trainer.data.row_files import Row, check_file, first_given, is_given, read_rows, to_messages, to_text
from trainer.seeds import derive_seed

if TYPE_CHECKING:  # the base install reads demonstrations without transformers
    from transformers import PreTrainedTokenizerBase

SHARE: Final = "sft.share"
"""The setting of this module that a controller may change."""
_COMPLETION_KEYS = ("completion", "response", "demonstration")


def load_file(options: FileDemonstrationOptions) -> list[Demonstration]:
    """The demonstrations of `options.path`, in order; if `options.limit` is positive, only the first ones.

    Prompt, name and domain are read as in `trainer.data.file_dataset`, but names may repeat. The answer is
    `completion`, `response` or `demonstration`. A row without one of these is read from `messages`, a chat
    whose last message is the assistant's. All other keys are ignored.

    Raises:
        ValueError: the file cannot be read, or a row is invalid; the message names file, row and key.
    """
    rows = read_rows(options.path, options.limit, "sft.data")
    return [_to_demonstration(row, options.domain) for row in rows]


def _to_demonstration(row: Row, domain: str) -> Demonstration:
    key, value = first_given(row, _COMPLETION_KEYS)
    if key:
        messages, completion = prompt_messages(row)[1], to_text(row, key, value)
    else:
        messages, completion = _last_answer(row)
    return Demonstration(
        prompt_id=row_id(row)[1],
        messages=messages,
        completion=completion,
        domain=domain or row_domain(row)[1],
        is_text=bool(key) and is_text(row),
        place=f"{row.path}, {row.place}",
    )


def _last_answer(row: Row) -> tuple[tuple[tuple[str, str], ...], str]:
    """The prompt and the answer of a chat: all messages but the last, and the text of the last."""
    value = row.values.get("messages")
    if not is_given(row, "messages"):
        names = ", ".join(f"`{name}`" for name in _COMPLETION_KEYS[1:])
        raise row.error("completion", f"text (or give {names} or `messages`)", row.values.get("completion"))
    if not isinstance(value, list):
        raise row.error("messages", "a list of chat messages", value)
    *before, (role, completion) = to_messages(row, "messages", value)
    if role != "assistant":
        raise row.error(f"messages[{len(before)}].role", "assistant in the last message", role)
    if not before:
        raise row.error("messages", "a prompt followed by an answer", value)
    return tuple(before), completion


def load_demonstrations(entry: BoundEntry[Common]) -> list[Demonstration]:
    """The demonstrations of the entry `sft.data`.

    Raises:
        ValueError: there are none, or they cannot be read.
    """
    if isinstance(entry.options, FileDemonstrationOptions):
        check_file(f"{entry.key}.path", entry.options.path)
    demonstrations: list[Demonstration] = entry.function()(entry.options)
    if not demonstrations:
        raise ValueError(f"sft.data must have at least one demonstration, got none from {entry.options}")
    return demonstrations


def tokenize_demonstrations(
    demonstrations: Sequence[Demonstration],
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    rollout: RolloutConfig,
    run_id: str,
) -> tuple[pa.RecordBatch, str]:
    """Rows of GROUP_SCHEMA with origin sft, and a sentence about demonstrations that are too long, or "".

    Prompts are encoded as for an engine. The end-of-sequence token that an engine would sample is appended to
    completions. Row i has submission_index i; `draw` sets the ids of a step.

    Raises:
        ValueError: the tokenizer has no end token, a demonstration cannot be encoded, or every one is longer
            than rollout.max_prompt_tokens or rollout.max_tokens; the message names the first rows.
    """
    prompts = [prompt_ids(each, tokenizer, vocab_size) for each in demonstrations]
    completions = _completion_ids(demonstrations, tokenizer, vocab_size)
    lengths = [
        (len(prompt), len(completion)) for prompt, completion in zip(prompts, completions, strict=True)
    ]
    limits = (rollout.max_prompt_tokens, rollout.max_tokens)
    kept = [n for n, (own, said) in enumerate(lengths) if own <= limits[0] and said <= limits[1]]
    left_out = _left_out([row_of(each) for each in demonstrations], lengths, kept, limits)
    if not kept:
        raise ValueError(left_out)
    rows = sft_batch(
        run_id,
        prompt_ids=[prompts[number] for number in kept],
        token_ids=[completions[number] for number in kept],
        text=[demonstrations[number].completion for number in kept],
        domain=[demonstrations[number].domain for number in kept],
        format_tag=[demonstrations[number].format_tag for number in kept],
        prompt_id=[demonstrations[number].prompt_id for number in kept],
    )
    return rows, left_out


def _completion_ids(
    demonstrations: Sequence[Demonstration], tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> list[list[int]]:
    """The tokens of each completion, with the end-of-sequence token."""
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError("the tokenizer must have an end-of-sequence token to end demonstrations, got none")
    texts = [each.completion for each in demonstrations]
    # Without special tokens: some tokenizers put a begin token in front, which would stand inside the text.
    completions = [[*ids, end] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    # Checked here, because an id beyond the vocabulary fails on a GPU without saying which row it was.
    for each, ids in zip(demonstrations, completions, strict=True):
        check_ids(ids, tokenizer, vocab_size, f"{row_of(each)}: completion")
    return completions


def _left_out(
    rows: Sequence[str], lengths: Sequence[tuple[int, int]], kept: Sequence[int], limits: tuple[int, int]
) -> str:
    """Which rows are longer than the limits of prompt and completion, and what would keep them, or ""."""
    long = sorted({*range(len(rows))} - {*kept})
    if not long:
        return ""
    names = ("rollout.max_prompt_tokens", "rollout.max_tokens")
    longest = [max(lengths[number][side] for number in long) for side in (0, 1)]
    needed = [f"{names[side]}={longest[side]}" for side in (0, 1) if longest[side] > limits[side]]
    verb = "is" if len(long) == 1 else "are"
    return (
        f"sft.data: {len(long)} of {len(rows)} demonstrations {verb} longer than {names[0]} = {limits[0]} or "
        f"{names[1]} = {limits[1]} and left out ({named_rows([rows[number] for number in long])}); "
        f"to keep all, set {' '.join(needed)}"
    )


def no_demonstrations() -> pa.RecordBatch:
    """A batch of GROUP_SCHEMA without rows."""
    return pa.RecordBatch.from_pylist([], schema=GROUP_SCHEMA)


def demonstration_rows(
    run: BoundRun, tokenizer: PreTrainedTokenizerBase, vocab_size: int, note: Callable[[str], None]
) -> pa.RecordBatch:
    """All demonstrations of a run, tokenized; no rows without a `loss.sft`.

    `note` gets one sentence if demonstrations were dropped or are fewer than a step wants.

    Raises:
        ValueError: they cannot be read, or none is short enough.
    """
    # A run without the loss must not fail for a demonstrations file that it does not read.
    if SFT not in run.losses:
        return no_demonstrations()
    config = run.config
    demonstrations = load_demonstrations(run.single["sft.data"])
    rows, left_out = tokenize_demonstrations(
        demonstrations, tokenizer, vocab_size, config.rollout, config.name
    )
    if left_out:
        note(left_out)
    if rows.num_rows < (wanted := num_drawn(config, config.sft.share)):
        note(
            f"sft.data: a step draws {wanted} demonstrations (sft.share), but only {rows.num_rows} can be "
            "used, so every step trains on all of them; add rows or lower sft.share"
        )
    return rows


def num_drawn(config: RunConfig, share: float) -> int:
    """floor(share x group_size x groups_per_step + 1/2): the number of demonstrations in a step."""
    # Python's round would round halves to even: 0.5 to 0, but 1.5 to 2.
    return math.floor(share * config.rollout.group_size * config.rollout.groups_per_step + 0.5)


def draw(rows: pa.RecordBatch, config: RunConfig, step: int, share: float) -> pa.RecordBatch:
    """loss_policy + weight mean(-log pi(token)) over floor(share G N + 1/2) demonstrations, drawn each step.

    Returns the rows of step `step` (0-based), with the ids of that step, in the order of `rows`. G is the
    group size, N the number of groups in a step. After PPO-ptx of InstructGPT, arXiv 2203.02155, which mixes
    in pretraining rows.

    The draw is uniform without replacement within a step; if there are too few rows, all are used. It depends
    only on the run's seed, the step and the number of rows, so a repeated step draws the same rows.
    """
    count = min(num_drawn(config, share), rows.num_rows)
    if not count:
        return no_demonstrations()
    rng = np.random.default_rng(derive_seed(config.seed, "sft", step))
    # The draw decides which rows, not their order: they stay in the order of the file.
    drawn = np.sort(rng.choice(rows.num_rows, size=count, replace=False))
    return named_for_step(rows.take(pa.array(drawn)), step + 1)
