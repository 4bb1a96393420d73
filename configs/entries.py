"""Entries with a `kind`: scorers, losses, the advantage, the datasets, ..., each with its own options.

In: plain dicts out of a config. Out: filled dicts, or the typed options that the code behind a kind is called
with. Called by `configs.load` for merging and filling, and by `configs.bound`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import cache
from operator import attrgetter
from typing import Any, cast, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.errors import Problem, nearest, raise_if_any
from configs.kinds.advantages import ADVANTAGES
from configs.kinds.base import Common, Kind, Options, OwnModelOptions, OwnOptions, find_kind
from configs.kinds.bonuses import BONUSES
from configs.kinds.controllers import CONTROLLERS, OwnControllerOptions
from configs.kinds.datasets import DATASETS
from configs.kinds.demonstrations import DEMONSTRATIONS
from configs.kinds.losses import LOSSES, LossCommon
from configs.kinds.models import ModelOptions
from configs.kinds.prompt_weights import PROMPT_WEIGHTS
from configs.kinds.refiners import REFINERS, OwnRefinerOptions
from configs.kinds.reward_shapes import REWARD_SHAPES
from configs.kinds.rollouters import ROLLOUTERS
from configs.kinds.scorers import SCORERS, ScorerCommon
from configs.kinds.token_advantages import TOKEN_ADVANTAGES
from configs.renamed import former_kind
from configs.schema import RunConfig
from configs.sources import Provenance, Tree

ASSIGN_ERRORS = (OmegaConfBaseException, ValueError, TypeError, OverflowError)


@dataclass
class NoCommon(Options):
    """The common keys of entries without a kind: none."""


@dataclass(frozen=True, slots=True)
class Role:
    """What an entry may say: the kinds of its table and the keys that every kind takes."""

    table: Mapping[str, Kind]
    common: type[Common] | type[NoCommon] = Common
    own: type[Options] = OwnOptions
    """The options of a user's own kind."""
    only: Kind | None = None
    """Entries without a key `kind` are all of this one; then `table` is empty."""

    def kind_of(self, name: object) -> Kind | None:
        """The kind that an entry names with the key `kind`; None if there is none of that name."""
        if self.only is not None:
            return self.only
        known = isinstance(name, str) and (name in self.table or ":" in name)
        return find_kind(self.table, str(name), self.own) if known else None


NAMED_ENTRIES: dict[str, Role] = {
    "scorers": Role(SCORERS, ScorerCommon, own=OwnModelOptions),
    "loss": Role(LOSSES, LossCommon),
    "token_advantage": Role(TOKEN_ADVANTAGES),
    "reward_shape": Role(REWARD_SHAPES),
    "bonus": Role(BONUSES),
    "prompt_weight": Role(PROMPT_WEIGHTS),
    "controllers": Role(CONTROLLERS, own=OwnControllerOptions),
    "models": Role({}, NoCommon, only=Kind(ModelOptions, "")),
}
"""Sections that map a name to an entry."""
SINGLE_ENTRIES: dict[str, Role] = {
    "rollouter": Role(ROLLOUTERS, own=OwnModelOptions),
    "refiner": Role(REFINERS, own=OwnRefinerOptions),
    "advantage": Role(ADVANTAGES),
    "data.train": Role(DATASETS),
    "data.eval": Role(DATASETS),
    "sft.data": Role(DEMONSTRATIONS),
}
"""Keys that are an entry themselves."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A parsed entry: its common keys and its options as structured configs, complete and checked.

    Entries are shared (see `PARSED`): read them with `to_container` or `to_object`, which copy.
    """

    common: DictConfig
    options: DictConfig
    kind: Kind


MAX_PARSED = 1024
PARSED: dict[tuple[type, Kind, str], Entry] = {}
"""Entries without problems by what they were parsed from.

OmegaConf takes 2 ms for an entry, and loading, checking and binding a config each parse all of them.
"""


def role_of(key: str) -> Role | None:
    """The role of the entry at the dotted `key`; None if no entry can be there."""
    section, _, name = key.rpartition(".")
    return NAMED_ENTRIES.get(section) if name and section in NAMED_ENTRIES else SINGLE_ENTRIES.get(key)


def entry_defaults() -> Tree:
    """The entries that class defaults give, to be merged over like a file's."""
    config = RunConfig()
    defaults: Tree = {section: getattr(config, section) for section in NAMED_ENTRIES}
    for key in SINGLE_ENTRIES:
        *sections, name = key.split(".")
        place = defaults
        for section in sections:
            place = cast(Tree, place.setdefault(section, {}))
        place[name] = attrgetter(key)(config)
    return defaults


def entry_keys(config_tree: Mapping[str, object]) -> list[str]:
    """The dotted keys of all entries in a merged tree."""
    named = [f"{section}.{name}" for section in NAMED_ENTRIES for name in cast(Tree, config_tree[section])]
    return named + list(SINGLE_ENTRIES)


def merge_trees(parent: Mapping[str, object], child: Mapping[str, object], prefix: str = "") -> Tree:
    """`child` over `parent`, section by section; a list replaces a list.

    An entry whose `kind` changes keeps the keys common to all kinds (a weight), not the old kind's options.
    """
    merged = dict(parent)
    for name, value in child.items():
        key = f"{prefix}{name}"
        old = merged.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            role = role_of(key)
            # The options of one kind are unknown to another, and the user could not take them out of a base
            # file.
            if role is not None and value.get("kind", old.get("kind")) != old.get("kind"):
                old = {option: old[option] for option in _field_names(role.common) if option in old}
            merged[name] = merge_trees(old, value, f"{key}.")
        else:
            merged[name] = value
    return merged


def parse_entry(
    entry: Mapping[str, object], role: Role, key: str, provenance: Provenance
) -> tuple[Entry | None, list[Problem]]:
    """The entry at the dotted `key`, or None and what is wrong with it."""
    kind = role.kind_of(entry.get("kind"))
    if kind is None:
        return None, [_kind_problem(entry, role, key, provenance)]
    # The text of the entry is the key, because a dict cannot be one.
    known = (role.common, kind, repr(entry))
    if known in PARSED:
        return PARSED[known], []
    parsed = Entry(structured(role.common), structured(kind.options), kind)
    problems = []
    for option, value in entry.items():
        rule, suggestion = _set_option(parsed, role, option, value)
        if rule:
            dotted = f"{key}.{option}"
            close = f"{key}.{suggestion}" if suggestion else ""
            source = provenance.of(dotted)
            problems.append(Problem(source=source, key=dotted, value=value, rule=rule, suggestion=close))
    if problems:
        return None, problems
    # Emptied as a whole: the entries of a config are parsed together, so the next one refills it at once.
    if len(PARSED) >= MAX_PARSED:
        PARSED.clear()
    PARSED[known] = parsed
    return parsed, []


def complete(config: RunConfig, provenance: Provenance) -> RunConfig:
    """A copy whose entries have every default written out (as plain dicts and lists).

    Raises:
        ConfigError: an entry has an unknown kind or key, or a value of the wrong type.
    """
    problems: list[Problem] = []

    def fill(key: str, entry: Mapping[str, object]) -> Tree:
        role = role_of(key)
        assert role is not None, f"no entry stands at {key}"
        parsed, found = parse_entry(entry, role, key, provenance)
        problems.extend(found)
        if parsed is None:
            return {}
        common, options = OmegaConf.to_container(parsed.common), OmegaConf.to_container(parsed.options)
        filled = {**cast(Tree, common), **cast(Tree, options)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in filled.items()}

    named: dict[str, Any] = {
        section: {name: fill(f"{section}.{name}", entry) for name, entry in getattr(config, section).items()}
        for section in NAMED_ENTRIES
    }
    whole = replace(config, **named)
    for key in SINGLE_ENTRIES:
        whole = with_value(whole, key, fill(key, attrgetter(key)(config)))
    raise_if_any(problems)
    return whole


def with_value(owner: Any, key: str, value: object) -> Any:
    """A copy of the dataclass `owner` with another value at the dotted `key`."""
    name, _, rest = key.partition(".")
    return replace(owner, **{name: with_value(getattr(owner, name), rest, value) if rest else value})


def assign(owner: DictConfig, key: str, value: object, hint: object) -> str:
    """Set `owner.key`; returns the rule that the value's type breaks, or ""."""
    rule = f"must be {describe(hint)}"
    if hint is str and value is None:
        return f'{rule}: an empty one is ""'
    # OmegaConf would turn a boolean into the text "True", and a number into a boolean.
    if hint is str and isinstance(value, bool):
        return rule
    if hint is bool and not isinstance(value, bool | str):
        return rule
    try:
        OmegaConf.update(owner, key, value, merge=False)
    except ASSIGN_ERRORS:
        return rule
    return ""


def describe(hint: object) -> str:
    """A field's type in words."""
    words: dict[object, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if get_origin(hint) is tuple:
        arguments = cast(Any, hint).__args__
        item = words[arguments[0]].removeprefix("a ").removesuffix("s")
        if Ellipsis in arguments:
            return f"a list of {item}s" if item != "text" else "a list of texts"
        return f"a list of {len(arguments)} {item}s"
    return words.get(hint, "a mapping")


def typed(entry: Mapping[str, object], key: str) -> tuple[Common | NoCommon, Options, Kind]:
    """(common keys, options of the kind, kind) of the entry at the dotted `key`.

    Raises:
        ConfigError: unknown kind or key, or a value of the wrong type.
    """
    role = role_of(key)
    assert role is not None, f"no entry stands at {key}"
    parsed, problems = parse_entry(entry, role, key, Provenance())
    raise_if_any(problems)
    assert parsed is not None, "an entry without problems is parsed"
    return (
        cast(Common | NoCommon, OmegaConf.to_object(parsed.common)),
        cast(Options, OmegaConf.to_object(parsed.options)),
        parsed.kind,
    )


def structured(cls: type) -> DictConfig:
    """A new config of the dataclass with its defaults. A copy takes OmegaConf a fifth of making one."""
    return deepcopy(_template(cls))


@cache
def _template(cls: type) -> DictConfig:
    return cast(DictConfig, OmegaConf.structured(cls))


def field_types(cls: type) -> Mapping[str, object]:
    """The type of every field of a dataclass, by name."""
    return _field_types(cls)


@cache
def _field_types(cls: type) -> Mapping[str, object]:
    hints = get_type_hints(cls)
    return {item.name: hints[item.name] for item in fields(cls)}


def _set_option(parsed: Entry, role: Role, option: str, value: object) -> tuple[str, str]:
    """Set one key of an entry; returns (rule broken or "", nearest valid key or "")."""
    common, own = field_types(role.common), field_types(parsed.kind.options)
    if option in common:
        return assign(parsed.common, option, value, common[option]), ""
    if option in own:
        return assign(parsed.options, option, value, own[option]), ""
    kind = str(parsed.common.get("kind", ""))
    if former := former_kind(kind, option):
        return f"unknown key: {kind} is now the released rule; the kind with this option is {former}", ""
    valid = [*common, *own]
    owner = "an entry here" if role.only is not None else "this kind"
    return f"unknown key; {owner} takes {', '.join(valid)}", nearest(option, valid)


def _kind_problem(entry: Mapping[str, object], role: Role, key: str, provenance: Provenance) -> Problem:
    name = entry.get("kind")
    if name is None:
        return _without_kind(role, key, provenance)
    source = provenance.of(f"{key}.kind" if "kind" in entry else key)
    rule = f'must be one of {", ".join(role.table)}, or your own "module:attr"'
    suggestion = nearest(str(name), role.table)
    return Problem(source=source, key=f"{key}.kind", value=name, rule=rule, suggestion=suggestion)


def _without_kind(role: Role, key: str, provenance: Provenance) -> Problem:
    """An entry without a kind is mostly the misspelt name of one that a base file has."""
    section, _, name = key.rpartition(".")
    siblings = (provenance.merged or {}).get(section)
    others = [other for other in siblings if other != name] if isinstance(siblings, Mapping) else []
    close = nearest(name, others)
    rule = "has no kind" if close else f"has no kind: give {key}.kind, one of {', '.join(role.table)}"
    return Problem(
        source=provenance.of(key), key=key, rule=rule, suggestion=f"{section}.{close}" if close else ""
    )


def _field_names(cls: type) -> list[str]:
    return [item.name for item in fields(cls)]
