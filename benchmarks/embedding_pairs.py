"""How well cosines of an embedder separate 100 hand-written pairs of answers to questions.

`python benchmarks/embedding_pairs.py MODEL_FOLDER` reads benchmarks/data/equivalence_pairs.jsonl. It
has per question an answer beside a paraphrase, the same answer by another method, and another answer.
The script prints cosines by kind. For three readings of "equivalent" it also prints the area under the
ROC curve, with a bootstrap interval over questions, and the accuracy of a threshold that was chosen on
the other questions. MODEL_FOLDER is an encoder with mean pooling, such as all-MiniLM-L6-v2.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lab.calibration import auc  # noqa: E402

PAIRS = ROOT / "benchmarks" / "data" / "equivalence_pairs.jsonl"
Floats = npt.NDArray[np.float64]
READINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "paraphrase or not": (("paraphrase",), ("other_method", "other_answer")),
    "paraphrase or another method": (("paraphrase",), ("other_method",)),
    "same answer or not": (("paraphrase", "other_method"), ("other_answer",)),
}
"""What counts as equivalent, and what as different."""
NUM_RESAMPLES = 2000


@torch.no_grad()
def embed(folder: str, texts: Sequence[str]) -> Floats:
    """Unit vectors [N, H]: the mean of the tokens' last hidden states."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    found = []
    for start in range(0, len(texts), 16):
        batch = tokenizer(list(texts[start : start + 16]), padding=True, truncation=True, return_tensors="pt")
        hidden_BTH = model(**batch).last_hidden_state
        mask_BT1 = batch["attention_mask"].unsqueeze(-1).float()
        mean_BH = (hidden_BTH * mask_BT1).sum(1) / mask_BT1.sum(1)
        found.append(torch.nn.functional.normalize(mean_BH, dim=1).double().numpy())
    return np.concatenate(found)


def interval(
    scores: Floats, positive: npt.NDArray[np.bool_], question: Floats, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of the AUC, resampling questions."""
    rng, questions = np.random.default_rng(seed), np.unique(question)
    rows_of = {each: np.flatnonzero(question == each) for each in questions.tolist()}
    found = []
    for _ in range(NUM_RESAMPLES):
        rows = np.concatenate([rows_of[each] for each in rng.choice(questions, len(questions)).tolist()])
        # A resample of one kind only has no AUC.
        if positive[rows].any() and not positive[rows].all():
            found.append(auc(scores[rows], positive[rows]))
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def best_threshold(scores: Floats, positive: npt.NDArray[np.bool_]) -> float:
    """The one of highest balanced accuracy, between two neighbouring scores."""
    ordered = np.unique(scores)
    candidates = np.concatenate([[ordered[0] - 1e-6], (ordered[1:] + ordered[:-1]) / 2, [ordered[-1] + 1e-6]])
    balanced = [((scores >= t)[positive].mean() + (scores < t)[~positive].mean()) / 2 for t in candidates]
    return float(candidates[int(np.argmax(balanced))])


def unseen_accuracy(scores: Floats, positive: npt.NDArray[np.bool_], question: Floats) -> float:
    """Balanced accuracy where each question's threshold was chosen on all others."""
    passed = np.zeros(len(scores), bool)
    for each in np.unique(question):
        out = question == each
        # Chosen on other questions: on its own it would be fitted to the noise of a few pairs.
        passed[out] = scores[out] >= best_threshold(scores[~out], positive[~out])
    return float((passed[positive].mean() + (~passed)[~positive].mean()) / 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="Hugging Face folder of the embedder")
    options = parser.parse_args(arguments)
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    texts = list(dict.fromkeys(row[side] for row in rows for side in ("first", "second")))
    began = time.perf_counter()
    vectors = dict(zip(texts, embed(options.folder, texts), strict=True))
    seconds = time.perf_counter() - began
    cosine = np.array([float(vectors[row["first"]] @ vectors[row["second"]]) for row in rows])
    kind = np.array([row["kind"] for row in rows])
    question = np.unique([row["question"] for row in rows], return_inverse=True)[1].astype(np.float64)
    print("| kind | pairs | least | median | most |\n|---|---|---|---|---|")
    for name in ("paraphrase", "other_method", "other_answer"):
        of_kind = cosine[kind == name]
        shown = " | ".join(f"{value:.2f}" for value in (of_kind.min(), np.median(of_kind), of_kind.max()))
        print(f"| {name} | {len(of_kind)} | {shown} |")
    print("\n| question | AUC (95 % interval) | threshold | balanced accuracy on questions not used for it |")
    print("|---|---|---|---|")
    for name, (same, different) in READINGS.items():
        used = np.isin(kind, (*same, *different))
        scores, positive, of = cosine[used], np.isin(kind[used], same), question[used]
        low, high = interval(scores, positive, of)
        area, threshold = auc(scores, positive), best_threshold(scores, positive)
        accuracy = unseen_accuracy(scores, positive, of)
        print(f"| {name} | {area:.2f} ({low:.2f} to {high:.2f}) | {threshold:.2f} | {accuracy:.0%} |")
    print(f"\n{len(texts) / seconds:.0f} texts a second, loading included")
    return 0


if __name__ == "__main__":
    sys.exit(main())
