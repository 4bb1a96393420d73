"""Frozen models: that the models which options name are there and have the right task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from configs.bound import BoundEntry, BoundRun
from configs.errors import Broken, nearest
from configs.kinds.models import RESERVED, ModelOptions, example
from configs.kinds.scorers import ScorerCommon


def _names(run: BoundRun) -> Iterator[Broken]:
    for name in run.models:
        if name in RESERVED:
            yield f"models.{name}", "must have another name: it stands for the model that is trained"


def _used(run: BoundRun) -> Iterator[Broken]:
    """Every model that an option names is under `models`, with a task that the option can use."""
    for entry in run.entries():
        tasks = entry.options.model_tasks()
        for option, name in entry.options.model_names().items():
            key, allowed = f"{entry.key}.{option}", tasks.get(option, ())
            if not name:  # the option says itself that it must be given
                continue
            # Its weights change in each step, so a score of it would mean something else in each.
            if name in RESERVED:
                yield key, "must name a frozen model under models: the policy itself cannot be used here"
            elif name not in run.models:
                known = ", ".join(run.models) or "none"
                close = nearest(name, run.models)
                hint = f" (did you mean {close}?)" if close else ""
                how = f", such as {example(allowed[0], name)}" if allowed and not run.models else ""
                yield key, f"must name a model under models (there: {known}){hint}{how}"
            elif allowed and run.models[name].task not in allowed:
                has = run.models[name].task
                yield key, f"must name a model with task {' or '.join(allowed)}; models.{name} has {has}"
            else:
                yield from _key_of(entry, key, run.models[name])


def _key_of(entry: BoundEntry[Any], key: str, model: ModelOptions) -> Iterator[Broken]:
    """A scorer has only the variables of the driver that are its secrets."""
    if isinstance(entry.common, ScorerCommon) and model.api_key not in ("", *entry.common.secrets):
        had = ", ".join(entry.common.secrets) or "none"
        yield key, f"must name a model whose api_key ({model.api_key}) is among {entry.key}.secrets ({had})"


MODEL_RULES = (_names, _used)
