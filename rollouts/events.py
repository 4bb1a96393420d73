"""The events of a run, such as failures and recoveries: `events.jsonl`, one line each.

Written by the driver alone: an actor died, stalled or was replaced; a resume, a fallback to an earlier
checkpoint, a rewind, a skipped update, a setting that a controller changed and why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rollouts.files import Json, append_line

EVENTS: Final = "events.jsonl"
_WORDS: Final = {
    "actor_lost": "{reason}; starting a replacement",
    "actor_replaced": "{actor} was replaced after {seconds} s; its calls are repeated",
    "actor_stalled": "{actor} has not answered for {seconds} s",
    "actor_answers": "{actor} answers again, after {seconds} s",
    "checkpoint_damaged": "skipping a damaged checkpoint: {reason}",
    "rollouts_damaged": "damaged rollouts were set aside and will be sampled again: {reason}",
    "resumed": "resuming from step {step}: {groups_waiting} saved groups are waiting, {steps_to_train_again} "
    "later steps will be trained on again",
    "code_changed": "resuming with changed user code: {modules}",
    "groups_missing": "step {step}: {groups} group(s) were missing or too old and are sampled again",
    "groups_short": "step {step}: after {rounds} rounds only {kept} of {wanted} groups have rewards that "
    "differ; training on those",
    "judge_fooled": "scorer {scorer}: judge {judge} gave the canary {canary} a score of {score}, wanted "
    "{wanted}: its scores may not mean what you think",
    "replay_left_out": "step {step}: {groups} group(s) to replay were missing or damaged and are left out",
    "report_failed": "scorer {scorer}: its take_report cannot be used: {reason}",
    "reward_divergence": "step {step}: over {steps} steps the reward rises (t = {reward_trend}) while the "
    "held-out scorer {scorer} falls (t = {score_trend}): the policy may be exploiting the reward",
    "setting_noted": "{setting}: {note}",
    "setting_moved": "step {step}: {controller} changes {setting} from {before} to {after}: {reason}",
    "updates_skipped": "step {step}: {updates} update(s) skipped, loss or gradient was not finite",
}


def append_event(run_dir: Path, kind: str, **fields: Json) -> None:
    """Append `{"at": <UTC time>, "kind": <kind>, **fields}`.

    Raises:
        ValueError: a field is named `at` or `kind`, or contains NaN or an infinity.
    """
    for name in ("at", "kind"):
        if name in fields:
            raise ValueError(f"event {kind}: a field must not be named {name!r}")
    record = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "kind": kind, **fields}
    try:
        line = json.dumps(record, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise ValueError(f"event {kind} must have finite numbers: {error}") from error
    append_line(run_dir / EVENTS, line)


def describe_event(kind: str, fields: Mapping[str, Json]) -> str:
    """The event as a sentence for the terminal."""
    if kind in _WORDS:
        with suppress(KeyError):  # a user's scorer may give the kind other fields
            return _WORDS[kind].format(**fields)
    return f"{kind.replace('_', ' ')}: " + ", ".join(f"{name} {value}" for name, value in fields.items())
