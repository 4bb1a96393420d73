"""Checkpoints: one folder per saved step, which appears by one rename and is verified when it is read.

    runs/<name>/checkpoints/step-000010/learner-00000-of-00001.safetensors   what the learner ranks wrote
    runs/<name>/checkpoints/step-000010/manifest.json                        step and the caller's state
    runs/<name>/checkpoints/step-000010/SHA256SUMS

To save: `stage_checkpoint`, the learner writes into that folder, `finish_checkpoint`, `prune_checkpoints`.
To resume: `newest_checkpoint`. Called by the driver. The content of the learner's files is not interpreted.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rollouts.files import (
    Json,
    encode_json,
    fresh_dir,
    fsync_dir,
    fsync_file,
    make_dir_synced,
    move_dir_synced,
    rename_dir_synced,
    write_bytes_synced,
)
from rollouts.store import STAGING
from rollouts.sums import DamagedError, check_sums, digest_bytes, digest_file, read_summed, write_sums

CHECKPOINTS: Final = "checkpoints"
ABANDONED: Final = "abandoned"
MANIFEST: Final = "manifest.json"
_NAME: Final = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a checkpoint has besides the learner's files.

    `config_hash` is the hash of the run's config; `state` belongs to the caller (data cursor, journal
    position, controllers) and must survive a round trip through JSON.
    """

    step: int
    config_hash: str
    state: Mapping[str, Json]


def checkpoint_dir(run_dir: Path, step: int) -> Path:
    """The folder of the checkpoint of `step`, which need not exist."""
    if step < 0:
        raise ValueError(f"step must be 0 or more, got {step}")
    return run_dir / CHECKPOINTS / f"step-{step:06d}"


def checkpoint_steps(run_dir: Path) -> list[int]:
    """The steps that have a checkpoint, intact or damaged, ascending."""
    parent = run_dir / CHECKPOINTS
    if not parent.is_dir():
        return []
    matches = (_NAME.fullmatch(name) for name in os.listdir(parent))
    return sorted(int(match.group(1)) for match in matches if match)


def stage_checkpoint(run_dir: Path, step: int) -> Path:
    """Create an empty folder for the files of the checkpoint of `step`; remove leftovers of earlier ones."""
    final = checkpoint_dir(run_dir, step)
    make_dir_synced(run_dir / STAGING)
    _clear_staging(run_dir)
    staging = _staged(run_dir, final)
    fresh_dir(staging)
    return staging


def _staged(run_dir: Path, final: Path) -> Path:
    return run_dir / STAGING / f"{CHECKPOINTS}-{final.name}"


def _clear_staging(run_dir: Path) -> None:
    for leftover in sorted((run_dir / STAGING).glob(f"{CHECKPOINTS}-*")):
        shutil.rmtree(leftover)


def finish_checkpoint(run_dir: Path, staging: Path, manifest: Manifest, sums: Mapping[str, str]) -> Path:
    """Make the files in `staging` the checkpoint of `manifest.step`; returns its folder.

    `sums` maps each file's name to the SHA-256 that its writer computed from the bytes in memory: every file
    is read back from the disk and compared. If the step already has an intact checkpoint, that one is kept
    and the staged one removed; a damaged one is moved to abandoned/checkpoints/.

    Raises:
        DamagedError: a staged file is missing, unknown, or has another digest.
        ValueError: the manifest cannot be encoded as JSON.
        OSError: a write failed. After any error there is no new checkpoint, and the staged folder is removed.
    """
    final = checkpoint_dir(run_dir, manifest.step)
    try:
        if final.exists() and _is_whole(run_dir, manifest.step):
            fsync_dir(final.parent)  # an earlier call may have failed between its rename and its fsync
            shutil.rmtree(staging)
            return final
        # Sealed before a damaged checkpoint of the same step is moved: if sealing fails, nothing has changed.
        _seal(staging, manifest, sums)
        make_dir_synced(final.parent)
        if final.exists():
            _abandon(run_dir, final)
        rename_dir_synced(staging, final)
    except (OSError, ValueError):
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return final


def _is_whole(run_dir: Path, step: int) -> bool:
    try:
        read_checkpoint(run_dir, step)
    except DamagedError:
        return False
    return True


def _seal(staging: Path, manifest: Manifest, sums: Mapping[str, str]) -> None:
    """Check the learner's files against `sums`, and write the manifest and SHA256SUMS durably."""
    sizes: dict[str, Json] = {}
    for name, digest in sums.items():
        if not (staging / name).is_file():
            raise DamagedError(f"{staging / name}: must be a file that the learner wrote, got none")
        sizes[name] = (staging / name).stat().st_size
        fsync_file(staging / name)  # drops the page cache, so that the digest is that of the disk
        on_disk = digest_file(staging / name)
        if on_disk != digest:
            raise DamagedError(f"{staging / name}: must have SHA-256 {digest}, got {on_disk} after writing")
    record: dict[str, Json] = {
        "step": manifest.step,
        "config_hash": manifest.config_hash,
        "files": {name: {"bytes": sizes[name], "sha256": sums[name]} for name in sorted(sums)},
        "state": manifest.state,
    }
    content = encode_json(record, MANIFEST)
    write_bytes_synced(staging / MANIFEST, content)
    write_sums(staging, {**sums, MANIFEST: digest_bytes(content)})
    fsync_dir(staging)


def _abandon(run_dir: Path, folder: Path) -> None:
    parent = run_dir / ABANDONED / CHECKPOINTS
    make_dir_synced(parent.parent)
    make_dir_synced(parent)
    move_dir_synced(folder, parent)


def read_checkpoint(run_dir: Path, step: int) -> Manifest:
    """The manifest of the checkpoint of `step`, after checking every byte of its folder.

    Raises:
        ValueError: there is no such checkpoint.
        DamagedError: a file is missing, unknown or not what was written.
    """
    folder = checkpoint_dir(run_dir, step)
    try:
        check_sums(folder)
        content = read_summed(folder / MANIFEST)
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: no such checkpoint") from error
    try:
        record = json.loads(content)
        manifest = Manifest(
            step=int(record["step"]), config_hash=str(record["config_hash"]), state=dict(record["state"])
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{folder / MANIFEST}: must have step, config_hash and state: {error}") from error
    if manifest.step != step:
        raise DamagedError(f"{folder / MANIFEST}: step must be {step}, got {manifest.step}")
    return manifest


def newest_checkpoint(run_dir: Path) -> tuple[Manifest | None, list[str]]:
    """The newest intact checkpoint (None if there are no checkpoints), and why each newer one was skipped.

    Raises:
        ValueError: there are checkpoints, all of them damaged.
    """
    messages: list[str] = []
    # A damaged checkpoint costs the steps since the one before it, not the run.
    for step in reversed(checkpoint_steps(run_dir)):
        try:
            return read_checkpoint(run_dir, step), messages
        except DamagedError as error:
            messages.append(str(error))
    # Starting over would abandon every step of the run. That is for the user to decide.
    if messages:
        raise ValueError(
            f"{run_dir / CHECKPOINTS} must have an intact checkpoint, got {len(messages)} damaged: "
            + "; ".join(messages)
            + ". Restore one from a copy, or choose another name (name=...)"
        )
    return None, messages


def prune_checkpoints(run_dir: Path, keep: int) -> list[int]:
    """Remove every checkpoint older than the newest `keep` intact ones; returns the removed steps, ascending.

    The checkpoints to keep are read and verified first. A folder is renamed out of checkpoints/, durably,
    before its files are deleted, so that no reader sees an incomplete one.
    """
    if keep < 1:
        raise ValueError(f"keep must be 1 or more, got {keep}")
    steps, num_whole = checkpoint_steps(run_dir), 0
    # Counting intact ones: with a damaged newest checkpoint an older one must stay to resume from.
    while len(steps) > keep - num_whole and num_whole < keep:
        num_whole += _is_whole(run_dir, steps.pop())
    if num_whole < keep or not steps:
        return []
    make_dir_synced(run_dir / STAGING)
    _clear_staging(run_dir)
    for step in steps:
        folder = checkpoint_dir(run_dir, step)
        os.replace(folder, _staged(run_dir, folder))
    fsync_dir(run_dir / CHECKPOINTS)
    _clear_staging(run_dir)
    return steps
