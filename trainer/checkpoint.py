"""The checkpoints of a run as its loop sees them: when one is due, writing, finding the newest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from configs.schema import RunConfig
from rollouts.checkpoints import (
    Manifest,
    checkpoint_dir,
    finish_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    stage_checkpoint,
)
from rollouts.files import Json
from rollouts.store import METRICS, append_metrics, rebuild_metrics

Event = Callable[..., None]


class Checkpoints:
    """Checkpoints and the metrics file of a run directory; `last` is the step of the newest whole checkpoint.

    `attempt` numbers the drivers that have worked on the run, from 1.
    """

    def __init__(
        self, run_dir: Path, config: RunConfig, experiment_hash: str, attempt: int, event: Event
    ) -> None:
        self._run_dir, self._config, self._hash = run_dir, config, experiment_hash
        self._event = event
        self.attempt = attempt
        self.last = 0

    def due(self, step: int) -> bool:
        """Whether a checkpoint is wanted after `step`: every `checkpoint.every` steps and after the last."""
        every = self._config.checkpoint.every
        return (every > 0 and step % every == 0) or step == self._config.num_steps

    async def newest(self) -> Manifest | None:
        """The newest whole checkpoint, verified; damaged ones are passed over and told of.

        Raises:
            ValueError: there are checkpoints and none is whole, or it is of another experiment.
        """
        manifest, damaged = await asyncio.to_thread(newest_checkpoint, self._run_dir)
        for message in damaged:
            self._event("checkpoint_damaged", reason=message)
        if manifest is not None and manifest.config_hash != self._hash:
            raise ValueError(
                f"{checkpoint_dir(self._run_dir, manifest.step)}: must be of experiment {self._hash[:12]}, "
                f"got {manifest.config_hash[:12]}"
            )
        return manifest

    def folder(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return checkpoint_dir(self._run_dir, step)

    def stage(self, step: int) -> Path:
        """An empty folder for the learner to write into."""
        return stage_checkpoint(self._run_dir, step)

    async def finish(
        self, step: int, staging: Path, sums: Mapping[str, str], state: Mapping[str, Json]
    ) -> None:
        """Verify what the learner wrote, make it the newest checkpoint, then remove the superfluous ones.

        Raises:
            DamagedError: a file on disk is not what the learner wrote.
            OSError: the disk is full or broken; the checkpoints before stay as they are.
        """
        manifest = Manifest(step=step, config_hash=self._hash, state=state)
        await asyncio.to_thread(finish_checkpoint, self._run_dir, staging, manifest, sums)
        await asyncio.to_thread(prune_checkpoints, self._run_dir, self._config.checkpoint.keep)
        self.last = step

    def rewound(self, step: int) -> None:
        """The run goes on from `step`: the metrics file says no more than the steps up to it."""
        if (self._run_dir / METRICS).exists():
            for damaged in rebuild_metrics(self._run_dir, step):
                self._event("step_damaged", step=damaged, reason="its metrics are left out of metrics.jsonl")
        self.last = step

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the step's line to metrics.jsonl."""
        append_metrics(self._run_dir, step, metrics)
