"""Train the lab's reward model, a small classifier of right and wrong solutions, for scorer `reward_model`.

In: a base, a seed and a folder. Out: a classifier with one label as a Hugging Face folder; its logit is that
of "the answer is right". It is trained on solutions as the lab's corpus writes them, about half of them
wrong, and measured on problems that it has not seen. Called by the command line.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lab.corpus import FORMATS, CorpusConfig, CorpusRow, FormatConfig, make_corpus

_ERROR_RATE = 0.35
"""Of each step: about half of the solutions are then wrong, since most have two."""
_HELD_OUT_SHARE = 0.1
_CHUNK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a reward model is trained."""

    seed: int = 0
    num_rows: int = 24_576
    num_updates: int = 400
    rows_per_update: int = 128
    lr: float = 1.0e-3


@dataclass(frozen=True, slots=True)
class Labelled:
    """A solution in tokens, prompt included, and whether its answer is right."""

    ids: list[int]
    is_right: bool
    prompt: str


def train_reward_model(base: Path, output: Path, training: Training) -> dict[str, float]:
    """Train a classifier that begins as `base` and write it to `output`; returns its measurements.

    Raises:
        ValueError: `base` is not a folder of the lab, or `output` exists and is none of this command.
    """
    if not (base / "config.json").exists():
        raise ValueError(f"the base must be a Hugging Face folder, got {base}")
    if output.exists() and not (output / "manifest.json").exists():
        raise ValueError(f"--out must be a new folder or one that this command wrote, got {output}")
    tokenizer = AutoTokenizer.from_pretrained(base)
    learn, held_out = split(labelled(make_corpus(_corpus(training)), tokenizer))
    began = time.perf_counter()
    # The head is drawn from the seed, and the global generator of the caller stays as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
        _train(model, learn, training)
    measured = measure(model, held_out) | {"seconds": time.perf_counter() - began}
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as staging:
        folder = Path(staging) / "trained"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        manifest = {"training": asdict(training), "measured": measured}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if output.exists():
            shutil.rmtree(output)
        folder.rename(output)
    return measured


def labelled(rows: Sequence[CorpusRow], tokenizer: Any) -> list[Labelled]:
    """The rows as chats in tokens; a solution is right if its last integer is the answer."""
    chats = [
        [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.response}]
        for row in rows
    ]
    encoded = tokenizer.apply_chat_template(chats, return_dict=False)
    return [
        Labelled(ids, re.findall(r"\d+", row.response)[-1] == row.answer, row.prompt)
        for row, ids in zip(rows, encoded, strict=True)
    ]


def split(rows: Sequence[Labelled]) -> tuple[list[Labelled], list[Labelled]]:
    """Rows to learn from, and rows of other problems to measure on."""
    # By prompt and not by row: a solution of a problem that was trained on would measure memory.
    prompts = sorted({row.prompt for row in rows})
    held_out = set(prompts[:: round(1 / _HELD_OUT_SHARE)])
    return [row for row in rows if row.prompt not in held_out], [
        row for row in rows if row.prompt in held_out
    ]


def measure(model: Any, rows: Sequence[Labelled]) -> dict[str, float]:
    """Accuracy at a logit of 0, and the share of (right, wrong) pairs that the logit orders (AUC)."""
    model.eval()
    with torch.inference_mode():
        chunks = [rows[at : at + _CHUNK] for at in range(0, len(rows), _CHUNK)]
        logits = torch.cat([_logits(model, chunk) for chunk in chunks]).double().numpy()
    right = np.array([row.is_right for row in rows])
    # The rank sum of the right ones gives the AUC without comparing all pairs (Mann-Whitney).
    order = logits.argsort().argsort() + 1
    num_right, num_wrong = int(right.sum()), int((~right).sum())
    above = order[right].sum() - num_right * (num_right + 1) / 2
    return {
        "accuracy": float(((logits > 0) == right).mean()),
        "auc": float(above / (num_right * num_wrong)),
        "share_right": float(right.mean()),
        "rows": float(len(rows)),
    }


def _corpus(training: Training) -> CorpusConfig:
    formats = {name: FormatConfig(error_rate=_ERROR_RATE) for name in FORMATS}
    return CorpusConfig(num_rows=training.num_rows, creative_share=0.0, formats=formats)


def _train(model: Any, rows: Sequence[Labelled], training: Training) -> None:
    """Adam on the binary cross-entropy, with a learning rate that falls to 0 in a straight line."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, training.num_updates)
    model.train()
    for _, batch in zip(range(training.num_updates), _batches(rows, training), strict=False):
        right = torch.tensor([float(row.is_right) for row in batch])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(_logits(model, batch), right)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _batches(rows: Sequence[Labelled], training: Training) -> Iterator[list[Labelled]]:
    """Batches without end: the rows in a new order each time."""
    rng = np.random.default_rng([training.seed, 5])
    size = training.rows_per_update
    while True:
        order = rng.permutation(len(rows))
        for at in range(0, len(order) - size + 1, size):
            yield [rows[number] for number in order[at : at + size].tolist()]


def _logits(model: Any, rows: Sequence[Labelled]) -> Tensor:
    """One logit per row, [N]. Rows are padded on the right; the head reads the last token before that."""
    longest, pad = max(len(row.ids) for row in rows), model.config.pad_token_id
    ids = torch.tensor([[*row.ids, *[pad] * (longest - len(row.ids))] for row in rows])
    logits: Tensor = model(input_ids=ids, attention_mask=(ids != pad).long()).logits
    return logits[:, 0]
