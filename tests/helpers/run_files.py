"""Small run directories made by hand: committed steps, evaluations, a journal and checkpoints."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from rollout_rows import learner_columns, make_batch

from actors.buffer import _join
from rollouts.checkpoints import Manifest, finish_checkpoint, stage_checkpoint
from rollouts.journal import Journal
from rollouts.store import commit_eval, commit_step
from rollouts.sums import digest_bytes

GROUPS_PER_STEP = 2


def indexes_of(step: int) -> range:
    """The submissions that step `step`, counted from 1, trains on."""
    return range((step - 1) * GROUPS_PER_STEP, step * GROUPS_PER_STEP)


def step_table(step: int) -> pa.Table:
    """The rows of a step, its groups in order of submission."""
    rows = pa.concat_batches([make_batch(index) for index in indexes_of(step)])
    return _join(rows, learner_columns(rows), step)


def save_step(run_dir: Path, step: int) -> None:
    commit_step(run_dir, step, step_table(step), {"metrics": {"reward/mean": float(step)}})


def save_eval(run_dir: Path, step: int) -> None:
    commit_eval(run_dir, step, pa.Table.from_batches([make_batch(1)]), {"metrics": {}})


def write_state(staging: Path, step: int) -> dict[str, str]:
    """What a learner of two ranks writes, and the digests it gives for it."""
    contents = {f"learner-0000{rank}-of-00002.safetensors": bytes([step, rank]) * 700 for rank in range(2)}
    for name, content in contents.items():
        (staging / name).write_bytes(content)
    return {name: digest_bytes(content) for name, content in contents.items()}


def manifest_of(step: int) -> Manifest:
    return Manifest(step=step, config_hash="c0ffee", state={"cursor": step * GROUPS_PER_STEP, "beta": 0.5})


def save_checkpoint(run_dir: Path, step: int) -> Path:
    staging = stage_checkpoint(run_dir, step)
    return finish_checkpoint(run_dir, staging, manifest_of(step), write_state(staging, step))


def make_run(run_dir: Path) -> Journal:
    """Steps 1 to 4, evaluations 0, 2 and 4, checkpoints 2 and 4, and step 5's groups in the journal."""
    run_dir.mkdir(exist_ok=True)
    journal = Journal(run_dir / "journal")
    for step in (1, 2, 3, 4):
        save_step(run_dir, step)
    for step in (0, 2, 4):
        save_eval(run_dir, step)
    for step in (2, 4):
        save_checkpoint(run_dir, step)
    for index in indexes_of(5):
        journal.append(index, make_batch(index))
    return journal


def damage(path: Path, position: int = 40) -> None:
    """Turn one bit of a file over."""
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 4
    path.write_bytes(content)
