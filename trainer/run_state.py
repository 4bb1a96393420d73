"""The state of a run besides weights and rows: controllers, reference schedule, answer counts, watches.

Owned by the loop and stored in checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from configs.bound import BoundRun
from configs.errors import nearest
from rollouts.files import Json
from trainer.controllers.reference import Reference
from trainer.controllers.setting_controllers import make_controllers, watched_metrics
from trainer.credit.history import AnswerHistory
from trainer.data.demonstrations import SHARE
from trainer.held_out import HeldOutWatch
from trainer.reports import Reports
from trainer.reward_watch import RewardWatch
from trainer.rollout.dynamic_sampling import submissions_per_step
from trainer.rollout.producer import SAMPLING_SETTINGS
from trainer.update_watch import UpdateWatch

_NOT_TRAINING: Final = (SHARE, *SAMPLING_SETTINGS)


class RunState:
    """The state of a run besides weights and rows. Call `restore` before the first step."""

    def __init__(self, run: BoundRun, reports: Reports) -> None:
        config = run.config
        self._config, self._reports = config, reports
        self._controllers = make_controllers(run)
        self._watched = watched_metrics(run)
        self.reference = Reference(config.reference)
        counted = (entry for entry in run.named["bonus"].values() if entry.kind.counts_tags)
        self.history = AnswerHistory(sorted({entry.options.tag for entry in counted}))
        windows = {name: entry.common.watch_steps for name, entry in run.scorers.items()}
        self.held_out = HeldOutWatch({name: n for name, n in windows.items() if n}, reports.event)
        self.rewards = RewardWatch(config.num_steps, reports.note, reports.scorer_log)
        self.updates = UpdateWatch(config.learner.max_nonfinite_updates, reports.event)

    def settings(self) -> dict[str, float]:
        """The controllers' values for the next step, by dotted config key."""
        controllers = self._controllers.values()
        return {key: value for each in controllers for key, value in each.settings().items()}

    def observe(self, metrics: Mapping[str, float], step: int) -> None:
        """Give the metrics of `step` (from 1) to the controllers; record what they change, and why."""
        self._note_unknown_metrics(metrics, step)
        for name, controller in self._controllers.items():
            before = dict(controller.settings())
            controller.observe(metrics)
            reasons = controller.reasons()
            for key, after in controller.settings().items():
                if after != before.get(key):
                    moved = {"setting": key, "before": before.get(key), "after": after}
                    reason = reasons.get(key, "")
                    self._reports.record("setting_moved", step=step, controller=name, **moved, reason=reason)

    def _note_unknown_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Note, after the first step, each watched metric that the step does not have: a possible typo."""
        for key, name in self._watched.items():
            if name not in metrics:
                close = nearest(name, metrics)
                message = f"step {step} has no metric {name!r}, which {key} names: it moves nothing"
                self._reports.note(f"{message} (the nearest is {close!r})" if close else message)
        # Only once: a metric may be missing in a later step for a good reason.
        self._watched = {}

    def saved(self, step: int) -> dict[str, Json]:
        """The state that the checkpoint after `step` stores. All sampling seeds derive from it."""
        return {
            "next_submission": step * submissions_per_step(self._config),
            "journal_from": step * submissions_per_step(self._config),
            "seed": self._config.seed,
            "nonfinite_in_a_row": self.updates.in_a_row,
            "unrewarded_in_a_row": self.rewards.in_a_row,
            "controllers": {name: each.state() for name, each in self._controllers.items()},
            "reference": self.reference.state(),
            "answers": self.history.state(),
            "held_out": self.held_out.state(),
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        """Continue from the state of a checkpoint; an empty one resets to the start of the run."""
        self.updates.in_a_row = int(state.get("nonfinite_in_a_row", 0))  # type: ignore[arg-type]
        self.rewards.in_a_row = int(state.get("unrewarded_in_a_row", 0))  # type: ignore[arg-type]
        known: Mapping[str, Mapping[str, Json]] = state.get("controllers", {})  # type: ignore[assignment]
        for name, controller in self._controllers.items():
            controller.restore(known.get(name, {}))
        self.reference.restore(state.get("reference", {}))  # type: ignore[arg-type]
        self.history.restore(state.get("answers", {}))  # type: ignore[arg-type]
        self.held_out.restore(state.get("held_out", {}))  # type: ignore[arg-type]


def training_settings(settings: Mapping[str, float]) -> dict[str, float]:
    """The settings that change the objective or the credit, without those that change what is sampled."""
    return {key: value for key, value in settings.items() if key not in _NOT_TRAINING}
