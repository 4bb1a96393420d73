"""What controllers may move, between which values, and metrics they watch. Called by `configs.rules`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Final

from configs.bound import MOVABLE, BoundEntry, BoundRun
from configs.errors import Broken
from configs.fields import Rule, options_of, settings_of
from configs.renamed import new_key, new_metric
from configs.schema import RunConfig

MOVABLE_ENTRIES: Final = ("loss", "token_advantage", "reward_shape", "bonus", "prompt_weight")
"""Sections of entries whose numbers (floats, no counts) a controller may move."""


def _controllers(run: BoundRun) -> Iterator[Broken]:
    taken: dict[str, str] = {}
    for entry in run.controllers.values():
        named = entry.options.SETTING
        for setting, bounds in entry.options.moves().items():
            where = f"{entry.key}.{named}" if named else entry.key
            got = "" if named else f", got {setting!r}"
            if not _is_movable(run, setting):
                if new := new_key(setting):
                    yield where, f"was renamed to {new}{got}"
                    continue
                places = ", ".join(f"{section}.<name>" for section in MOVABLE_ENTRIES)
                yield where, f"must be {', '.join(MOVABLE)} or a number under one of {places}{got}"
            else:
                yield from _out_of_range(run, entry, setting, bounds)
            # Two controllers of one setting would overwrite each other, in the order of the config.
            if setting in taken:
                yield where, f"must move another setting than {taken[setting]}{got}"
            taken[setting] = entry.key


def _metrics(run: BoundRun) -> Iterator[Broken]:
    """Metrics that are named by a name which they no longer have."""
    watched = {"reference.plateau_metric": run.config.reference.plateau_metric}
    for entry in run.controllers.values():
        if not any(entry.options.check()):  # otherwise what it watches may not be readable
            watched |= {f"{entry.key}.{option}": metric for option, metric in entry.options.watches().items()}
    for key, metric in watched.items():
        if new := new_metric(metric):
            yield key, f"was renamed to {new}"


def _is_movable(run: BoundRun, setting: str) -> bool:
    return setting in MOVABLE or _movable_option(run, setting) is not None


def _movable_option(run: BoundRun, setting: str) -> tuple[Any, str] | None:
    """(options, name) of a float among the own options of an entry, or None."""
    section, _, rest = setting.partition(".")
    name, _, option = rest.partition(".")
    entry = run.named[section].get(name) if section in MOVABLE_ENTRIES else None
    if entry is None or option not in {item.name for item in fields(entry.options)}:
        return None
    return (entry.options, option) if isinstance(getattr(entry.options, option), float) else None


def _out_of_range(
    run: BoundRun, controller: BoundEntry[Any], setting: str, bounds: tuple[float, float]
) -> Iterator[Broken]:
    """Bounds of a controller that would allow a value which the setting's own rule forbids."""
    rule = _rule_of(run, setting)
    wrong = [bound for bound in bounds if rule is not None and not rule.holds(bound)]
    if rule is None or not wrong:
        return
    options = controller.options
    # The option is named where one is to blame: the user wrote `low`, not a pair of bounds.
    blamed = [name for name in options.BOUNDS if not rule.holds(getattr(options, name))]
    for name in blamed:
        yield f"{controller.key}.{name}", f"{rule.words}, as it is a value of {setting}"
    if not blamed:
        yield controller.key, f"must not move {setting} to {wrong[0]:g}: it {rule.words}"


def _rule_of(run: BoundRun, setting: str) -> Rule | None:
    option = _movable_option(run, setting)
    own = options_of(type(option[0]))[option[1]] if option else dict(settings_of(RunConfig))[setting]
    return own.rule if own is not None else None


CONTROLLER_RULES = (_controllers, _metrics)
