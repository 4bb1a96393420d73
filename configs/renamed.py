"""Renamed config keys and metrics: an old name is an error with the new one; runs with old names resume."""

from __future__ import annotations

from typing import Final

RENAMED: Final[tuple[tuple[str, str], ...]] = (
    ("shape", "token_advantage"),
    ("loss.*.old", "loss.*.ratio_to"),
    ("rollout.degenerate", "rollout.zero_variance_groups"),
    ("cluster.scorer_replicas", "scorers.<name>.replicas"),
)
"""(old, new) dotted keys, and all that is under them; * is any name, the same in both."""
RENAMED_METRICS: Final[tuple[tuple[str, str], ...]] = (
    ("sampling/degenerate_share", "sampling/zero_variance_share"),
    ("clip/shape.", "clip/token_advantage."),
    ("prepare/shape.", "prepare/token_advantage."),
)
"""(old, new) metrics; one that ends in a dot stands for all that begin with it."""
FORMER_KINDS: Final[dict[str, tuple[str, frozenset[str]]]] = {
    "stare": ("entropy_quadrants", frozenset({"strength", "fraction"})),
}
"""Kind -> the kind that had this name before, and options that only that one has."""


def former_kind(kind: str, option: str) -> str:
    """The kind that was called `kind` when that had an `option` which it has no more; "" if none was."""
    new, options = FORMER_KINDS.get(kind, ("", frozenset()))
    return new if option in options else ""


def new_key(key: str) -> str:
    """The new name of the dotted `key`; "" if it was not renamed."""
    parts = key.split(".")
    for old, new in RENAMED:
        pattern = old.split(".")
        head, rest = parts[: len(pattern)], parts[len(pattern) :]
        if len(head) == len(pattern) and all(
            wanted in ("*", part) for wanted, part in zip(pattern, head, strict=True)
        ):
            # The parts that * stood for go into the new name, in their order.
            names = iter(part for wanted, part in zip(pattern, head, strict=True) if wanted == "*")
            return ".".join([*(next(names) if part == "*" else part for part in new.split(".")), *rest])
    return ""


def new_metric(metric: str) -> str:
    """The new name of `metric`; "" if it was not renamed."""
    for old, new in RENAMED_METRICS:
        if metric == old or (old.endswith(".") and metric.startswith(old)):
            return new + metric.removeprefix(old)
    return ""
