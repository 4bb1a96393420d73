"""The checkpoints of a run: when one is due, writing it, finding the newest. Used by the loop."""

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
    """Checkpoints and the metrics file of a run directory.

    `last` is the step of the newest valid checkpoint. `attempt` counts the drivers that have worked on the
    run, from 1.
    """

    def __init__(
        self, run_dir: Path, config: RunConfig, experiment_hash: str, attempt: int, event: Event
    ) -> None:
        self._run_dir, self._config, self._hash = run_dir, config, experiment_hash
        self._event = event
        self.attempt = attempt
        self.last = 0

    def due(self, step: int) -> bool:
        """Whether to write a checkpoint after `step`: every `checkpoint.every` steps and after the last."""
        every = self._config.checkpoint.every
        return (every > 0 and step % every == 0) or step == self._config.num_steps

    async def newest(self) -> Manifest | None:
        """The newest checkpoint with valid checksums, or None. Damaged ones are reported and skipped.

        Raises:
            ValueError: all checkpoints are damaged, or it belongs to another experiment.
        """
        manifest, damaged = await asyncio.to_thread(newest_checkpoint, self._run_dir)
        for message in damaged:
            self._event("checkpoint_damaged", reason=message)
        # Folders may be copied by hand from another run.
        if manifest is not None and manifest.config_hash != self._hash:
            raise ValueError(
                f"{checkpoint_dir(self._run_dir, manifest.step)}: must be of experiment {self._hash[:12]}, "
                f"got {manifest.config_hash[:12]}"
            )
        return manifest

    def folder(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return checkpoint_dir(self._run_dir, step)

    def stage(self, step: int) -> Path:
        """An empty folder for the learner to write into."""
        return stage_checkpoint(self._run_dir, step)

    async def finish(
        self, step: int, staging: Path, sums: Mapping[str, str], state: Mapping[str, Json]
    ) -> None:
        """Verify the files in `staging`, make them the newest checkpoint, then delete old checkpoints.

        `sums` are the learner's SHA-256 by file name; `state` is the run's own state, as JSON.

        Raises:
            DamagedError: a file on disk differs from what the learner wrote.
            OSError: the disk is full or broken; earlier checkpoints are kept.
        """
        manifest = Manifest(step=step, config_hash=self._hash, state=state)
        # In threads: hashing gigabytes would block the event loop and with it all groups in flight.
        await asyncio.to_thread(finish_checkpoint, self._run_dir, staging, manifest, sums)
        await asyncio.to_thread(prune_checkpoints, self._run_dir, self._config.checkpoint.keep)
        self.last = step

    def rewound(self, step: int) -> None:
        """The run continues from `step`: remove later steps from the metrics file."""
        if (self._run_dir / METRICS).exists():
            for damaged in rebuild_metrics(self._run_dir, step):
                self._event("step_damaged", step=damaged, reason="its metrics are left out of metrics.jsonl")
        self.last = step

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the step's line to metrics.jsonl."""
        append_metrics(self._run_dir, step, metrics)
