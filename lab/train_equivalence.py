"""Train a small classifier of equivalent solutions, calibrate it, measure it, and write it.

Inputs: a recipe and overrides. Outputs: a Hugging Face folder with a `Qwen3ForSequenceClassification`, its
tokenizer, and calibration.json: how logits become a probability, the threshold, and the measurements on
problems never seen. Called by the command line (`polyphony lab train-equivalence`).
"""

from __future__ import annotations

import json
import math
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

from lab.calibration import Calibration, fit, measure
from lab.equivalence_pairs import Pair, make_easy_pairs, make_pairs
from lab.equivalence_recipe import EquivalenceRecipe, load_equivalence_recipe
from lab.problems import Problems, problem_split

_DIVIDER = "<user>"
TEMPLATE = f"<bos> {{first}} {_DIVIDER} {{second}} <assistant>"
"""How a pair becomes one text. The last token is the one that is classified."""
CALIBRATION_FILE = "calibration.json"
_LABELS = {0: "different", 1: "equivalent"}
_LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")
_EVALUATED_AT_ONCE = 256


def train_equivalence(path: str, overrides: Sequence[str]) -> int:
    """Train, calibrate and write the classifier that `path` describes; returns 0.

    Raises:
        ValueError: the recipe cannot be used, or there is no model at `base`.
    """
    recipe = load_equivalence_recipe(path, overrides)
    if not (Path(recipe.base) / "config.json").is_file():
        raise ValueError(f"{path}: base must be a model's folder, got {recipe.base!r}")
    torch.set_num_threads(recipe.num_threads)
    output = Path(recipe.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    train, seen = problem_split("train", recipe.corpus_seed), problem_split("heldout", recipe.corpus_seed)
    kept = len(train) - recipe.calibration_problems
    tokenizer = AutoTokenizer.from_pretrained(recipe.base)
    model = _new_model(recipe, tokenizer)
    began = time.perf_counter()
    _train(model, tokenizer, recipe, _curriculum(train.take(np.arange(kept)), recipe))
    seconds = time.perf_counter() - began
    # Calibrated on problems that the training has not seen, where its margins are not too large.
    held_back = train.take(np.arange(kept, len(train)))
    for_fit = make_pairs(held_back, recipe.calibration_pairs, recipe.seed + 1)
    calibration = fit(margins(model, tokenizer, for_fit).values, _labels(for_fit), recipe.false_positive_rate)
    unseen = make_pairs(seen, recipe.test_pairs, recipe.seed + 2)
    report = _report(model, tokenizer, unseen, calibration)
    report["training_seconds"] = round(seconds, 1)
    _write(model, tokenizer, recipe, calibration, report, output)
    print(json.dumps(report, indent=1))
    print(f"wrote {output}")
    return 0


@dataclass(frozen=True, slots=True)
class Margins:
    """Logit of equivalent less that of different, mean of both orders, per pair; and pairs per second."""

    values: np.ndarray
    pairs_per_s: float


@torch.no_grad()
def margins(
    model: Qwen3ForSequenceClassification, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]
) -> Margins:
    """The margin of every pair, each read in both orders."""
    model.eval()
    # A classifier may prefer what stands first. The mean of both orders cannot.
    both = [*pairs, *(replace(each, first=each.second, second=each.first) for each in pairs)]
    encoded = [_encode(tokenizer, pair) for pair in both]
    # Like lengths together: a batch is padded to its longest.
    order = np.argsort([len(ids) for ids in encoded], kind="stable").tolist()
    found, began = np.zeros(len(both)), time.perf_counter()
    for start in range(0, len(order), _EVALUATED_AT_ONCE):
        chosen = order[start : start + _EVALUATED_AT_ONCE]
        logits = _logits(model, [encoded[at] for at in chosen])
        found[chosen] = (logits[:, 1] - logits[:, 0]).double().numpy()
    rate = len(pairs) / (time.perf_counter() - began)
    return Margins(values=(found[: len(pairs)] + found[len(pairs) :]) / 2.0, pairs_per_s=rate)


def _curriculum(problems: Problems, recipe: EquivalenceRecipe) -> list[Pair]:
    """The pairs of all updates in order: first easy ones, which differ in nothing but their steps."""
    num_easy = round(recipe.num_updates * recipe.easy_share)
    easy = make_easy_pairs(problems, num_easy * recipe.pairs_per_update, recipe.seed)
    num_hard = recipe.num_updates - num_easy
    return easy + make_pairs(problems, num_hard * recipe.pairs_per_update, recipe.seed)


def _labels(pairs: Sequence[Pair]) -> np.ndarray:
    return np.array([pair.is_equivalent for pair in pairs])


def _new_model(
    recipe: EquivalenceRecipe, tokenizer: PreTrainedTokenizerBase
) -> Qwen3ForSequenceClassification:
    """A model of the base's sizes, with a head of two classes; its weights depend on the seed only."""
    names = {name: at for at, name in _LABELS.items()}
    config = Qwen3Config.from_pretrained(recipe.base, num_labels=2, id2label=_LABELS, label2id=names)
    config.num_hidden_layers = recipe.num_layers
    config.layer_types = ["full_attention"] * recipe.num_layers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed + 1)
        model = Qwen3ForSequenceClassification(config)
    assert model.config.pad_token_id == tokenizer.pad_token_id, "the last token is found by the padding"
    return model


def _encode(tokenizer: PreTrainedTokenizerBase, pair: Pair) -> list[int]:
    text = TEMPLATE.format(first=pair.first, second=pair.second)
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]


def _padded(encoded: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token lists as ids [B, T], padded at the right, and their attention mask."""
    longest = max(len(ids) for ids in encoded)
    ids_BT = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in encoded])
    return ids_BT, (ids_BT != pad).long()


def _logits(model: Qwen3ForSequenceClassification, encoded: Sequence[list[int]]) -> Tensor:
    """Logits [B, 2] of token lists."""
    ids_BT, mask_BT = _padded(encoded, model.config.pad_token_id)
    return model(input_ids=ids_BT, attention_mask=mask_BT).logits  # type: ignore[no-any-return]


def _train(
    model: Qwen3ForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    recipe: EquivalenceRecipe,
    pairs: Sequence[Pair],
) -> None:
    """AdamW with linear warm-up and cosine decay; every pair is seen once.

    One label per pair alone takes many times as many updates. So the head is also trained after every word of
    the second text, with the label of the pair so far (`prefix_weight`), and the trunk to predict the second
    text of equivalent pairs (`copy_weight`): a model that knows what must follow sees where a pair differs.
    """
    head = Qwen3ForCausalLM.from_pretrained(recipe.base).lm_head
    weights = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    divider = tokenizer.convert_tokens_to_ids(_DIVIDER)
    model.train()
    began, running = time.perf_counter(), torch.zeros(3)
    shares = torch.tensor([1.0, recipe.prefix_weight, recipe.copy_weight])
    for update in range(recipe.num_updates):
        chosen = pairs[update * recipe.pairs_per_update : (update + 1) * recipe.pairs_per_update]
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * _schedule(update, recipe)
        losses_3 = _losses(model, head, [_encode(tokenizer, pair) for pair in chosen], chosen, divider)
        optimizer.zero_grad()
        (losses_3 * shares).sum().backward()
        torch.nn.utils.clip_grad_norm_(weights, recipe.max_grad_norm)
        optimizer.step()
        # A mean over about the last 50 updates; over all of them while there are fewer.
        running += (losses_3.detach() - running) * max(0.02, 1.0 / (update + 1))
        if (update + 1) % 50 == 0 or update + 1 == recipe.num_updates:
            seconds, numbers = time.perf_counter() - began, f"update {update + 1}/{recipe.num_updates}"
            label, prefix, copy = running.tolist()
            print(f"{numbers}  loss {label:.4f}, {prefix:.4f}, {copy:.4f}  {seconds:.0f} s", flush=True)


def _losses(
    model: Qwen3ForSequenceClassification,
    head: torch.nn.Module,
    encoded: Sequence[list[int]],
    pairs: Sequence[Pair],
    divider: int,
) -> Tensor:
    """[3]: mean cross-entropy of the labels, of the labels so far, and of the second texts' tokens."""
    ids_BT, mask_BT = _padded(encoded, model.config.pad_token_id)
    hidden_BTH = model.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
    logits_BT2 = model.score(hidden_BTH)
    last_B = mask_BT.sum(1) - 1
    labels_B = torch.tensor(_labels(pairs))
    entropy = torch.nn.functional.cross_entropy
    label_loss = entropy(logits_BT2[torch.arange(len(last_B)), last_B], labels_B.long())
    # A word is a token, and what follows the only token `divider` is the second text.
    word_BT = torch.arange(ids_BT.shape[1]) - (ids_BT == divider).long().argmax(1, keepdim=True) - 1
    in_second_BT = (word_BT >= 0) & mask_BT.bool()
    so_far_BT = word_BT < torch.tensor([pair.common for pair in pairs])[:, None]
    so_far_BT |= labels_B[:, None]
    prefix_loss = entropy(logits_BT2[in_second_BT], so_far_BT[in_second_BT].long())
    wanted_BT = in_second_BT[:, 1:] & labels_B[:, None]
    copy_loss = entropy(head(hidden_BTH[:, :-1][wanted_BT]), ids_BT[:, 1:][wanted_BT])
    return torch.stack([label_loss, prefix_loss, copy_loss])


def _schedule(update: int, recipe: EquivalenceRecipe) -> float:
    if update < recipe.warmup_updates:
        return (update + 1) / recipe.warmup_updates
    done = (update - recipe.warmup_updates) / max(1, recipe.num_updates - recipe.warmup_updates)
    return 0.5 * (1.0 + math.cos(math.pi * done))


def _report(
    model: Qwen3ForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    calibration: Calibration,
) -> dict[str, object]:
    """Measurements on pairs of unseen problems, also by kind of difference."""
    found = margins(model, tokenizer, pairs)
    report = measure(found.values, _labels(pairs), calibration)
    passed = calibration.probability(found.values) >= calibration.threshold
    kinds = np.array([pair.kind for pair in pairs])
    report["called_equivalent"] = {
        name: {"pairs": int((kinds == name).sum()), "share": round(float(passed[kinds == name].mean()), 4)}
        for name in dict.fromkeys(kinds.tolist())
    }
    report["pairs_per_second"] = round(found.pairs_per_s, 1)
    report["num_threads"] = torch.get_num_threads()
    return report


def _write(
    model: Qwen3ForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    recipe: EquivalenceRecipe,
    calibration: Calibration,
    report: dict[str, object],
    output: Path,
) -> None:
    """Write the folder beside its place, then move it there."""
    content = {
        "template": TEMPLATE,
        **asdict(calibration),
        "heldout": report,
        "recipe": asdict(recipe),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES},
    }
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as staging:
        folder = Path(staging) / "classifier"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / CALIBRATION_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if output.exists():
            shutil.rmtree(output)
        folder.rename(output)
