"""Tempered groups: sampled at another temperature, to pull the entropy of the policy up or down.

AEPO, arXiv 2510.08141. Used by the producer (what to sample, and how), by `trainer.collate` (what counts) and
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
"""The setting that a controller may move; the producer takes it, it is no number of the objective."""


def counting_rows(reward_N: np.ndarray, origin_N: np.ndarray) -> np.ndarray:
    """loss_policy + weight mean(-log pi(token)) over tempered rows with r > 0

    bool [N]: which tempered rows count; `reward_N` is NaN where there is no reward. log pi is of the policy
    at the training temperature: under the temperature that a row was sampled at, the mean gradient of log pi
    over all samples is zero; under another one it is the pull towards the distribution that sampled, and
    r > 0 takes the right answers of it. AEPO, arXiv 2510.08141, whose equation was not retrieved: this is
    derived from its abstract and the authors' code, which takes rows that are better than their siblings.
    """
    return np.isin(origin_N, origins_where(lambda spec: spec.learned == "if_right")) & exceeds(reward_N, 0.0)


def as_tempered(group: Group) -> Group:
    """The group with its samples as rows of origin tempered."""
    return replace(group, samples=tuple(replace(sample, origin=TEMPERED) for sample in group.samples))


def temperature_of(config: RunConfig, settings: Mapping[str, float]) -> float:
    """What a step's tempered groups are sampled at: by a controller, or as configured."""
    return settings.get(TEMPERATURE, config.tempered.temperature)


def tempered_metrics(index: pa.Table, columns: pa.Table) -> dict[str, float]:
    """tempered/*: a step's tempered rows; `columns` are the learner's scores in the row order of `index`.

    Entropy and nll are nats per token, at the training temperature.
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
