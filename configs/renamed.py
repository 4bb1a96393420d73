"""Renamed config keys. Old keys are an error that names the new one; runs begun with them can be resumed."""

from __future__ import annotations

from typing import Final

RENAMED: Final[tuple[tuple[str, str], ...]] = (
    ("shape", "token_advantage"),
    ("loss.*.old", "loss.*.ratio_to"),
    ("rollout.degenerate", "rollout.zero_variance_groups"),
    ("cluster.scorer_replicas", "scorers.<name>.replicas"),
)
"""(old, new) dotted keys, and all that is under them; * is any name, the same in both."""


def new_key(key: str) -> str:
    """The new name of the dotted `key`; "" if it was not renamed."""
    parts = key.split(".")
    for old, new in RENAMED:
        pattern = old.split(".")
        head, rest = parts[: len(pattern)], parts[len(pattern) :]
        if len(head) == len(pattern) and all(
            wanted in ("*", part) for wanted, part in zip(pattern, head, strict=True)
        ):
            names = iter(part for wanted, part in zip(pattern, head, strict=True) if wanted == "*")
            return ".".join([*(next(names) if part == "*" else part for part in new.split(".")), *rest])
    return ""
