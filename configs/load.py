"""From preset files and overrides to one checked `RunConfig`, and from a `RunConfig` back to text.

In: a preset name or YAML path, further files, and `key.sub=value` overrides. Out: a complete `RunConfig`
(every default written out), or a `ConfigError` that lists what is wrong. Merge order: class defaults, the
caller's defaults, `base:` parents, file, further files, overrides.
Called by the command line, by `cluster` for the run's config.yaml, and by tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import cast, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from configs.entries import (
    ASSIGN_ERRORS,
    NAMED_ENTRIES,
    SINGLE_ENTRIES,
    Role,
    assign,
    complete,
    entry_defaults,
    merge_trees,
    structured,
)
from configs.errors import ConfigError, Problem, nearest_key, raise_if_any
from configs.experiment import plain_tree
from configs.left_out import without_unmade_losses
from configs.redact import redact
from configs.renamed import new_key
from configs.rules import check
from configs.schema import RunConfig
from configs.sources import (
    Provenance,
    Source,
    Tree,
    find_preset,
    interpolated,
    preset_names,
    read_chain,
    read_overrides,
    value_problem,
)

__all__ = ["ConfigError", "dump_yaml", "load_config", "load_with_sources", "preset_names"]


def load_config(
    path: str, overrides: Sequence[str] = (), more: Sequence[Path] = (), defaults: Sequence[Source] = ()
) -> RunConfig:
    """The checked config that `path` (a file or a preset name) and the overrides describe.

    For `more`, `defaults` and errors see `load_with_sources`.
    """
    return load_with_sources(path, overrides, more, defaults)[0]


def load_with_sources(
    path: str, overrides: Sequence[str] = (), more: Sequence[Path] = (), defaults: Sequence[Source] = ()
) -> tuple[RunConfig, Provenance]:
    """The same, and which file or override set each key.

    `more` are files merged over `path`, each with its bases; `defaults` hold where none of them says else.

    Raises:
        ConfigError: one line per problem, each with source, key, value, rule and the nearest valid name.
    """
    # Each file keeps its own source until the end, so that an error can name the file that set the key.
    files = [source for file in (find_preset(path), *more) for source in read_chain(file)]
    sources = (*defaults, *files, read_overrides(overrides))
    raise_if_any([problem for source in sources for problem in _source_problems(source)])
    merged = entry_defaults()
    for source in sources:
        merged = merge_trees(merged, source.tree)
    # null takes an entry of a base file out. Only now: a later file may have set it again.
    for section in NAMED_ENTRIES:
        entries = cast(Tree, merged[section])
        merged[section] = {name: entry for name, entry in entries.items() if entry is not None}
    merged, left_out = without_unmade_losses(merged, Provenance(sources, merged))
    provenance = Provenance(sources, merged, left_out)
    config = _build(merged, provenance)
    check(config, provenance)
    return config, provenance


def dump_yaml(config: RunConfig) -> str:
    """The resolved config as YAML without secrets or interpolations; it loads again as it stands."""
    return OmegaConf.to_yaml(OmegaConf.create(cast(Tree, redact(plain_tree(config)))))


@cache
def _schema(cls: type) -> Mapping[str, type]:
    """dotted key -> type of every field that is not a section itself."""
    leaves: dict[str, type] = {}
    for name, hint in get_type_hints(cls).items():
        inner = _schema(cast(type, hint)) if is_dataclass(hint) else {}
        leaves |= {f"{name}.{key}": found for key, found in inner.items()} if inner else {name: hint}
    return leaves


def _source_problems(source: Source) -> list[Problem]:
    """Keys no class has, sections that are not mappings, and values that are not plain, in one source."""
    leaves = _schema(RunConfig)
    sections = {key.partition(".")[0] for key in leaves if "." in key}
    renamed = list(_renamed(source.tree, ""))
    problems = [(key, value, _renamed_rule(key, value), "") for key, value in renamed]
    for found in _tree_problems(source.tree, "", leaves, sections):
        # A renamed section would be reported a second time, as unknown, with every key under it.
        if not any(f"{found[0]}.".startswith(f"{key}.") for key, _ in renamed):
            problems.append(found)
    return [
        Problem(source=source.name, key=key, value=value, rule=rule, suggestion=suggestion)
        for key, value, rule, suggestion in problems
    ]


def _renamed_rule(key: str, value: object) -> str:
    rule = f"was renamed to {new_key(key)}"
    return f"{rule}: write it as {new_key(key)}: {{...}}" if isinstance(value, Mapping) else rule


def _renamed(tree: Mapping[str, object], prefix: str) -> Iterator[tuple[str, object]]:
    """Keys that have another name by now."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if new_key(key):
            yield key, value
        elif isinstance(value, Mapping):
            yield from _renamed(value, f"{key}.")


def _tree_problems(
    tree: Tree, prefix: str, leaves: Mapping[str, type], sections: set[str]
) -> Iterator[tuple[str, object, str, str]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if "." in str(name):
            yield key, value, "must be nested: a key in a file has no dots", ""
        elif key in sections:
            if isinstance(value, dict):
                yield from _tree_problems(value, f"{key}.", leaves, sections)
            else:
                yield key, value, "must be a section (a mapping)", ""
        elif key not in leaves:
            # An override gives a.b.c as nested mappings. The message shows the whole key, as it was typed.
            while isinstance(value, dict) and len(value) == 1:
                inner, value = next(iter(value.items()))
                key = f"{key}.{inner}"
            yield key, value, "unknown key", nearest_key(key, [*leaves, *sections])
        elif rule := value_problem(value) or _shape_problem(key, value, leaves[key]):
            yield key, value, rule, ""


def _shape_problem(key: str, value: object, hint: type) -> str:
    """Entries must be mappings, with plain names; null takes a named one out."""
    if get_origin(hint) is not dict:
        return ""
    if not isinstance(value, dict):
        return f"must be a mapping{_such_as(value, SINGLE_ENTRIES.get(key))}"
    if key not in NAMED_ENTRIES:
        return ""
    if not all(isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in value):
        return "must have names of letters, digits, - and _"
    bad = [name for name, entry in value.items() if not (entry is None or isinstance(entry, dict))]
    if not bad:
        return ""
    return f"must have a mapping or null under {bad[0]}{_such_as(value[bad[0]], NAMED_ENTRIES[key])}"


def _such_as(value: object, role: Role | None) -> str:
    """The mapping that was meant by the bare name of a kind."""
    is_kind = role is not None and isinstance(value, str) and value in role.table
    return f", such as {{kind: {value}}}" if is_kind else ""


def _build(merged: Tree, provenance: Provenance) -> RunConfig:
    config = structured(RunConfig)
    problems = []
    # Key by key instead of one merge: OmegaConf stops at the first wrong value, this reports all of them.
    for key, hint in _schema(RunConfig).items():
        found, value = _look_up(merged, key)
        rule = assign(config, key, value, hint) if found else ""
        if rule:
            problems.append(Problem(source=provenance.of(key), key=key, value=value, rule=rule))
    raise_if_any(problems)
    _resolve(config, merged, provenance)
    built = OmegaConf.to_object(config)
    assert isinstance(built, RunConfig), "a structured config gives its class back"
    return complete(built, provenance)


def _look_up(tree: Mapping[str, object], key: str) -> tuple[bool, object]:
    node: object = tree
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False, None
        node = node[part]
    return True, node


def _unresolved(source: str, key: str, text: str, error: Exception) -> Problem:
    rule = "must resolve: " + str(error).partition("\n")[0]
    return Problem(source=source, key=key, value=text, rule=rule)


def _resolve(config: DictConfig, merged: Tree, provenance: Provenance) -> None:
    """Replace every interpolation by its value, in place."""
    problems = []
    # One by one first, for the sake of messages: `resolve` names neither the key nor the file.
    for key, text in interpolated(merged, ""):
        try:
            OmegaConf.select(config, key)
        except (*ASSIGN_ERRORS, RecursionError) as error:
            problems.append(_unresolved(provenance.of(key), key, text, error))
    raise_if_any(problems)
    try:
        OmegaConf.resolve(config)
    except (
        *ASSIGN_ERRORS,
        RecursionError,
    ) as error:  # under a key that cannot be selected by its dotted name
        names = ", ".join(source.name for source in provenance.sources)
        raise ConfigError([_unresolved(names, "", "", error)]) from error
    # An interpolation may give text that is one itself. It would be resolved when the saved config is loaded,
    # and so differ from what was checked.
    for key, text in interpolated(OmegaConf.to_container(config), ""):
        rule = "must not become an interpolation again"
        problems.append(Problem(source=provenance.of(key), key=key, value=text, rule=rule))
    raise_if_any(problems)
