"""Prompts with completions that exist already: rows of a user's file, or committed rows of a run.

In: a .jsonl or .parquet file, or a run directory with its prompts. Out: `CompletionGroup`s to score. Used by
`polyphony rewards`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Final

from configs.origins import POLICY
from rollouts.records import Completion, Prompt
from rollouts.store import committed_steps, read_step
from trainer.data.file_dataset import to_prompt
from trainer.data.row_files import Row, is_given, read_rows, to_unicode

_OWN_KEYS: Final = frozenset({"completion", "completions", "token_ids", "finish_reason"})
_COLUMNS: Final = (
    *("group_id", "sample_id", "prompt_id", "epoch", "origin", "seed", "text", "token_ids", "loss_mask"),
    *("finish_reason", "scores"),
)
_SEVERAL: Final = "a list of texts, or give one as `completion`"
_ONE: Final = "text, or chat messages of which the last is the assistant's (or give `completions`)"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionGroup:
    """G completions of one prompt, scored together. `places` names the row of each, for messages."""

    prompt: Prompt
    completions: tuple[Completion, ...]
    places: tuple[str, ...]
    scores: tuple[Mapping[str, float | None], ...]
    """The scores that a run stored with each, by scorer; empty for rows of a file."""
    has_tokens: bool
    """Whether `token_ids` are known."""


def read_completions(path: str, limit: int = 0) -> list[CompletionGroup]:
    """The groups of a file, in order; of the first `limit` rows if it is positive.

    A row is a prompt as in a dataset (`trainer.data.file_dataset`) with `completion` (text or messages) or
    `completions` (texts); `token_ids` and `finish_reason` may accompany a single completion. Consecutive rows
    of the same prompt (apart from its place in the file) are one group.

    Raises:
        ValueError: the file cannot be read, or a row is invalid; the message names file, row and key.
    """
    parts = list(_parts(path, limit))
    if not parts:
        raise ValueError(f"{path}: must have at least one row, got none")
    groups = []
    # Consecutive rows only: the same prompt further down may be another sample of it on purpose.
    for _, same in groupby(parts, key=lambda part: _identity(part[0], part[1])):
        members = list(same)
        completions = [each for _, _, texts in members for each in texts]
        places = [place for prompt, _, texts in members for place in _places(prompt.place, len(texts))]
        groups.append(
            CompletionGroup(
                prompt=members[0][0],
                completions=tuple(
                    # The log of a scorer then names the row.
                    replace(each, sample_id=place, seed=seed)
                    for seed, (place, each) in enumerate(zip(places, completions, strict=True))
                ),
                places=tuple(places),
                scores=({},) * len(completions),
                has_tokens=all(row_has_tokens(row) for _, row, _ in members),
            )
        )
    return groups


def _places(row: str, count: int) -> list[str]:
    """Names of a row's completions: "rows.jsonl, line 3", or "rows.jsonl, line 3 #2" of several."""
    return [row] if count == 1 else [f"{row} #{number + 1}" for number in range(count)]


def row_has_tokens(row: Row) -> bool:
    """Whether the row gives the tokens of its completion."""
    return is_given(row, "token_ids")


def run_completions(run_dir: Path, step: int, prompts: Sequence[Prompt]) -> list[CompletionGroup]:
    """The groups of a committed step (0 for the last one): rows of origin policy. `prompts` are its dataset.

    As in the run, scorers get a prompt's prefill and the completion together.

    Raises:
        ValueError: nothing or not this step is committed, or a prompt is not among `prompts`.
    """
    steps = committed_steps(run_dir)
    if (step and step not in steps) or not steps:
        known = f"{steps[0]} to {steps[-1]}" if steps else "none"
        raise ValueError(f"{run_dir}: step must be a committed one ({known}), got {step or 'the last'}")
    chosen = step or steps[-1]
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    rows = [row for row in read_step(run_dir, chosen, _COLUMNS).to_pylist() if row["origin"] == POLICY]
    groups = []
    for _, same in groupby(rows, key=lambda row: str(row["group_id"])):
        members = list(same)
        prompt = by_id.get(members[0]["prompt_id"])
        if prompt is None:
            raise ValueError(
                f"{run_dir}, step {chosen}: prompt {members[0]['prompt_id']!r} must be in data.train of the "
                "config, got another dataset: give the run's own config"
            )
        groups.append(_stored_group(replace(prompt, epoch=members[0]["epoch"]), members, run_dir, chosen))
    return groups


def _stored_group(
    prompt: Prompt, rows: Sequence[Mapping[str, object]], run_dir: Path, step: int
) -> CompletionGroup:
    return CompletionGroup(
        prompt=prompt,
        completions=tuple(_stored(row, prompt.prefill) for row in rows),
        places=tuple(f"{run_dir.name}, step {step}, {row['sample_id']}" for row in rows),
        scores=tuple(dict(row["scores"]) for row in rows),  # type: ignore[call-overload]
        has_tokens=True,
    )


def _stored(row: Mapping[str, object], prefill: str) -> Completion:
    ids, mask = row["token_ids"], row["loss_mask"]
    assert isinstance(ids, list) and isinstance(mask, list)
    return Completion(
        sample_id=str(row["sample_id"]),
        seed=int(str(row["seed"])),
        token_ids=tuple(ids),
        text=prefill + str(row["text"]),
        finish_reason=str(row["finish_reason"]),
        behavior_logprobs=(0.0,) * len(ids),
        versions=((0, 0),),
        loss_mask=None if all(mask) else tuple(mask),
    )


def _parts(path: str, limit: int) -> Iterator[tuple[Prompt, Row, list[Completion]]]:
    """(prompt, row, completions) of every row."""
    for row in islice(read_rows(path, 0, "rows"), limit or None):
        plain = {key: value for key, value in row.values.items() if key not in _OWN_KEYS}
        yield to_prompt(Row(row.path, row.place, row.number, plain)), row, _completions(row)


def _identity(prompt: Prompt, row: Row) -> object:
    """What rows of one group have in common: an id that the file gives, or else all of the prompt."""
    named = is_given(row, "prompt_id") or is_given(row, "id")
    return prompt.prompt_id if named else repr(replace(prompt, prompt_id="", place=""))


def _completions(row: Row) -> list[Completion]:
    if not is_given(row, "completions"):
        return [_completion(_text(row), _token_ids(row), _finish_reason(row))]
    texts = row.values["completions"]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise row.error("completions", _SEVERAL, texts)
    if is_given(row, "completion"):
        raise row.error("completion", "absent beside `completions`", row.values["completion"])
    if row_has_tokens(row):
        raise row.error("token_ids", "absent beside `completions`", row.values["token_ids"])
    return [_completion(to_unicode(row, "completions", text), (), _finish_reason(row)) for text in texts]


def _completion(text: str, token_ids: tuple[int, ...], finish_reason: str) -> Completion:
    return Completion(
        sample_id="",
        seed=0,
        token_ids=token_ids,
        text=text,
        finish_reason=finish_reason,
        # Nobody sampled these tokens here; a completion must have a logprob for each, and no scorer reads it.
        behavior_logprobs=(0.0,) * len(token_ids),
        versions=((0, 0),),
    )


def _text(row: Row) -> str:
    """The completion; an empty one is a completion too."""
    value = row.values.get("completion")
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        last = value[-1]
        value = last.get("content") if last.get("role") == "assistant" else None
    if not isinstance(value, str):
        raise row.error("completion", _ONE, row.values.get("completion"))
    return to_unicode(row, "completion", value)


def _token_ids(row: Row) -> tuple[int, ...]:
    value = row.values.get("token_ids")
    if value is None:
        return ()
    if not isinstance(value, list) or not all(type(each) is int and each >= 0 for each in value):
        raise row.error("token_ids", "a list of token ids", value)
    return tuple(value)


def _finish_reason(row: Row) -> str:
    value = row.values.get("finish_reason")
    if value not in (None, "stop", "length"):
        raise row.error("finish_reason", "stop or length", value)
    return str(value or "stop")
