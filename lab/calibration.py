"""Calibrate a classifier of pairs: logits to probabilities, a threshold for a false positive rate, measures.

Inputs: margins (logit of equivalent less that of different) and labels. Outputs: a `Calibration`, and numbers
for a report. Used by `lab.train_equivalence` and `benchmarks/embedding_pairs.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_NUM_NEWTON = 50
NUM_BINS = 10


@dataclass(frozen=True, slots=True)
class Calibration:
    """probability = 1 / (1 + exp(-(scale x margin + shift))); equivalent from `threshold` on."""

    scale: float
    shift: float
    threshold: float

    def probability(self, margins_N: Floats) -> Floats:
        """The probability of each pair to be equivalent."""
        return 1.0 / (1.0 + np.exp(-np.clip(self.scale * margins_N + self.shift, -700.0, 700.0)))


def fit(margins_N: Floats, is_equivalent_N: npt.NDArray[np.bool_], false_positive_rate: float) -> Calibration:
    """Platt scaling by maximum likelihood, and the lowest threshold with at most that false positive rate.

    Platt (1999), with his targets (n + 1) / (n + 2) instead of 1 and 0, so that pairs without an error give a
    finite scale. Newton steps from scale 1 and shift 0.

    Raises:
        ValueError: one of the labels is missing.
    """
    positives, negatives = int(is_equivalent_N.sum()), int((~is_equivalent_N).sum())
    if not positives or not negatives:
        raise ValueError(
            f"pairs must be of both labels, got {positives} equivalent and {negatives} different"
        )
    target_N = np.where(is_equivalent_N, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    inputs_N2 = np.stack([margins_N, np.ones_like(margins_N)], axis=1)
    weights_2 = np.array([1.0, 0.0])
    for _ in range(_NUM_NEWTON):
        chance_N = 1.0 / (1.0 + np.exp(-np.clip(inputs_N2 @ weights_2, -700.0, 700.0)))
        gradient_2 = inputs_N2.T @ (chance_N - target_N)
        curvature_22 = (inputs_N2 * (chance_N * (1.0 - chance_N))[:, None]).T @ inputs_N2
        step_2 = np.linalg.solve(curvature_22 + 1e-9 * np.eye(2), gradient_2)
        # Damped: far from the optimum a full Newton step of a logistic loss may overshoot.
        weights_2 = weights_2 - step_2 * min(1.0, 1.0 / max(1e-12, float(np.abs(step_2).max())))
    scale, shift = (float(each) for each in weights_2)
    unset = Calibration(scale=scale, shift=shift, threshold=0.5)
    # The threshold is chosen on the different pairs alone: they are what can pass by mistake.
    different = np.sort(unset.probability(margins_N[~is_equivalent_N]))[::-1]
    allowed = int(false_positive_rate * negatives)
    # Just above the first different pair that must not pass.
    threshold = float(np.nextafter(different[allowed], 1.0)) if allowed < negatives else 0.0
    return Calibration(scale=scale, shift=shift, threshold=threshold)


def measure(
    margins_N: Floats, is_equivalent_N: npt.NDArray[np.bool_], calibration: Calibration
) -> dict[str, object]:
    """Accuracy at the threshold and at 1/2, error rates, AUC, expected calibration error, reliability."""
    probability_N = calibration.probability(margins_N)
    passed_N = probability_N >= calibration.threshold
    return {
        "pairs": len(margins_N),
        "accuracy": _rounded(float((passed_N == is_equivalent_N).mean())),
        "accuracy_at_half": _rounded(float(((probability_N >= 0.5) == is_equivalent_N).mean())),
        "false_positive_rate": _rounded(float(passed_N[~is_equivalent_N].mean())),
        "false_negative_rate": _rounded(float(1.0 - passed_N[is_equivalent_N].mean())),
        "auc": _rounded(auc(margins_N, is_equivalent_N)),
        "expected_calibration_error": _rounded(expected_calibration_error(probability_N, is_equivalent_N)),
        "reliability": reliability(probability_N, is_equivalent_N),
    }


def auc(scores_N: Floats, is_positive_N: npt.NDArray[np.bool_]) -> float:
    """Probability that a positive scores above a negative, ties counted half."""
    positive, negative = scores_N[is_positive_N], np.sort(scores_N[~is_positive_N])
    below = np.searchsorted(negative, positive, side="left")
    up_to = np.searchsorted(negative, positive, side="right")
    return float((below + up_to).mean() / 2.0 / len(negative))


def expected_calibration_error(probability_N: Floats, is_positive_N: npt.NDArray[np.bool_]) -> float:
    """Mean over pairs of |mean probability - share of positives| of the pair's bin, of ten equal bins."""
    rows = reliability(probability_N, is_positive_N)
    return sum(row["pairs"] * abs(row["probability"] - row["share"]) for row in rows) / len(probability_N)


def reliability(probability_N: Floats, is_positive_N: npt.NDArray[np.bool_]) -> list[dict[str, float]]:
    """Of each bin with pairs: its lower edge, their number, mean probability and share of positives."""
    bins_N = np.minimum((probability_N * NUM_BINS).astype(int), NUM_BINS - 1)
    return [
        {
            "from": at / NUM_BINS,
            "pairs": int((bins_N == at).sum()),
            "probability": _rounded(float(probability_N[bins_N == at].mean())),
            "share": _rounded(float(is_positive_N[bins_N == at].mean())),
        }
        for at in range(NUM_BINS)
        if (bins_N == at).any()
    ]


def _rounded(value: float) -> float:
    return round(value, 5)
