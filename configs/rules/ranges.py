"""What single options and their own entries say of themselves: `configs.fields.Rule` and `Options`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Final

from configs.bound import BoundRun
from configs.errors import Broken
from configs.fields import Rule, options_of, settings_of
from configs.schema import RunConfig

_FINITE: Final = Rule(math.isfinite, "must be finite")


def ruled_values(run: BoundRun) -> Iterator[tuple[str, object, Rule]]:
    """(dotted key, value, rule) of every setting and option that has a rule of its own."""
    for key, setting in settings_of(RunConfig):
        if setting.rule is not None:
            yield key, attrgetter(key)(run.config), setting.rule
    for entry in run.entries():
        for owner in (entry.common, entry.options):
            for name, own in options_of(type(owner)).items():
                if own is not None and own.rule is not None:
                    yield f"{entry.key}.{name}", getattr(owner, name), own.rule


def broken_ranges(run: BoundRun, values: Mapping[str, object]) -> Iterator[tuple[str, Rule]]:
    """The rules of single values that are broken; `values` are all of the config by dotted key."""
    for key, value, rule in ruled_values(run):
        if not rule.holds(value):
            yield key, rule
    for key, value in values.items():
        items = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(item, float) and not math.isfinite(item) for item in items):
            yield key, _FINITE


def broken_options(run: BoundRun) -> Iterator[Broken]:
    """What entries find wrong in their options, by themselves and beside the rest of the run."""
    for entry in run.entries():
        for name, rule in (*entry.common.check(), *entry.options.check()):
            yield f"{entry.key}.{name}", rule
        yield from entry.options.check_run(entry.key, run)
