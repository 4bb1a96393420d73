"""What went wrong in a run and how it was mended: `events.jsonl`, one line each.

Written by the driver alone (an actor died, stalled or was started again; a resume, a fallback to an earlier
checkpoint, a rewind, a skipped update, a setting that a controller moved and why), read to find out what
a run went through.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rollouts.files import Json, append_line

EVENTS: Final = "events.jsonl"
_WORDS: Final = {
    "actor_lost": "{reason}; another is started",
    "actor_replaced": "{actor} was replaced after {seconds} s and has its work again",
    "actor_stalled": "{actor} has not answered for {seconds} s",
    "actor_answers": "{actor} answers again, after {seconds} s",
    "checkpoint_damaged": "a damaged checkpoint is passed over: {reason}",
    "rollouts_damaged": "damaged rollouts are set aside and made again: {reason}",
    "resumed": "resumes from step {step}: {groups_waiting} saved groups wait, {steps_to_train_again} steps "
    "after it are trained on again",
    "code_changed": "the run continues with other content of the user's own code: {modules}",
    "groups_missing": "step {step}: {groups} group(s) were not there or too old and are sampled again",
    "groups_short": "step {step}: after {rounds} rounds {kept} of {wanted} groups have rewards that differ, "
    "and it learns from those",
    "replay_left_out": "step {step}: {groups} group(s) to replay are gone or damaged and were left out",
    "setting_moved": "step {step}: {controller} moves {setting} from {before} to {after}: {reason}",
    "updates_skipped": "step {step}: {updates} update(s) skipped, loss or gradient was not finite",
}


def append_event(run_dir: Path, kind: str, **fields: Json) -> None:
    """Append `{"at": <UTC time>, "kind": <kind>, **fields}`.

    Raises:
        ValueError: a field is named `at` or `kind`, or holds NaN or an infinity.
    """
    for name in ("at", "kind"):
        if name in fields:
            raise ValueError(f"event {kind}: a field must not be named {name!r}")
    record = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "kind": kind, **fields}
    try:
        line = json.dumps(record, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise ValueError(f"event {kind} must hold finite numbers: {error}") from error
    append_line(run_dir / EVENTS, line)


def describe_event(kind: str, fields: Mapping[str, Json]) -> str:
    """An event in a sentence."""
    if kind in _WORDS:
        return _WORDS[kind].format(**fields)
    return f"{kind.replace('_', ' ')}: " + ", ".join(f"{name} {value}" for name, value in fields.items())
