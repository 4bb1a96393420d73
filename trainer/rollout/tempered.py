"""Tempered groups: sampled at another temperature, to raise or lower the entropy of the policy.

AEPO, arXiv 2510.08141. Used by the producer (how to sample), by `trainer.collate` (what to learn from) and
for metrics. The learner scores these rows at the training temperature (`trainer.model.rows.read_rows`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import pyarrow as pa

from configs.origins import TEMPERED, origins_where
from configs.schema import RunConfig
from rollouts.records import Group
from trainer.loss_tokens import loss_values
from trainer.reward_ties import exceeds

TEMPERATURE: Final = "tempered.temperature"
"""The setting that a controller may change. The producer uses it; it is not part of the objective."""


def positive_tempered_rows(reward_N: np.ndarray, origin_N: np.ndarray) -> np.ndarray:
    """loss_policy + weight mean(-log pi(token)) over tempered rows with r > 0

    bool [N]: the tempered rows that are learned; `reward_N` is NaN where there is no reward. log pi is taken
    at the training temperature. At the temperature that a row was sampled at, the expected gradient of log pi
    is zero; at another one it moves the policy towards the sampling distribution. r > 0 keeps only rewarded
    samples. AEPO, arXiv 2510.08141. The paper's equation was not available to us: this is derived from its
    abstract and the authors' code, which keeps rows that are better than others of their group.
    """
    return np.isin(origin_N, origins_where(lambda spec: spec.learned == "if_right")) & exceeds(reward_N, 0.0)


def as_tempered(group: Group) -> Group:
    """The group with the origin of its samples set to tempered."""
    return replace(group, samples=tuple(replace(sample, origin=TEMPERED) for sample in group.samples))


def temperature_of(config: RunConfig, settings: Mapping[str, float]) -> float:
    """The temperature of a step's tempered groups: set by a controller, or else by the config."""
    return settings.get(TEMPERATURE, config.tempered.temperature)


def tempered_metrics(index: pa.Table, columns: pa.Table) -> dict[str, float]:
    """tempered/*: metrics of a step's tempered rows, in nats per token at the training temperature.

    `columns` are the learner's scores in the row order of `index`.
    """
    if not index.num_rows:
        return {}
    reward_N = index.column("reward").cast(pa.float64()).fill_null(float("nan")).to_numpy()
    counts = index.column("num_loss_tokens").to_numpy().astype(np.float64)
    entropy_N = columns.column("entropy_mean").cast(pa.float64()).fill_null(0.0).to_numpy()
    logprobs = loss_values(columns, "proximal_logprobs").astype(np.float64)
    rewarded = reward_N[np.isfinite(reward_N)]
    total = max(1.0, counts.sum())
    metrics = {
        "tempered/num_rows": float(index.num_rows),
        "tempered/counting_share": float(exceeds(reward_N, 0.0).mean()),
        "tempered/nll": float(-logprobs.sum() / total),
        "tempered/token_entropy": float((entropy_N * counts).sum() / total),
    }
    return metrics | ({"tempered/reward_mean": float(rewarded.mean())} if len(rewarded) else {})
