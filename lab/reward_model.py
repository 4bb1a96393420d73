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
from dataclasses import asdict, dataclass, replace
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
    num_rows: int = 131_072
    num_updates: int = 4000
    rows_per_update: int = 32
    lr: float = 2.5e-3
    warmup_updates: int = 50
    prefix_weight: float = 1.0
    """Weight of the label so far at each token of the solution, beside the label of the whole."""
    num_threads: int = 1


@dataclass(frozen=True, slots=True)
class Labelled:
    """A solution in tokens, prompt included, and whether its answer is right.

    The solution begins at token `start`; the tokens before `common` could also begin the right one. They are
    all of them if the answer is right.
    """

    ids: list[int]
    is_right: bool
    prompt: str
    start: int
    common: int


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
    learn, held_out = split(labelled(_corpus(training), tokenizer))
    torch.set_num_threads(training.num_threads)
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


def labelled(config: CorpusConfig, tokenizer: Any) -> list[Labelled]:
    """The rows of a corpus as chats in tokens; a solution is right if its last integer is the answer."""
    rows = make_corpus(config)
    # The errors of a corpus are drawn whether they are made or not: without any it has the same rows, right.
    without = {name: replace(part, error_rate=0.0) for name, part in config.formats.items()}
    right = make_corpus(replace(config, formats=without))
    encoded, wanted = (_encoded(each, tokenizer) for each in (rows, right))
    asked = tokenizer.apply_chat_template(
        [[{"role": "user", "content": row.prompt}] for row in rows],
        add_generation_prompt=True,
        return_dict=False,
    )
    found = []
    for row, ids, same, prompt in zip(rows, encoded, wanted, asked, strict=True):
        is_right = re.findall(r"\d+", row.response)[-1] == row.answer
        common = len(ids) if is_right else _common(ids, same)
        found.append(Labelled(ids, is_right, row.prompt, len(prompt), common))
    return found


def _encoded(rows: Sequence[CorpusRow], tokenizer: Any) -> list[list[int]]:
    chats = [
        [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.response}]
        for row in rows
    ]
    return tokenizer.apply_chat_template(chats, return_dict=False)  # type: ignore[no-any-return]


def _common(ids: Sequence[int], other: Sequence[int]) -> int:
    """The number of tokens before the first that differs."""
    pairs = zip(ids, other, strict=False)
    return next((at for at, (one, two) in enumerate(pairs) if one != two), min(len(ids), len(other)))


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
    """AdamW on the binary cross-entropy; the learning rate rises at first, then falls to 0, both linearly.

    One label per solution alone takes many times as many updates. So the head is also trained after every
    token of the solution, with the label so far.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.lr, weight_decay=0.01)

    def share(update: int) -> float:
        return min((update + 1) / training.warmup_updates, 1.0) * (1.0 - update / training.num_updates)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    model.train()
    began, running = time.perf_counter(), torch.zeros(2)
    for number, batch in zip(range(1, training.num_updates + 1), _batches(rows, training), strict=False):
        losses_2 = _losses(model, batch)
        optimizer.zero_grad()
        (losses_2[0] + training.prefix_weight * losses_2[1]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        # A mean over about the last 50 updates; over all of them while there are fewer.
        running += (losses_2.detach() - running) * max(0.02, 1.0 / number)
        if number % 50 == 0 or number == training.num_updates:
            label, so_far = running.tolist()
            numbers, seconds = f"update {number}/{training.num_updates}", time.perf_counter() - began
            print(f"{numbers}  loss {label:.4f}, {so_far:.4f}  {seconds:.0f} s", flush=True)


def _losses(model: Any, rows: Sequence[Labelled]) -> Tensor:
    """[2]: mean cross-entropy of the labels of whole solutions, and of the labels so far."""
    ids_BT, mask_BT = _padded(model, rows)
    logits_BT = model.score(model.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state)[..., 0]
    last_B = mask_BT.sum(1) - 1
    right_B = torch.tensor([float(row.is_right) for row in rows])
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    place_BT = torch.arange(ids_BT.shape[1])[None]
    in_solution_BT = (place_BT >= torch.tensor([row.start for row in rows])[:, None]) & mask_BT.bool()
    so_far_BT = (place_BT < torch.tensor([row.common for row in rows])[:, None]).float()
    return torch.stack(
        [
            entropy(logits_BT[torch.arange(len(rows)), last_B], right_B),
            entropy(logits_BT[in_solution_BT], so_far_BT[in_solution_BT]),
        ]
    )


def _batches(rows: Sequence[Labelled], training: Training) -> Iterator[list[Labelled]]:
    """Batches without end: the rows in a new order each time."""
    rng = np.random.default_rng([training.seed, 5])
    size = training.rows_per_update
    while True:
        order = rng.permutation(len(rows))
        for at in range(0, len(order) - size + 1, size):
            yield [rows[number] for number in order[at : at + size].tolist()]


def _logits(model: Any, rows: Sequence[Labelled]) -> Tensor:
    """One logit per row, [N]: that of its last token."""
    ids_BT, mask_BT = _padded(model, rows)
    logits: Tensor = model(input_ids=ids_BT, attention_mask=mask_BT).logits
    return logits[:, 0]


def _padded(model: Any, rows: Sequence[Labelled]) -> tuple[Tensor, Tensor]:
    """Token ids [B, T], padded on the right, and their attention mask."""
    longest, pad = max(len(row.ids) for row in rows), model.config.pad_token_id
    ids_BT = torch.tensor([[*row.ids, *[pad] * (longest - len(row.ids))] for row in rows])
    return ids_BT, (ids_BT != pad).long()
