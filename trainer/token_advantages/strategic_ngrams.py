"""Strategic n-grams: mined from correct completions, stored in a JSON file, matched in rows of tokens.

Input: run folders. Output: a file that `trainer.token_advantages.planning` reads. Used by `polyphony mine`.
HICRA, arXiv 2509.03646, clusters n-grams by sentence embeddings. These are exact n-grams of token ids
instead, valid for one tokenizer only.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np

from configs.origins import POLICY
from rollouts.files import write_bytes_atomic
from rollouts.store import read_steps
from trainer.reward_ties import exceeds

FORMAT: Final = "polyphony-grams"
VERSION: Final = 1
LENGTHS: Final = range(3, 6)
"""n-grams of 3 to 5 tokens, as in HICRA."""
Gram = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grams:
    """n-grams with the number of documents that contain each, most frequent first."""

    documents: Mapping[Gram, int]
    num_documents: int
    sources: tuple[str, ...]
    """The runs that they were mined from, for information only."""


def mine_grams(
    documents: Iterable[Sequence[Sequence[int]]], share: float, min_documents: int, sources: Sequence[str]
) -> Grams:
    """The `share` of all n-grams that occur in the most documents, and in at least `min_documents`.

    A document is a completion, given as segments of consecutive token ids. floor(share x distinct n-grams)
    are kept; ties are broken by token ids.

    Raises:
        ValueError: a number is out of range, or no n-gram is left.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share:g}")
    if min_documents < 1:
        raise ValueError(f"min-documents must be at least 1, got {min_documents}")
    counts: Counter[Gram] = Counter()
    num_documents = 0
    for segments in documents:
        num_documents += 1
        counts.update(set(chain.from_iterable(map(_grams_of, segments))))  # once per document
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    # The tolerance is for products such as 0.29 x 100, which is 28.999999999999996.
    kept = dict(ranked[: int(share * len(ranked) + 1e-9)])
    kept = {gram: count for gram, count in kept.items() if count >= min_documents}
    if not kept:
        raise ValueError(
            f"correct completions must share n-grams of {LENGTHS[0]} to {LENGTHS[-1]} tokens, got none in "
            f"{num_documents} completions with share {share:g} and min-documents {min_documents}"
        )
    return Grams(documents=kept, num_documents=num_documents, sources=tuple(sources))


def _grams_of(ids: Sequence[int]) -> Iterator[Gram]:
    for length in LENGTHS:
        yield from (tuple(ids[at : at + length]) for at in range(len(ids) - length + 1))


def correct_completions(run: Path) -> Iterator[list[list[int]]]:
    """The correct completions of a run's policy rows, each as segments of consecutive loss tokens.

    Correct means `answer_ok`, or a reward above 0 where no scorer checked the answer.

    Raises:
        ValueError: the run has no committed step; see `rollouts.store.read_steps`.
    """
    columns = ("origin", "answer_ok", "reward", "token_ids", "loss_mask")
    for row in read_steps(run, columns).to_pylist():
        answer_ok = row["answer_ok"]
        is_correct = answer_ok if answer_ok is not None else exceeds(row["reward"] or 0.0, 0.0)
        if row["origin"] == POLICY and is_correct:
            ids, mask = np.array(row["token_ids"], np.int64), np.array(row["loss_mask"], bool)
            cuts = np.flatnonzero(np.diff(mask.astype(np.int8))) + 1
            parts = zip(np.split(ids, cuts), np.split(mask, cuts), strict=True)
            yield [part.tolist() for part, learned in parts if learned.any()]


def write_grams(path: Path, grams: Grams) -> None:
    """Write the file atomically."""
    rows = [{"ids": list(gram), "documents": count} for gram, count in grams.documents.items()]
    record = {
        "format": FORMAT,
        "version": VERSION,
        "sources": list(grams.sources),
        "num_documents": grams.num_documents,
        "sha256": _digest(rows),
        "grams": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, (json.dumps(record) + "\n").encode())


def _digest(rows: object) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def load_grams(path: Path) -> Grams:
    """Read a file that `write_grams` wrote.

    Raises:
        ValueError: it cannot be read or is damaged; the message names the file and the key.
    """
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be a file of `polyphony mine`: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(record).__name__}")
    expected: dict[str, object] = {"format": FORMAT, "version": VERSION}
    for key, value in expected.items():
        if record.get(key) != value:
            raise ValueError(f"{path}: {key} must be {value!r}, got {record.get(key)!r}")
    rows = record.get("grams")
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: grams must be a list that is not empty")
    documents = dict(_read_gram(f"{path}: grams[{number}]", row) for number, row in enumerate(rows))
    num_documents = _read_count(f"{path}: num_documents", record.get("num_documents"))
    if record.get("sha256") != _digest(rows):
        raise ValueError(
            f"{path}: sha256 must be that of grams, got {record.get('sha256')!r}: it was changed"
        )
    sources = record.get("sources")
    named = tuple(map(str, sources)) if isinstance(sources, list) else ()
    return Grams(documents=documents, num_documents=num_documents, sources=named)


def _read_count(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} must be a whole number above 0, got {value!r}")
    return value


def _read_gram(key: str, row: object) -> tuple[Gram, int]:
    record = row if isinstance(row, dict) else {}
    ids = record.get("ids")
    if not (isinstance(ids, list) and len(ids) in LENGTHS) or not all(
        type(each) is int and 0 <= each < 2**31 for each in ids
    ):
        raise ValueError(f"{key}.ids must be {LENGTHS[0]} to {LENGTHS[-1]} token ids, got {ids!r}")
    return tuple(ids), _read_count(f"{key}.documents", record.get("documents"))


def find_grams(
    token_ids: np.ndarray, ends: np.ndarray, grams: Mapping[Gram, int]
) -> tuple[np.ndarray, list[Gram]]:
    """Which tokens are inside an n-gram, bool [T], and the matched n-grams in order.

    Matching is greedy from left to right: the longest n-gram that starts at a token, then on after its end.
    `ends` [T] is the exclusive end of each token's segment; no match crosses it.
    """
    inside, matches = np.zeros(len(token_ids), np.bool_), []
    # Few tokens begin an n-gram: numpy finds them fast, and only they enter the Python loop.
    firsts = np.unique(np.array([gram[0] for gram in grams], np.int64))
    ids, free = token_ids.tolist(), 0
    for start in np.flatnonzero(np.isin(token_ids, firsts)).tolist():
        if start < free:
            continue
        for length in reversed(LENGTHS):
            gram = tuple(ids[start : start + length])
            if start + length <= ends[start] and gram in grams:
                inside[start : start + length] = True
                matches.append(gram)
                free = start + length
                break
    return inside, matches
