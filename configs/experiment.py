"""Which runs are the same experiment: the settings that make one, their hash, and where two differ.

In: a `RunConfig`, or the settings that a run directory keeps of one. Out: dotted keys with values, or a hash.
Each field says itself whether another value makes another experiment (`configs.fields.Effect`). Called by
`cluster.run_directory` and by `lab`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache
from typing import Final, cast

from configs.entries import NAMED_ENTRIES, SINGLE_ENTRIES, complete
from configs.fields import EVALUATION, EXPERIMENT, Effect, Setting, options_of, settings_of
from configs.kinds.scorers import SCORERS
from configs.redact import redact
from configs.renamed import former_kind, new_key, new_metric
from configs.schema import RunConfig
from configs.sources import Provenance, Tree

DEFAULTS_VERSION: Final = 1
"""Raised when a default is changed: what was made with the old one is another experiment."""
_NONE: Final = "none"
"""Stands for the value of a key that is not there."""
_ORDERS: Final = ("token_advantage.order", "reward_shape.order", "scorers.order")
"""Keys that no config has: the names of entries in their order, where it changes results."""


def settings(config: RunConfig) -> dict[str, object]:
    """dotted key -> value of all of a config, without secrets."""
    content = redact(plain_tree(config))
    assert isinstance(content, dict), "redact keeps the shape of its argument"
    return dict(_leaves(content, ""))


def experiment(config: RunConfig) -> dict[str, object]:
    """dotted key -> value of what makes two runs the same experiment, without secrets."""
    return _counted(settings(config), EXPERIMENT) | _orders(config)


def config_hash(config: RunConfig, with_evaluation: bool = False) -> str:
    """sha256 (hex) of what makes two runs the same experiment; a renewed secret does not change it.

    `with_evaluation` also counts how it is evaluated, for results that are compared. What has its default is
    left out, so that a version with a new key or option resumes the runs of the last.
    """
    flat = settings(config)
    counted = _counted(flat, EXPERIMENT | EVALUATION if with_evaluation else EXPERIMENT)
    content = {key: value for key, value in counted.items() if _default(key, flat) != value}
    # Names in alphabetical order are left out: runs and results from before orders counted keep their hash.
    content |= {key: names for key, names in _orders(config).items() if names != sorted(names)}
    # Defaults are left out of the hash, so a changed default must change it in another way.
    content["defaults"] = DEFAULTS_VERSION
    # Sorted and without spaces: the order of keys in a file must not change the hash.
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def differences(known: Mapping[str, object], config: RunConfig) -> list[tuple[str, object, object]]:
    """(dotted key, its value in `known`, its value in `config`) where the two are other experiments.

    `known` is an `experiment`, perhaps of an earlier version: its keys may have other names by now, and a key
    that it lacks had its default.
    """
    # Values and not hashes: a hash cannot say which key differs, and one of an earlier version has old names.
    before, now = _counted(_with_new_names(known), EXPERIMENT), _as_json(experiment(config))
    found = []
    for key in sorted(before.keys() | now.keys()):
        # An earlier version stored no order; where entries were added or taken away, their own keys say so.
        if key in _ORDERS and not (key in before and key in now):
            continue
        was, asked = (each.get(key, _default(key, each)) for each in (before, now))
        if was != asked:
            found.append((key, before.get(key, _NONE), now.get(key, _NONE)))
    return found


def _orders(config: RunConfig) -> dict[str, list[str]]:
    """The keys of `_ORDERS` that have two names or more.

    Transforms and reward shapes are applied one after the other. The first scorer that reads an answer, or
    puts rows into classes, decides which answer or class a row has.
    """
    kinds = {name: SCORERS.get(str(entry["kind"])) for name, entry in config.scorers.items()}
    # Of a user's own scorer nothing is known, so it may do either.
    answering = {name for name, kind in kinds.items() if kind is None or kind.answers}
    classing = {name for name, kind in kinds.items() if kind is None or kind.partitions}
    rivals = (answering if len(answering) > 1 else set()) | (classing if len(classing) > 1 else set())
    names = (config.token_advantage, config.reward_shape, [name for name in kinds if name in rivals])
    return {key: list(each) for key, each in zip(_ORDERS, names, strict=True) if len(each) > 1}


def plain_tree(config: RunConfig) -> Tree:
    """The config as plain dicts and lists."""
    return {name: _as_lists(value) for name, value in asdict(config).items()}


def _as_lists(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _as_lists(item) for name, item in value.items()}
    return [_as_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _leaves(tree: Mapping[str, object], prefix: str) -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _as_json(tree: Mapping[str, object]) -> dict[str, object]:
    """As a file gives it back: tuples are lists."""
    return cast(Tree, json.loads(json.dumps(tree)))


def _with_new_names(known: Mapping[str, object]) -> dict[str, object]:
    """Settings of an earlier version under the names that they have now.

    Controllers and the reference's plateau name settings and metrics in their values.
    """
    renamed = {(new := new_key(key) or key): _renamed_value(new, value) for key, value in known.items()}
    for key in list(renamed):
        entry, _, option = key.rpartition(".")
        if former := former_kind(str(renamed.get(f"{entry}.kind", "")), option):
            renamed[f"{entry}.kind"] = former
    return renamed


def _renamed_value(key: str, value: object) -> object:
    if isinstance(value, str) and key.endswith(".setting"):
        return new_key(value) or value
    if isinstance(value, str) and key.endswith("metric"):
        return new_metric(value) or value
    return value


@cache
def _fields() -> dict[str, Setting]:
    return dict(settings_of(RunConfig))


@cache
def _usual() -> dict[str, object]:
    """The settings of a config in which nothing is given."""
    return _as_json(settings(complete(RunConfig(), Provenance())))


def _counted(flat: Mapping[str, object], effects: Effect) -> dict[str, object]:
    """Of all settings those whose other values have one of the effects."""
    return {key: value for key, value in flat.items() if _effect(key, flat) & effects}


def _effect(key: str, flat: Mapping[str, object]) -> Effect:
    if key in _fields():
        return _fields()[key].effect
    entry_key, option = _place(key)
    if not entry_key:
        return EXPERIMENT  # a key of another version, whose effect is unknown
    section = entry_key if entry_key in SINGLE_ENTRIES else entry_key.partition(".")[0]
    whole = _fields()[section].effect
    own = options_of(cls).get(option) if (cls := _owner(entry_key, option, flat)) else None
    return own.effect if own is not None and EXPERIMENT in whole else whole


def _default(key: str, flat: Mapping[str, object]) -> object:
    """The value that `key` has where `flat` lacks it, `_NONE` where it is then not there at all.

    An option that is a mapping has its default as a whole or not at all.
    """
    if key in _fields():
        return _usual().get(key, _NONE)
    entry_key, option = _place(key)
    if option == "kind" or not entry_key:
        return _usual().get(key, _NONE) if entry_key in SINGLE_ENTRIES else _NONE
    cls = _owner(entry_key, option, flat)
    if cls is None or option not in options_of(cls):
        return _NONE
    # Given in part, a mapping is not its default: a key that it lacks is absent, not the default one.
    usual = _as_json(dict(_leaves({option: _as_lists(getattr(cls(), option))}, f"{entry_key}.")))
    start = f"{entry_key}.{option}"
    given = {name: value for name, value in flat.items() if name == start or name.startswith(f"{start}.")}
    return usual.get(key, _NONE) if not given or _as_json(given) == usual else _NONE


def _place(key: str) -> tuple[str, str]:
    """(dotted key of the entry, name of its option) that `key` is in; empty where it is in none."""
    for entry_key in SINGLE_ENTRIES:
        if key.startswith(f"{entry_key}."):
            return entry_key, key.removeprefix(f"{entry_key}.").partition(".")[0]
    section, _, rest = key.partition(".")
    name, _, option = rest.partition(".")
    return (
        (f"{section}.{name}", option.partition(".")[0]) if section in NAMED_ENTRIES and option else ("", "")
    )


def _owner(entry_key: str, option: str, flat: Mapping[str, object]) -> type | None:
    """The dataclass that the option of an entry is in; None where the entry or its kind is not known."""
    usual = _usual() if entry_key in SINGLE_ENTRIES else {}
    name = str(flat.get(f"{entry_key}.kind", usual.get(f"{entry_key}.kind", "")))
    role = SINGLE_ENTRIES.get(entry_key) or NAMED_ENTRIES[entry_key.partition(".")[0]]
    kind = role.kind_of(name)
    if kind is None:
        return None
    return role.common if option in options_of(role.common) else kind.options
