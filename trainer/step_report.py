"""The report of a step: its metrics, which of its updates were applied, and the seconds of its phases."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import pyarrow as pa

from configs.origins import POLICY
from configs.schema import RolloutConfig
from rollouts.files import Json
from trainer.metrics import credit_metrics, step_metrics, update_metrics
from trainer.reports import Reports
from trainer.rollout.dynamic_sampling import max_rounds, sampling_metrics
from trainer.step_records import Batch, Learnable


class StepReport:
    """Collects the metrics of the current step; `lap(name)` ends a phase and starts the next one."""

    def __init__(self) -> None:
        self._began = self._last = time.perf_counter()
        self._phases: dict[str, float] = {}
        self._num_tokens = 0.0
        self._overlap_from = (0.0, 0.0)
        self.metrics: dict[str, float] = {}
        self.applied: list[bool] = []

    def lap(self, name: str, parts: Mapping[str, float] | None = None) -> None:
        """End the phase `name`. `parts` are seconds measured within it, by metric name."""
        now = time.perf_counter()
        self._phases |= parts or {}
        self._phases[f"time/{name}_s"] = self._phases.get(f"time/{name}_s", 0.0) + now - self._last
        self._last = now

    def add_rows(
        self,
        batch: Batch,
        columns: pa.Table,
        learnable: Learnable,
        version: int,
        threshold: float | None = 0.5,
    ) -> None:
        """Add the metrics of the step's rows, scored by the weights of `version`.

        `threshold` as in `refine_metrics`.
        """
        self.metrics |= step_metrics(batch, columns, version, threshold) | credit_metrics(batch, learnable)
        counts = batch.index.column("num_loss_tokens").to_numpy()
        self._num_tokens = float(counts[batch.rows_of(POLICY)].sum())

    def add_sampling(self, batch: Batch, rollout: RolloutConfig, reports: Reports, step: int) -> None:
        """Add sampling/*; report a `step` (from 1) with too few groups to learn from after all its rounds."""
        metrics = sampling_metrics(batch.index.take(batch.rows_of(POLICY)), rollout)
        kept = metrics.get("sampling/kept_groups", 0.0)
        if max_rounds(rollout) > 1 and kept < rollout.groups_per_step:
            counts = {"kept": int(kept), "wanted": rollout.groups_per_step}
            reports.event("groups_short", step=step, **counts, rounds=int(metrics["sampling/rounds"]))
        self.metrics |= metrics

    def learning_begins(self, generating_s: float) -> None:
        """Start the measurement of `add_overlap`. `generating_s` is the engines' busy time so far."""
        self._overlap_from = (time.perf_counter(), generating_s)

    def add_overlap(self, generating_s: float) -> None:
        """Add the share of the time since `learning_begins` in which the engines were busy."""
        began, before = self._overlap_from
        share = (generating_s - before) / (time.perf_counter() - began)
        self.metrics["overlap/generating_share"] = share

    def add_updates(
        self, updates: Sequence[Mapping[str, float]], learnable: Learnable, settings: Mapping[str, float]
    ) -> None:
        """Add the learner's metrics of its updates, and the controllers' settings for them."""
        self.metrics |= update_metrics(updates) | {"learning_rate": learnable.learning_rates[-1]}
        self.metrics |= {f"control/{key}": value for key, value in settings.items()}
        self.applied = [update["grad/applied"] > 0 for update in updates]

    def add_times(self) -> None:
        """Add seconds by phase, the step's total so far, and trained policy tokens per second."""
        phases = {name: value for name, value in self._phases.items() if name != "time/rollout_s"}
        total = time.perf_counter() - self._began
        self.metrics |= {"throughput/tokens_per_s": self._num_tokens / total, **phases, "time/step_s": total}

    def summary(self, version: int) -> dict[str, Json]:
        """What is committed with the rows: the metrics so far, and the policy version before the updates."""
        return {"metrics": dict(self.metrics), "policy_version": version}
