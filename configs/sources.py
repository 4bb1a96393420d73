"""Where a config comes from: preset files, their `base:` parents, and `key.sub=value` overrides.

In: a path or preset name and override texts. Out: `Source` trees of plain values, oldest parent first, and a
`Provenance` that says which source set a key. Called by `configs.load`; errors name the source through it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.errors import COMMAND_LINE, ConfigError, Problem, nearest

Tree = dict[str, object]

PRESETS = Path(__file__).resolve().parent
ALLOWED_RESOLVERS = frozenset({"oc.env"})
"""Resolvers run while a config loads; reading an environment variable is the only thing one may do."""
INTERPOLATION = re.compile(r"\$\{([^:}$]*)([:}$]?)")
"""Opening of ${key}, ${resolver:...} or ${${nested}...}: the name, and the character that ends it."""
_KEY_OF_LINE = re.compile(r"([a-z_]+(?:\.[\w-]+)+)(?= = |: | \()")
"""A dotted key at the beginning of a message, and what follows it: a value, a rule, or a kind."""
READ_ERRORS = (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, RecursionError, OSError)


@dataclass(frozen=True, slots=True)
class Source:
    """`name` is a file or "command line"; `tree` holds only what it sets itself."""

    name: str
    tree: Tree


@dataclass(frozen=True, slots=True)
class Provenance:
    """Which of `sources` (oldest first) set a key of `merged`; what none of them set is a class default."""

    sources: tuple[Source, ...] = ()
    merged: Mapping[str, object] | None = None
    left_out: tuple[str, ...] = ()
    """What of the sources is not in `merged`, and why (`configs.left_out`): noted before a run starts."""

    def of(self, key: str) -> str:
        """The name of the last source that sets the dotted `key`, or anything under it."""
        if self.merged is not None and has_key(self.merged, key):
            for source in reversed(self.sources):
                if has_key(source.tree, key):
                    return source.name
        # The default of an option is there because of who chose the kind.
        if kind := self._kind_above(key):
            return f"{self.of(kind)} (default of its kind)"
        files = [source.name for source in self.sources if source.name != COMMAND_LINE]
        return f"{files[-1]} (class default)" if files else "config"

    def _kind_above(self, key: str) -> str:
        """The key `kind` of the entry that has the dotted `key`, if a source sets it; else ""."""
        above = key
        while "." in above:
            above = above.rpartition(".")[0]
            if any(has_key(source.tree, f"{above}.kind") for source in self.sources):
                return f"{above}.kind"
        return ""

    def name_in(self, message: str) -> str:
        """`message` with the name of the source before each line that begins with a key of the config."""
        return "\n".join(self._name_in_line(line) for line in message.split("\n"))

    def _name_in_line(self, line: str) -> str:
        found = _KEY_OF_LINE.match(line)
        is_key = found is not None and self.merged is not None and has_key(self.merged, found[1])
        return f"{self.of(found[1])}: {line}" if found is not None and is_key else line


NO_SOURCES = Provenance()
"""Of a config that was made in code."""


def has_key(tree: Mapping[str, object], key: str) -> bool:
    """Whether the dotted `key` leads somewhere in `tree`."""
    node: object = tree
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def preset_names() -> list[str]:
    """The presets that come with the package, without `.yaml`."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def find_preset(path: str) -> Path:
    """The file of `path`: a preset name (`debug`), a file, or `configs/debug.yaml` of the package.

    Raises:
        ConfigError: there is no such file; the message suggests the most similar preset.
    """
    # A file of the working directory goes before a preset, but a plain name is a preset first (below).
    candidates = [Path(path), PRESETS.parent / path, PRESETS / path]
    if Path(path).name == path and not Path(path).suffix:
        candidates.insert(0, PRESETS / f"{path}.yaml")
    for candidate in candidates:
        try:
            if candidate.is_file():
                return candidate
        except (OSError, ValueError):  # a name too long or with a NUL byte is not a file either
            continue
    rule = f"must be a config file or one of the presets {', '.join(preset_names())}"
    suggestion = nearest(Path(path).stem, preset_names())
    problem = Problem(source=COMMAND_LINE, key="CONFIG", value=path, rule=rule, suggestion=suggestion)
    raise ConfigError([problem])


def read_chain(path: Path) -> tuple[Source, ...]:
    """The file and its `base:` parents, oldest first, each without its `base` key.

    Raises:
        ConfigError: a file cannot be read, is not a mapping, or the chain of bases comes back to itself.
    """
    chain: list[Source] = []
    seen: list[Path] = []
    while True:
        name = _display(path)
        tree = _read_yaml(path, name)
        # Resolved, so that a loop through a symbolic link is found as well.
        seen.append(path.resolve())
        base = tree.pop("base", None)
        chain.append(Source(name, tree))
        if base is None:
            return tuple(reversed(chain))
        path = _base_path(path, name, base)
        if path.resolve() in seen:
            rule = "must not lead back to itself: " + " -> ".join(_display(file) for file in [*seen, path])
            raise ConfigError([Problem(source=name, key="base", value=base, rule=rule)])


def read_overrides(overrides: Sequence[str]) -> Source:
    """`key.sub=value` texts as one source; values are YAML, a later text wins.

    Raises:
        ConfigError: a text has no key or no "=", or its value is not YAML.
    """
    tree: Tree = {}
    problems = []
    for text in overrides:
        key, equals, value_text = text.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            problems.append(_override_problem(text, text, "an override must read key.sub=value"))
            continue
        try:
            # OmegaConf parses the value alone: keys of its own syntax, such as a[0], mean nothing here.
            value = _plain(OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value_text}"])))["value"]
            # `key=` is an empty text, as in a shell; `key=null` is null.
            value = value if value_text.strip() else ""
            _set(tree, parts, value)
        except _Clash:
            problems.append(_override_problem(key, value_text, "is given both as a value and as a section"))
        except READ_ERRORS as error:
            problems.append(_override_problem(key, value_text, f"must be a YAML value: {_reason(error)}"))
    if problems:
        raise ConfigError(problems)
    return Source(COMMAND_LINE, tree)


def value_problem(value: object) -> str:
    """The rule that a raw value breaks, or "": plain YAML, finite, complete, and no resolver but oc.env."""
    if isinstance(value, dict):
        if not all(isinstance(name, str) for name in value):
            return "must have text keys"
        return next((rule for item in value.values() if (rule := value_problem(item))), "")
    if isinstance(value, list | tuple):
        return next((rule for item in value if (rule := value_problem(item))), "")
    if isinstance(value, str):
        return _text_problem(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "must be finite"
    return "" if value is None or isinstance(value, bool | int | float) else "must be plain YAML"


def interpolated(value: object, key: str) -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every text under `key` that still asks for an interpolation."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from interpolated(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from interpolated(item, f"{key}.{index}")
    elif isinstance(value, str) and "${" in value:
        yield key, value


class _Clash(Exception):
    """An override needs a section where another gave a value."""


def _text_problem(text: str) -> str:
    if text == "???":
        return "must be given"
    for name, end in INTERPOLATION.findall(text):
        # The name of a nested interpolation is known only once it is resolved, so no resolver could be
        # refused.
        if end == "$":
            return "must not build the name of an interpolation from another one"
        if end == ":" and name.strip() not in ALLOWED_RESOLVERS:
            return f"must use no resolver but oc.env, got {name.strip()}"
    return ""


def _set(tree: Tree, parts: Sequence[str], value: object) -> None:
    for part in parts[:-1]:
        node = tree.setdefault(part, {})
        if not isinstance(node, dict):
            raise _Clash
        tree = node
    old = tree.get(parts[-1])
    if isinstance(old, dict) and isinstance(value, dict):
        for name, item in value.items():
            _set(old, [str(name)], item)
    elif isinstance(old, dict):
        raise _Clash
    else:
        tree[parts[-1]] = value


def _read_yaml(path: Path, name: str) -> Tree:
    try:
        return _plain(OmegaConf.to_container(OmegaConf.load(path)))
    except READ_ERRORS as error:
        reason = _reason(error)
        # Plain YAML lets the second of two equal keys win without a word; the loader of OmegaConf refuses it.
        is_double = reason.startswith("found duplicate key")
        rule = f"must have each key once: {reason}" if is_double else f"must be a YAML mapping: {reason}"
        raise ConfigError([Problem(source=name, key="", value=None, rule=rule)]) from error


def _plain(container: object) -> Tree:
    if not isinstance(container, dict):
        raise ValueError(f"got a {type(container).__name__}")
    return container


def _base_path(path: Path, name: str, base: object) -> Path:
    """The file that `base:` of the file at `path` names: relative to it, or a preset by its name."""
    rule = "must be a file, relative to this one, or the name of a preset"
    if isinstance(base, str) and (path.parent / base).is_file():
        return path.parent / base
    if base in preset_names():
        return PRESETS / f"{base}.yaml"
    names = [file.name for file in path.parent.glob("*.yaml")]
    suggestion = nearest(str(base), [*names, *preset_names()])
    raise ConfigError([Problem(source=name, key="base", value=base, rule=rule, suggestion=suggestion)])


def _display(path: Path) -> str:
    """Relative to the working directory when below it, else as it is."""
    # Not `resolve`: the message shows the path as the user knows it, with its symbolic links.
    absolute = Path(os.path.abspath(path))
    here = Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def _reason(error: Exception) -> str:
    """Why reading failed, without the quoted text that YAML errors carry: it may hold a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} (line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1})"
    return str(error).partition("\n")[0]


def _override_problem(key: str, value: object, rule: str) -> Problem:
    return Problem(source=COMMAND_LINE, key=key, value=value, rule=rule)
