"""Losses of a base that a later choice of refiner leaves without rows.

In: the merged entries and where they come from. Out: the entries without those losses, and a line about each.
Called by `configs.load` once all files and overrides are merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from configs.kinds.refiners import NONE, REFINERS
from configs.origins import ADDED
from configs.sources import Provenance, Tree, has_key


def without_unmade_losses(merged: Tree, provenance: Provenance) -> tuple[Tree, tuple[str, ...]]:
    """`merged` without the losses whose refiner a later source has replaced, and what was left out.

    As with an entry whose `kind` changes, what belongs to the old kind goes with it, so that one override
    drops the critiques of a preset. A loss that the same source or a later one sets stays, and is refused.
    """
    kind = _kind(merged, "refiner")
    # A user's own refiner or rollouter may add rows of any origin.
    if kind not in REFINERS or ":" in str(_kind(merged, "rollouter")):
        return merged, ()
    changed_by, losses = _last_change(provenance), cast(Tree, merged["loss"])
    left_out = []
    for origin in ADDED:
        is_made = kind != NONE and REFINERS[kind].adds == origin
        if is_made or origin not in losses or changed_by <= _last_set(provenance, f"loss.{origin}"):
            continue
        where, by = provenance.of(f"loss.{origin}"), provenance.sources[changed_by].name
        left_out.append(f"loss.{origin} of {where} is left out: refiner.kind {kind} ({by}) adds no such rows")
        losses = {name: entry for name, entry in losses.items() if name != origin}
    return {**merged, "loss": losses}, tuple(left_out)


def _kind(tree: Mapping[str, object], key: str) -> str:
    entry = tree.get(key)
    return str(entry.get("kind", "")) if isinstance(entry, Mapping) else ""


def _last_change(provenance: Provenance) -> int:
    """The number of the source that gave the refiner its kind; -1 if none changed it."""
    changed_by, before = -1, NONE
    for number, source in enumerate(provenance.sources):
        kind = _kind(source.tree, "refiner") or before
        if kind != before:
            changed_by, before = number, kind
    return changed_by


def _last_set(provenance: Provenance, key: str) -> int:
    return max(
        (number for number, source in enumerate(provenance.sources) if has_key(source.tree, key)), default=-1
    )
