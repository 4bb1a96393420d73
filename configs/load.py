"""From preset files and overrides to one checked `RunConfig`, and from a `RunConfig` back to text and a hash.

In: a preset name or YAML path, further files, and `key.sub=value` overrides. Out: a complete `RunConfig`
(every default written out), or a `ConfigError` that lists what is wrong. Merge order: class defaults, the
caller's defaults, `base:` parents, file, further files, overrides.
Called by the command line, by `cluster` for the run's config.yaml and hash, and by tests.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Final, cast, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from configs.entries import (
    ASSIGN_ERRORS,
    NAMED_ENTRIES,
    assign,
    complete,
    entry_defaults,
    merge_trees,
)
from configs.errors import ConfigError, Problem, nearest_key, raise_if_any
from configs.redact import redact
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

__all__ = [
    "ConfigError",
    "config_hash",
    "differences",
    "dump_yaml",
    "experiment",
    "load_config",
    "preset_names",
    "settings",
]

NOT_HASHED = (
    *("name", "num_steps", "runs_dir", "resume", "checkpoint", "cluster", "generator", "sync"),
    *("learner.num_ranks", "learner.zero_stage", "learner.microbatch_tokens", "learner.logit_chunk_tokens"),
    *("learner.offload_anchor", "learner.max_nonfinite_updates"),
    *("rollout.group_timeout_s", "rollout.score_timeout_s", "eval", "data.eval"),
)
"""Keys and sections of which another value is the same experiment: longer, kept or placed elsewhere, measured
otherwise, with other limits."""
_NEWER = ("rollouter",)
"""Entries that earlier versions did not have: at their default they are not hashed, and a run without one had
that."""
_MEASURED = ("eval", "data.eval")
_ONLY_LIMITS = ("eval.timeout_s",)
SCORER_NOT_HASHED: Final = ("replicas", "concurrency", "num_gpus", "num_cpus", "secrets")
"""Keys of each scorer that say where and how it runs, not what it scores."""
REMOVED: Final = {
    "cluster.scorer_replicas": "was removed: each scorer has its own, scorers.<name>.replicas",
}
"""Keys of earlier versions, and what to write instead."""
DEFAULTS_VERSION: Final = 1
"""Raised when a default is changed: what was made with the old one is another experiment."""


def load_config(
    path: str, overrides: Sequence[str] = (), more: Sequence[Path] = (), defaults: Sequence[Source] = ()
) -> RunConfig:
    """The checked config that `path` (a file or a preset name) and the overrides describe.

    `more` are files merged over `path`, each with its bases; `defaults` hold where none of them says else.

    Raises:
        ConfigError: one line per problem, each with source, key, value, rule and the nearest valid name.
    """
    files = [source for file in (find_preset(path), *more) for source in read_chain(file)]
    sources = (*defaults, *files, read_overrides(overrides))
    raise_if_any([problem for source in sources for problem in _source_problems(source)])
    merged = entry_defaults()
    for source in sources:
        merged = merge_trees(merged, source.tree)
    for section in NAMED_ENTRIES:
        entries = cast(Tree, merged[section])
        merged[section] = {name: entry for name, entry in entries.items() if entry is not None}
    provenance = Provenance(sources, merged)
    config = _build(merged, provenance)
    check(config, provenance)
    return config


def dump_yaml(config: RunConfig) -> str:
    """The resolved config as YAML without secrets or interpolations; it loads again as it stands."""
    return OmegaConf.to_yaml(OmegaConf.create(cast(Tree, redact(_container(config)))))


def settings(config: RunConfig) -> dict[str, object]:
    """dotted key -> value of all of a config, without secrets."""
    content = redact(_container(config))
    assert isinstance(content, dict), "redact keeps the shape of its argument"
    return dict(_leaves(content, ""))


def experiment(config: RunConfig) -> dict[str, object]:
    """dotted key -> value of what makes two runs the same experiment, without secrets."""
    return {key: value for key, value in settings(config).items() if _is_of_experiment(key)}


def differences(known: Mapping[str, object], config: RunConfig) -> list[tuple[str, object, object]]:
    """(dotted key, its value in `known`, its value in `config`) where the two are other experiments.

    `known` is an `experiment`, perhaps of an earlier version: a key that it lacks had its default.
    """
    usual, now = _as_json(experiment(RunConfig())), _as_json(experiment(config))
    before = {key: value for key, value in known.items() if _is_of_experiment(key)}
    leaves = {key for key, _ in _schema(RunConfig)}
    return [
        (key, before.get(key, "none"), now.get(key, "none"))
        for key in sorted(before.keys() | now.keys())
        if before.get(key, usual.get(key) if key in leaves or _is_under(key, _NEWER) else None)
        != now.get(key)
    ]


def _as_json(tree: Mapping[str, object]) -> dict[str, object]:
    """As a file gives it back: tuples are lists."""
    return cast(Tree, json.loads(json.dumps(tree)))


def _is_of_experiment(key: str) -> bool:
    section, _, option = key.partition(".")
    is_placement = section == "scorers" and option.partition(".")[2] in SCORER_NOT_HASHED
    return not (is_placement or _is_under(key, NOT_HASHED))


def _is_under(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _leaves(tree: Mapping[str, object], prefix: str) -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def config_hash(config: RunConfig, with_evaluation: bool = False) -> str:
    """sha256 (hex) of what makes two runs the same experiment; a renewed secret does not change it.

    `with_evaluation` also counts how it is evaluated, for results that are compared. What has its default is
    left out, so that a version with a new key goes on with the runs of the last.
    """
    usual, leaves = settings(RunConfig()), {key for key, _ in _schema(RunConfig)}
    counted = experiment(config)
    if with_evaluation:
        for key, value in settings(config).items():
            if _is_under(key, _MEASURED) and not _is_under(key, _ONLY_LIMITS):
                counted[key] = value
    content: dict[str, object] = {
        key: value
        for key, value in counted.items()
        if not (key in leaves or _is_under(key, _NEWER)) or key not in usual or usual[key] != value
    }
    content["defaults"] = DEFAULTS_VERSION
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _container(config: RunConfig) -> Tree:
    return {name: _as_lists(value) for name, value in asdict(config).items()}


def _as_lists(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _as_lists(item) for name, item in value.items()}
    return [_as_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _schema(cls: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """(dotted key, type) of every field that is not a section itself."""
    for name, hint in get_type_hints(cls).items():
        if is_dataclass(hint):
            yield from _schema(cast(type, hint), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def _source_problems(source: Source) -> list[Problem]:
    """Keys no class has, sections that are not mappings, and values that are not plain, in one source."""
    leaves = dict(_schema(RunConfig))
    sections = {key.partition(".")[0] for key in leaves if "." in key}
    return [
        Problem(source=source.name, key=key, value=value, rule=rule, suggestion=suggestion)
        for key, value, rule, suggestion in _tree_problems(source.tree, "", leaves, sections)
    ]


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
        elif key in REMOVED:
            yield key, value, REMOVED[key], ""
        elif key not in leaves:
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
        return "must be a mapping"
    if key not in NAMED_ENTRIES:
        return ""
    if not all(isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in value):
        return "must have names of letters, digits, - and _"
    bad = [name for name, entry in value.items() if not (entry is None or isinstance(entry, dict))]
    return f"must have a mapping or null under {bad[0]}" if bad else ""


def _build(merged: Tree, provenance: Provenance) -> RunConfig:
    config: DictConfig = OmegaConf.structured(RunConfig)
    problems = []
    for key, hint in _schema(RunConfig):
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
    for key, text in interpolated(OmegaConf.to_container(config), ""):
        rule = "must not become an interpolation again"
        problems.append(Problem(source=provenance.of(key), key=key, value=text, rule=rule))
    raise_if_any(problems)
