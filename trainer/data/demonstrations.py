"""Demonstrations: supervised rows of origin sft, mixed into a step's batch. Used by the driver and the loop.

In: the entry `sft.data`. Out: rows of GROUP_SCHEMA tokenized like what an engine samples, and of these the
ones of each step. `load_file` is the kind ``file``; ``lab`` is `lab.corpus.load_demonstrations`.
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
from trainer.data.encode import check_ids, prompt_ids, row_of
from trainer.data.file_dataset import is_text, prompt_messages, row_domain, row_id
from trainer.data.row_files import Row, first_given, is_given, read_rows, to_messages, to_text
from trainer.seeds import derive_seed

if TYPE_CHECKING:  # the base install reads demonstrations without transformers
    from transformers import PreTrainedTokenizerBase

SHARE: Final = "sft.share"
"""The setting that a controller may move; all others are numbers of the objective."""
_COMPLETION_KEYS = ("completion", "response", "demonstration")


def load_file(options: FileDemonstrationOptions) -> list[Demonstration]:
    """The demonstrations of `options.path`, in order; if `options.limit` is positive, only the first ones.

    Prompt, name and domain stand where `trainer.data.file_dataset` reads them (names may repeat), and the
    answer in
    `completion`, `response` or `demonstration`. A row without one of these is read from `messages`, a chat
    whose last message is the assistant's. All other keys are passed over.

    Raises:
        ValueError: the file cannot be read, or a row breaks a rule.
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
    """The messages before the last one of `messages`, and the last one's text."""
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
        raise row.error("messages", "a prompt and then an answer", value)
    return tuple(before), completion


def load_demonstrations(entry: BoundEntry[Common]) -> list[Demonstration]:
    """The demonstrations of the entry `sft.data`.

    Raises:
        ValueError: there are none, or they cannot be read.
    """
    found: list[Demonstration] = entry.function()(entry.options)
    if not found:
        raise ValueError(f"sft.data must have at least one demonstration, got none from {entry.options}")
    return found


def tokenize_demonstrations(
    demonstrations: Sequence[Demonstration],
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    rollout: RolloutConfig,
    run_id: str,
) -> tuple[pa.RecordBatch, int]:
    """Rows of GROUP_SCHEMA with origin sft, and how many were left out as too long.

    A prompt is encoded as for an engine; the completion is followed by the end token that
    an engine would have sampled. Row i has submission_index i; `draw` gives it the names of a step.

    Raises:
        ValueError: the tokenizer has no end token, a demonstration cannot be encoded, or every one is longer
            than rollout.max_prompt_tokens or rollout.max_tokens.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError("the tokenizer must have an end-of-sequence token to end demonstrations, got none")
    texts = [each.completion for each in demonstrations]
    completions = [[*ids, end] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    prompts = [prompt_ids(each, tokenizer, vocab_size) for each in demonstrations]
    for each, ids in zip(demonstrations, completions, strict=True):
        check_ids(ids, tokenizer, vocab_size, f"{row_of(each)}: completion")
    kept = [
        number
        for number in range(len(demonstrations))
        if len(prompts[number]) <= rollout.max_prompt_tokens
        and len(completions[number]) <= rollout.max_tokens
    ]
    if not kept:
        raise ValueError(
            "every demonstration is longer than rollout.max_prompt_tokens "
            f"({rollout.max_prompt_tokens}) or rollout.max_tokens ({rollout.max_tokens})"
        )
    rows = sft_batch(
        run_id,
        prompt_ids=[prompts[number] for number in kept],
        token_ids=[completions[number] for number in kept],
        text=[texts[number] for number in kept],
        domain=[demonstrations[number].domain for number in kept],
        format_tag=[demonstrations[number].format_tag for number in kept],
        prompt_id=[demonstrations[number].prompt_id for number in kept],
    )
    return rows, len(demonstrations) - len(kept)


def no_demonstrations() -> pa.RecordBatch:
    """The rows of a run without any."""
    return pa.RecordBatch.from_pylist([], schema=GROUP_SCHEMA)


def demonstration_rows(
    run: BoundRun, tokenizer: PreTrainedTokenizerBase, vocab_size: int, note: Callable[[str], None]
) -> pa.RecordBatch:
    """All demonstrations of a run, in tokens; `note` is told what was left out. No rows without a `loss.sft`.

    Raises:
        ValueError: they cannot be read, or none is short enough.
    """
    if SFT not in run.losses:
        return no_demonstrations()
    config = run.config
    found = load_demonstrations(run.single["sft.data"])
    rows, too_long = tokenize_demonstrations(found, tokenizer, vocab_size, config.rollout, config.name)
    if too_long:
        limits = "rollout.max_prompt_tokens or rollout.max_tokens"
        note(f"sft.data: {too_long} demonstrations are longer than {limits} and were left out")
    if rows.num_rows < (wanted := num_drawn(config, config.sft.share)):
        note(f"sft.data: every step has all {rows.num_rows} demonstrations, fewer than {wanted}")
    return rows


def num_drawn(config: RunConfig, share: float) -> int:
    """floor(share x group_size x groups_per_step + 1/2): the demonstrations of a step."""
    return math.floor(share * config.rollout.group_size * config.rollout.groups_per_step + 0.5)


def draw(rows: pa.RecordBatch, config: RunConfig, step: int, share: float) -> pa.RecordBatch:
    """loss_policy + weight mean(-log pi(token)) over floor(share G N + 1/2) demonstrations, drawn each step.

    Returns the rows of step `step` (from 0), named for it, in the order of `rows`. G is the group size, N the
    groups of a step. After PPO-ptx of InstructGPT, arXiv 2203.02155, which mixes in rows of pretraining.

    Uniform and without replacement within a step; all of `rows` where there are not as many. A pure function
    of the run's seed, the step and the count, so a step that is trained again has the same.
    """
    count = min(num_drawn(config, share), rows.num_rows)
    if not count:
        return no_demonstrations()
    rng = np.random.default_rng(derive_seed(config.seed, "sft", step))
    drawn = np.sort(rng.choice(rows.num_rows, size=count, replace=False))
    return named_for_step(rows.take(pa.array(drawn)), step + 1)
