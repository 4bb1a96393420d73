"""A step's metrics from its rows: rewards, entropies, formats, KL, mismatch and age. Names are ``area/name``.

Lengths and means over tokens count loss tokens only.
A metric whose rows are absent is left out, not set to a number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.origins import ORIGINS, POLICY, REPLAY, SFT, TEMPERED, origins_where
from trainer.label_entropy import entropy_of
from trainer.loss_tokens import loss_values
from trainer.reward_ties import rewards_differ
from trainer.rollout.tempered import tempered_metrics
from trainer.step_records import Batch, Learnable


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.float64()).fill_null(float("nan")).to_numpy()  # type: ignore[no-any-return]


def _mean(values: np.ndarray) -> dict[str, float]:
    kept = values[np.isfinite(values)]
    return {"mean": float(kept.mean())} if len(kept) else {}


def _put(metrics: dict[str, float], name: str, values: np.ndarray) -> None:
    for mean in _mean(values).values():
        metrics[name] = mean


def reward_metrics(batch: Batch) -> dict[str, float]:
    """reward/*, score/*, group/*: means over the rows that have a value."""
    metrics: dict[str, float] = {"reward/null_share": float(np.isnan(batch.reward_N).mean())}
    _put(metrics, "reward/mean", batch.reward_N)
    scores = batch.index.column("scores").to_pylist()
    statuses = batch.index.column("score_status").to_pylist()
    for name in sorted({name for row in scores for name, _ in row}):
        values = [dict(row).get(name) for row in scores]
        _put(metrics, f"score/{name}", np.array([np.nan if v is None else v for v in values], np.float64))
    failed = Counter(f"failed/{name}/{status}" for row in statuses for name, status in row if status != "ok")
    metrics |= {name: float(count) for name, count in failed.items()}
    groups = [batch.reward_N[batch.group_N == group] for group in range(int(batch.group_N.max()) + 1)]
    flat = [
        not rewards_differ(float(np.nanmin(rewards)), float(np.nanmax(rewards)))
        for rewards in groups
        if np.isfinite(rewards).any()
    ]
    metrics["group/zero_std_share"] = float(np.mean(flat)) if flat else 1.0
    return metrics


def _format_metrics(tags: Sequence[str | None], reward_N: np.ndarray) -> dict[str, float]:
    metrics: dict[str, float] = {}
    known = np.array([tag or "untagged" for tag in tags], dtype=object)
    if not any(tags):
        return metrics
    metrics["format/leading_share"] = max(Counter(tag for tag in tags if tag).values()) / len(tags)
    for tag in sorted(set(known)):
        metrics[f"format/share/{tag}"] = float((known == tag).mean())
        _put(metrics, f"format/reward/{tag}", reward_N[known == tag])
    metrics["entropy/format"] = entropy_of(known)
    return metrics


def _answer_entropy(batch: Batch) -> dict[str, float]:
    answers = np.array(batch.index.column("answer").to_pylist(), dtype=object)
    if not any(answer is not None for answer in answers):
        return {}
    per_group = [entropy_of(answers[batch.group_N == group]) for group in range(int(batch.group_N.max()) + 1)]
    return {"entropy/answer": float(np.mean(per_group))}


def _token_metrics(columns: pa.Table, counts: np.ndarray) -> dict[str, float]:
    """Entropies and KL; `columns` and `counts` (loss tokens of each row) cover the same rows."""
    metrics: dict[str, float] = {}
    total = max(1.0, float(counts.sum()))
    for name, metric in (
        ("entropy_mean", "entropy/token_mean"),
        ("entropy_mean_t1", "entropy/token_mean_t1"),
    ):
        metrics[metric] = float(np.nansum(_floats(columns.column(name)) * counts) / total)
    _put(metrics, "entropy/sequence_mean", _floats(columns.column("entropy_mean")))
    for metric, name in (
        ("mismatch/mean_abs_behavior_vs_proximal", "mismatch_abs"),
        ("mismatch/k3_behavior_vs_proximal", "mismatch_k3"),
    ):
        metrics[metric] = float(columns.column(name).to_numpy().sum() / total)
    policy = loss_values(columns, "proximal_logprobs").astype(np.float64)
    for anchor in ("ref", "base"):
        if columns.column(f"{anchor}_logprobs").null_count:
            continue
        log_ratio = loss_values(columns, f"{anchor}_logprobs").astype(np.float64) - policy
        metrics[f"kl/k3_policy_vs_{anchor}"] = float((np.expm1(log_ratio) - log_ratio).sum() / total)
    return metrics


def staleness_metrics(index: pa.Table, version: int) -> dict[str, float]:
    """staleness/*: how many steps the sampled tokens of `index` lag behind weights `version`.

    mean over tokens, by `version_tokens` (the sum of their versions); max from the oldest. Rows without
    versions were not sampled by a policy, nor were tokens outside `loss_mask`.
    """
    rows = index.filter(pc.is_valid(index.column("min_version")))
    num_tokens = pc.sum(rows.column("num_loss_tokens")).as_py()
    if not num_tokens:
        return {}
    return {
        "staleness/mean": version - pc.sum(rows.column("version_tokens")).as_py() / num_tokens,
        "staleness/max": float(version - pc.min(rows.column("min_version")).as_py()),
    }


def _replay_metrics(batch: Batch, columns: pa.Table, version: int) -> dict[str, float]:
    """replay/*: what a step's replayed rows are, and how far the policy is from their samplers."""
    metrics = {"replay/num_groups": float(batch.group_N.max() + 1)}
    _put(metrics, "replay/reward_mean", batch.reward_N)
    total = max(1.0, float(pc.sum(batch.index.column("num_loss_tokens")).as_py()))
    drift = columns.column("mismatch_k3").to_numpy().sum() / total
    metrics["replay/k3_behavior_vs_proximal"] = float(drift)
    ages = staleness_metrics(batch.index, version)
    return metrics | {name.replace("staleness/", "replay/staleness_"): age for name, age in ages.items()}


def _sft_metrics(batch: Batch, columns: pa.Table, version: int) -> dict[str, float]:
    """sft/*: how many demonstrations a step has, and what the policy thinks of them, per loss token."""
    counts = batch.index.column("num_loss_tokens").to_numpy().astype(np.float64)
    logprobs = loss_values(columns, "proximal_logprobs").astype(np.float64)
    entropy = _floats(columns.column("entropy_mean"))
    return {
        "sft/num_rows": float(batch.index.num_rows),
        "sft/nll": float(-logprobs.mean()),
        "sft/token_entropy": float((entropy * counts).sum() / counts.sum()),
    }


def step_metrics(batch: Batch, columns: pa.Table, version: int) -> dict[str, float]:
    """All metrics of a step's rows; `columns` are the learner's scores in the index's row order.

    `version` is the one of the learner's weights before the step's updates.
    Those without a prefix are of the rows of origin policy; the rows of every other origin have their own
    under its name: replay/*, tempered/*, sft/*, ...
    """
    metrics: dict[str, float] = {}
    for origin in ORIGINS:
        rows = batch.rows_of(origin)
        if origin == POLICY or len(rows):
            measure = _OF_ORIGIN.get(origin, partial(_other_metrics, origin))
            metrics |= measure(batch.only(rows), columns.take(rows), version)
    return metrics


def _other_metrics(origin: str, batch: Batch, columns: pa.Table, version: int) -> dict[str, float]:
    """<origin>/*: how many rows of an origin without metrics of its own there are, and their means."""
    counts = batch.index.column("num_loss_tokens").to_numpy().astype(np.float64)
    entropy = np.nansum(_floats(columns.column("entropy_mean")) * counts) / max(1.0, counts.sum())
    metrics = {f"{origin}/num_rows": float(len(counts)), f"{origin}/token_entropy": float(entropy)}
    _put(metrics, f"{origin}/reward_mean", batch.reward_N)
    return metrics


def _policy_metrics(batch: Batch, columns: pa.Table, version: int) -> dict[str, float]:
    """With more than one domain, the main ones are repeated per domain as ``name@domain``."""
    index = batch.index
    counts = index.column("num_loss_tokens").to_numpy().astype(np.float64)
    tags = index.column("format_tag").to_pylist()
    metrics = reward_metrics(batch) | _format_metrics(tags, batch.reward_N) | _answer_entropy(batch)
    metrics |= _token_metrics(columns, counts)
    metrics |= staleness_metrics(index, version)
    metrics["length/mean_tokens"] = float(counts.mean())
    reasons = index.column("finish_reason").to_pylist()
    metrics["length/truncated_share"] = float(np.mean([reason == "length" for reason in reasons]))
    domains = np.array(index.column("domain").to_pylist(), dtype=object)
    if len(set(domains)) > 1:
        for domain in sorted(set(domains)):
            mine = np.flatnonzero(domains == domain)
            part = _format_metrics([tags[row] for row in mine], batch.reward_N[mine])
            part |= _token_metrics(columns.take(mine), counts[mine])
            _put(part, "reward/mean", batch.reward_N[mine])
            metrics |= {f"{name}@{domain}": value for name, value in part.items()}
    return metrics


_OF_ORIGIN: Final[Mapping[str, Callable[[Batch, pa.Table, int], dict[str, float]]]] = {
    POLICY: _policy_metrics,
    REPLAY: _replay_metrics,
    TEMPERED: lambda batch, columns, version: tempered_metrics(batch.index, columns),
    SFT: _sft_metrics,
}
"""Origins with metrics of their own; all others have those of `_other_metrics`."""


def credit_metrics(batch: Batch, learnable: Learnable) -> dict[str, float]:
    """Of the policy rows that have a reward: credit/bonus_mean, and answers/unseen_share, the share whose
    answer the prompt had not had in an earlier step. Left out where there are no bonuses, and no answers.
    """
    own = batch.rows_of(POLICY)
    own = own[np.isfinite(batch.reward_N[own])]
    metrics: dict[str, float] = {}
    if learnable.bonus_N.any():
        _put(metrics, "credit/bonus_mean", learnable.bonus_N[own])
    if batch.index.column("answer").null_count < batch.index.num_rows:
        _put(metrics, "answers/unseen_share", (learnable.visits_N[own] == 0).astype(np.float64))
    return metrics


def update_metrics(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """loss/*, grad/norm, the skipped updates, and means over the tokens of a step's updates.

    Those are kl/k3_proximal_vs_policy and, with a clamped entropy bonus, entropy/clamped_mean.
    """
    metrics: dict[str, float] = {}
    for name in sorted({name for update in updates for name in update if name.startswith("loss/")}):
        _put(metrics, name, np.array([update.get(name, np.nan) for update in updates]))
    _put(metrics, "grad/norm", np.array([update["grad/norm"] for update in updates]))
    metrics["grad/skipped_updates"] = float(sum(1.0 - update["grad/applied"] for update in updates))
    metrics |= _mark_shares(updates)
    for name in sorted({name for update in updates for name in update if name.startswith("stat/")}):
        _, origin, stat = name.split("/", 2)
        place = f"prepare/{stat}" if origin == POLICY else f"prepare/{origin}/{stat}"
        _put(metrics, place, np.array([update.get(name, np.nan) for update in updates]))
    names = [f"tokens/{origin}" for origin in origins_where(lambda spec: spec.transformed)]
    tokens = sum(update.get(name, 0.0) for update in updates for name in names)
    for name, metric in (
        ("sum/k3_proximal_vs_policy", "kl/k3_proximal_vs_policy"),
        ("sum/entropy_clamped", "entropy/clamped_mean"),
    ):
        found = [update[name] for update in updates if name in update]
        if tokens and found:
            metrics[metric] = sum(found) / tokens
    return metrics


def _mark_shares(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """clip/<mark> (clip/<origin>/<mark> beside policy): the share of the step's loss tokens a loss marked."""
    shares = {}
    for name in sorted({name for update in updates for name in update if name.startswith("mark/")}):
        _, origin, mark = name.split("/", 2)
        tokens = sum(update.get(f"tokens/{origin}", 0.0) for update in updates)
        place = f"clip/{mark}" if origin == POLICY else f"clip/{origin}/{mark}"
        shares[place] = sum(update.get(name, 0.0) for update in updates) / tokens if tokens else 0.0
    return shares
