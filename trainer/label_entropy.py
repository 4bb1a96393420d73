"""The entropy of labels: formats, answers, plans. Used by metrics, evaluations and comparisons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np


def entropy_of(labels: Iterable[object]) -> float:
    """Shannon entropy in nats of the empirical distribution of `labels`; 0 if there are none."""
    counts = np.array(list(Counter(labels).values()), np.float64)
    if not len(counts):
        return 0.0
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
