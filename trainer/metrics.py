"""A step's metrics from its rows: rewards, entropies, formats, KL, mismatch, staleness. Names: ``area/name``.

Lengths and means over tokens count loss tokens only. Entropies, KL and logprobs are in nats. A metric without
rows is left out, not set to a number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.origins import ADDED, DISTILLED, ORIGINS, POLICY, REPLAY, SFT, TEMPERED, origins_where
from trainer.credit.advantage_inputs import refined_rows
from trainer.label_entropy import entropy_of
from trainer.loss_tokens import loss_values
from trainer.model.rows import TEACHER_COLUMNS
from trainer.reward_ties import reaches, rewards_differ
from trainer.rollout.tempered import tempered_metrics
from trainer.step_records import Batch, Learnable, origins_of


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.float64()).fill_null(float("nan")).to_numpy()  # type: ignore[no-any-return]


def _put_mean(metrics: dict[str, float], name: str, values: np.ndarray) -> None:
    """Set the mean of the finite `values`; nothing if there are none."""
    kept = values[np.isfinite(values)]
    if len(kept):
        metrics[name] = float(kept.mean())


def reward_metrics(batch: Batch) -> dict[str, float]:
    """reward/*, score/*, scorer/*, failed/*, group/*: means over rows with a value; counts of failures."""
    metrics: dict[str, float] = {"reward/null_share": float(np.isnan(batch.reward_N).mean())}
    _put_mean(metrics, "reward/mean", batch.reward_N)
    scores = batch.index.column("scores").to_pylist()
    statuses = batch.index.column("score_status").to_pylist()
    for name in sorted({name for row in scores for name, _ in row}):
        values = [dict(row).get(name) for row in scores]
        _put_mean(
            metrics, f"score/{name}", np.array([np.nan if v is None else v for v in values], np.float64)
        )
        metrics |= _missing_shares(name, [dict(row).get(name, "ok") for row in statuses])
    failed = Counter(f"failed/{name}/{status}" for row in statuses for name, status in row if status != "ok")
    metrics |= {name: float(count) for name, count in failed.items()}
    metrics |= _number_metrics(batch)
    groups = [batch.reward_N[batch.group_N == group] for group in range(int(batch.group_N.max()) + 1)]
    zero_std = [
        not rewards_differ(float(np.nanmin(rewards)), float(np.nanmax(rewards)))
        for rewards in groups
        if np.isfinite(rewards).any()
    ]
    # Without any reward no group can teach, which is what 1 means.
    metrics["group/zero_std_share"] = float(np.mean(zero_std)) if zero_std else 1.0
    return metrics


def _missing_shares(scorer: str, statuses: Sequence[str]) -> dict[str, float]:
    """The shares of rows whose score is missing, and missing because it took too long."""
    counts = Counter(statuses)
    return {
        f"scorer/{scorer}/null_share": 1.0 - counts["ok"] / len(statuses),
        f"scorer/{scorer}/timeout_share": counts["timeout"] / len(statuses),
    }


def is_timing(name: str) -> bool:
    """Whether a metric depends on the clock, so that it differs between two runs that are otherwise equal."""
    return name.startswith(("time/", "throughput/", "overlap/", "health/"))


def _number_metrics(batch: Batch) -> dict[str, float]:
    """scorer/<scorer>/<number>: the mean of each number that scorers store, over the rows that have it."""
    values: dict[str, list[float]] = {}
    for row in batch.index.column("numbers").to_pylist():
        for name, value in row or ():
            if not name.startswith("critique/"):  # of a refiner: see `refine_metrics`
                values.setdefault(name, []).append(value)
    return {f"scorer/{name}": float(np.mean(values[name])) for name in sorted(values)}


def _format_metrics(tags: Sequence[str | None], reward_N: np.ndarray) -> dict[str, float]:
    """format/* and entropy/format of rows with these format tags; empty if no row has a tag."""
    metrics: dict[str, float] = {}
    known = np.array([tag or "untagged" for tag in tags], dtype=object)
    if not any(tags):
        return metrics
    metrics["format/leading_share"] = max(Counter(tag for tag in tags if tag).values()) / len(tags)
    for tag in sorted(set(known)):
        metrics[f"format/share/{tag}"] = float((known == tag).mean())
        _put_mean(metrics, f"format/reward/{tag}", reward_N[known == tag])
    metrics["entropy/format"] = entropy_of(known)
    return metrics


def _answer_entropy(batch: Batch) -> dict[str, float]:
    """entropy/answer: the entropy of a group's answers, averaged over groups."""
    answers = np.array(batch.index.column("answer").to_pylist(), dtype=object)
    if not any(answer is not None for answer in answers):
        return {}
    per_group = [entropy_of(answers[batch.group_N == group]) for group in range(int(batch.group_N.max()) + 1)]
    return {"entropy/answer": float(np.mean(per_group))}


def _token_metrics(columns: pa.Table, counts: np.ndarray) -> dict[str, float]:
    """entropy/*, mismatch/* and kl/*; `columns` and `counts` (loss tokens per row) have the same rows."""
    metrics: dict[str, float] = {}
    total = max(1.0, float(counts.sum()))
    for name, metric in (
        ("entropy_mean", "entropy/token_mean"),
        ("entropy_mean_t1", "entropy/token_mean_t1"),
    ):
        metrics[metric] = float(np.nansum(_floats(columns.column(name)) * counts) / total)
    _put_mean(metrics, "entropy/sequence_mean", _floats(columns.column("entropy_mean")))
    for metric, name in (
        ("mismatch/mean_abs_behavior_vs_proximal", "mismatch_abs"),
        ("mismatch/k3_behavior_vs_proximal", "mismatch_k3"),
    ):
        metrics[metric] = float(columns.column(name).to_numpy().sum() / total)
    # float64: sums over a step's 1e5 tokens would lose digits in float32.
    policy = loss_values(columns, "proximal_logprobs").astype(np.float64)
    for anchor in ("ref", "base"):
        if columns.column(f"{anchor}_logprobs").null_count:
            continue
        log_ratio = loss_values(columns, f"{anchor}_logprobs").astype(np.float64) - policy
        metrics[f"kl/k3_policy_vs_{anchor}"] = float((np.expm1(log_ratio) - log_ratio).sum() / total)
    return metrics


def staleness_metrics(index: pa.Table, version: int) -> dict[str, float]:
    """staleness/*: how many steps the weights that sampled the tokens of `index` are older than `version`.

    `mean` is over tokens, from `version_tokens` (the sum of a row's token versions); `max` is of the oldest
    token. Rows without versions and tokens outside `loss_mask` were not sampled and do not count.
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
    """replay/*: the number and rewards of replayed rows, and the policy's distance from their samplers."""
    metrics = {"replay/num_groups": float(batch.group_N.max() + 1)}
    _put_mean(metrics, "replay/reward_mean", batch.reward_N)
    total = max(1.0, float(pc.sum(batch.index.column("num_loss_tokens")).as_py()))
    drift = columns.column("mismatch_k3").to_numpy().sum() / total
    metrics["replay/k3_behavior_vs_proximal"] = float(drift)
    ages = staleness_metrics(batch.index, version)
    return metrics | {name.replace("staleness/", "replay/staleness_"): age for name, age in ages.items()}


def _sft_metrics(batch: Batch, columns: pa.Table, version: int) -> dict[str, float]:
    """sft/*: the number of demonstrations, and the policy's nll and entropy on them, per loss token."""
    counts = batch.index.column("num_loss_tokens").to_numpy().astype(np.float64)
    logprobs = loss_values(columns, "proximal_logprobs").astype(np.float64)
    entropy = _floats(columns.column("entropy_mean"))
    return {
        "sft/num_rows": float(batch.index.num_rows),
        "sft/nll": float(-logprobs.mean()),
        "sft/token_entropy": float((entropy * counts).sum() / counts.sum()),
    }


def step_metrics(
    batch: Batch, columns: pa.Table, version: int, threshold: float | None = 0.5
) -> dict[str, float]:
    """All metrics of a step's rows; `threshold` as in `refine_metrics`.

    `columns` are the learner's scores in the row order of the batch's index; `version` is the policy version
    before the step's updates. Metrics of origin policy have no prefix; every other origin has its own under
    its name: replay/*, tempered/*, sft/*, ...
    """
    metrics: dict[str, float] = {}
    for origin in ORIGINS:
        rows = batch.rows_of(origin)
        if origin == POLICY or len(rows):
            measure = _OF_ORIGIN.get(origin, partial(_other_metrics, origin))
            metrics |= measure(batch.only(rows), columns.take(rows), version)
    return metrics | refine_metrics(batch, threshold)


def refine_metrics(batch: Batch, threshold: float | None = 0.5) -> dict[str, float]:
    """refine/*: of a step's answers that were refined, and of the rows that a refiner added to their groups.

    refine/rows: rows that it made. refine/kept: those that groups kept. refine/fixed_share: of the problems
    all of whose answers are wrong, the share with a right refined row. refine/leaked_share: of kept rows with
    a critique, the share whose critique has the reference answer; refine/mention_share: the share that betray
    their context. refine/no_room: answers without a row; refine/critic_failed: those without a critique.
    Right is a reward of at least `threshold`; None if the refiner adds no answers, so that none is fixed.
    Empty for a step without such rows or tries.
    """
    origins = origins_of(batch.index)
    own, refined = origins == POLICY, np.isin(origins, ADDED)
    # Replayed rows keep the numbers of the step that refined them: they are not of this one.
    mine = batch.index.column("numbers").filter(pa.array(own | refined))
    numbers = [dict(row or ()) for row in mine.to_pylist()]
    tried = [row["critique/tried"] for row in numbers if "critique/tried" in row]
    if not tried and not refined.any():
        return {}
    counts = {
        name: sum(f"critique/{name}" in row for row in numbers) for name in ("no_room", "critic_failed")
    }
    metrics = {
        # A row without a parent, such as a solution of the dataset, was not tried at any answer.
        "refine/rows": max(sum(tried), float(refined.sum())),
        "refine/kept": float(refined.sum()),
        **{f"refine/{name}": float(count) for name, count in counts.items() if count},
    }
    if threshold is not None:
        _put_mean(metrics, "refine/fixed_share", _fixed(batch, own, refined_rows(origins), threshold))
    for metric, name in (("leaked_share", "critique/leaked"), ("mention_share", "critique/mentions")):
        found = [row[name] for row in numbers if name in row]
        _put_mean(metrics, f"refine/{metric}", np.array(found, np.float64))
    return metrics


def _fixed(batch: Batch, own: np.ndarray, refined: np.ndarray, threshold: float) -> np.ndarray:
    """Of each group whose policy rows (`own`) are all wrong: 1 if a refined row is right, else 0."""
    fixed = []
    for group in np.unique(batch.group_N[own]).tolist():
        mine = batch.group_N == group
        answers = batch.reward_N[mine & own]
        if np.isfinite(answers).all() and not reaches(answers, threshold).any():
            fixed.append(float(reaches(batch.reward_N[mine & refined], threshold).any()))
    return np.array(fixed, np.float64)


def _distilled_metrics(batch: Batch, columns: pa.Table, version: int) -> dict[str, float]:
    """distilled/*: the rows with a teacher, what it reads, and how far it is from the policy.

    solution_share and feedback_share: of rows whose teacher reads a right answer of a sibling, or feedback.
    teacher_kl: KL(teacher || policy) per loss token, in nats. teacher_gain: by how much the teacher finds the
    sampled tokens more likely than the policy does, per loss token; right_gain and wrong_gain are those of
    rows with a right and a wrong answer, where a scorer says which they are.
    """
    counts = batch.index.column("num_loss_tokens").to_numpy().astype(np.float64)
    metrics = _other_metrics(DISTILLED, batch, columns, version)
    numbers = [dict(row or ()) for row in batch.index.column("numbers").to_pylist()]
    for part in ("solution", "feedback"):
        shares = np.array([row.get(f"teacher/{part}", np.nan) for row in numbers], np.float64)
        _put_mean(metrics, f"{DISTILLED}/{part}_share", shares)
    kl, gain = (_floats(columns.column(name)) for name in TEACHER_COLUMNS)
    verdicts = batch.index.column("answer_ok").to_pylist()
    parts = {
        "teacher_kl": (kl, np.isfinite(kl)),
        "teacher_gain": (gain, np.isfinite(gain)),
        "right_gain": (gain, np.array([verdict is True for verdict in verdicts]) & np.isfinite(gain)),
        "wrong_gain": (gain, np.array([verdict is False for verdict in verdicts]) & np.isfinite(gain)),
    }
    for name, (values, chosen) in parts.items():
        if chosen.any():
            metrics[f"{DISTILLED}/{name}"] = float(np.average(values[chosen], weights=counts[chosen]))
    return metrics


def _other_metrics(origin: str, batch: Batch, columns: pa.Table, version: int) -> dict[str, float]:
    """<origin>/*: number of rows, mean entropy and mean reward of an origin without metrics of its own."""
    counts = batch.index.column("num_loss_tokens").to_numpy().astype(np.float64)
    entropy = np.nansum(_floats(columns.column("entropy_mean")) * counts) / max(1.0, counts.sum())
    metrics = {f"{origin}/num_rows": float(len(counts)), f"{origin}/token_entropy": float(entropy)}
    _put_mean(metrics, f"{origin}/reward_mean", batch.reward_N)
    return metrics


def _policy_metrics(batch: Batch, columns: pa.Table, version: int) -> dict[str, float]:
    """The metrics of origin policy. With several domains, the main ones also as ``name@domain``."""
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
            _put_mean(part, "reward/mean", batch.reward_N[mine])
            metrics |= {f"{name}@{domain}": value for name, value in part.items()}
    return metrics


_OF_ORIGIN: Final[Mapping[str, Callable[[Batch, pa.Table, int], dict[str, float]]]] = {
    POLICY: _policy_metrics,
    DISTILLED: _distilled_metrics,
    REPLAY: _replay_metrics,
    TEMPERED: lambda batch, columns, version: tempered_metrics(batch.index, columns),
    SFT: _sft_metrics,
}
"""Origins with metrics of their own; all others use `_other_metrics`."""


def credit_metrics(batch: Batch, learnable: Learnable) -> dict[str, float]:
    """Metrics of the policy rows that have a reward.

    credit/bonus_mean is left out if there are no bonuses. answers/unseen_share, the share of rows whose
    answer did not occur for the prompt in an earlier step, is left out if there are no answers.
    """
    own = batch.rows_of(POLICY)
    own = own[np.isfinite(batch.reward_N[own])]
    metrics: dict[str, float] = {}
    if learnable.bonus_N.any():
        _put_mean(metrics, "credit/bonus_mean", learnable.bonus_N[own])
    if batch.index.column("answer").null_count < batch.index.num_rows:
        _put_mean(metrics, "answers/unseen_share", (learnable.visits_N[own] == 0).astype(np.float64))
    return metrics


def update_metrics(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """loss/*, grad/*, clip/* and prepare/* of a step's updates, from the metric sums of each update.

    kl/k3_proximal_vs_policy and, with a clamped entropy bonus, entropy/clamped_mean are means over all tokens
    of the updates.
    """
    metrics: dict[str, float] = {}
    for name in sorted({name for update in updates for name in update if name.startswith("loss/")}):
        _put_mean(metrics, name, np.array([update.get(name, np.nan) for update in updates]))
    _put_mean(metrics, "grad/norm", np.array([update["grad/norm"] for update in updates]))
    metrics["grad/skipped_updates"] = float(sum(1.0 - update["grad/applied"] for update in updates))
    metrics |= _mark_shares(updates)
    for name in sorted({name for update in updates for name in update if name.startswith("stat/")}):
        _, origin, stat = name.split("/", 2)
        place = f"prepare/{stat}" if origin == POLICY else f"prepare/{origin}/{stat}"
        _put_mean(metrics, place, np.array([update.get(name, np.nan) for update in updates]))
    names = [f"tokens/{origin}" for origin in origins_where(lambda spec: spec.transformed)]
    tokens = sum(update.get(name, 0.0) for update in updates for name in names)
    for name, metric in (
        ("sum/k3_proximal_vs_policy", "kl/k3_proximal_vs_policy"),
        ("sum/entropy_clamped", "entropy/clamped_mean"),
    ):
        sums = [update[name] for update in updates if name in update]
        if tokens and sums:
            metrics[metric] = sum(sums) / tokens
    return metrics


def _mark_shares(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """clip/<mark> of origin policy, clip/<origin>/<mark> of others: the share of marked loss tokens."""
    shares = {}
    for name in sorted({name for update in updates for name in update if name.startswith("mark/")}):
        _, origin, mark = name.split("/", 2)
        tokens = sum(update.get(f"tokens/{origin}", 0.0) for update in updates)
        place = f"clip/{mark}" if origin == POLICY else f"clip/{origin}/{mark}"
        shares[place] = sum(update.get(name, 0.0) for update in updates) / tokens if tokens else 0.0
    return shares
