"""A kind: a name a config may use, its options dataclass, and where its code lives ("module:attr").

Kinds are looked up in plain dicts (one file per role beside this one); a user's own is "module:attr" under a
prefix listed in `allow`. Importing a kind's table imports none of the code it points at.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from configs.errors import nearest, raised_at


@dataclass(frozen=True, slots=True)
class Kind:
    """`options` is a dataclass type: its fields are the kind's own config keys. `target` is "module:attr"."""

    options: type
    target: str
    prepare: str = ""
    """Losses and shapes: "module:attr" of the function that needs all rows of all ranks.

    Its table holds the learned tokens of the loss's origin (of policy, for a shape), ordered by sample_id and
    position: those two, token_ids, origin, weight, advantage, draw (a uniform number in [0, 1) of each
    token's own), policy_logprobs and policy_entropy (of the weights that the update starts from),
    behavior_logprobs and what else was scored: proximal_logprobs, entropy, ref_logprobs. A loss sees the
    advantages as they are before all shapes, a shape as the shapes before it make them. It returns columns of
    the same length, or a `trainer.losses.batch_statistics.Prepared`.
    """
    start: str = ""
    """Shapes only: "module:attr" of a function options -> options that is called before anything starts.

    It raises ValueError if what the options name cannot be used, and makes relative paths absolute.
    """
    supervised: bool = False
    """Losses only: it needs neither advantages nor a sampler, so that it can train demonstrations."""
    reference: bool = False
    """Reward shapes only: it needs the reference's logprobs, which the learner then scores."""


class TargetError(ValueError):
    """ "module:attr" that names nothing; the message says which part, and the nearest name."""


def load_target(target: str) -> Callable[..., Any]:
    """Import "module:attr" and return the attribute. What else the module raises is passed on.

    Raises:
        TargetError: the text is not "module:attr", there is no such module or attribute, or the module
            cannot import what it needs.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise TargetError(f'a target must be "module:attr", got {target!r}')
    rule = f"target {target!r} must name something importable"
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise TargetError(f"{rule}: {_why_not_imported(module_name, error)}") from error
    if not hasattr(module, attribute):
        place = getattr(module, "__file__", None) or "built in"
        found = f"module {module_name!r} ({place}) has no attribute {attribute!r}"
        raise TargetError(f"{rule}: {found}{_hint(attribute, vars(module))}")
    return getattr(module, attribute)  # type: ignore[no-any-return]


def _why_not_imported(name: str, error: ImportError) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is None or not (name == missing or name.startswith(f"{missing}.")):
        # the module itself is there, what it imports is not
        return f"{raised_at(error, (__file__,))}: {type(error).__name__}: {error}"
    parent = missing.rpartition(".")[0]
    folders = list(sys.modules[parent].__path__) if parent else [os.getcwd()]
    names = [f"{parent}{'.' if parent else ''}{each.name}" for each in pkgutil.iter_modules(folders)]
    return f"there is no module {missing!r} in {folders[0]} or among what is installed{_hint(missing, names)}"


def _hint(name: str, valid: Iterable[str]) -> str:
    close = nearest(name, valid)
    return f" (did you mean {close}?)" if close else ""


def find_kind(table: Mapping[str, Kind], name: str, custom_options: type) -> Kind:
    """The kind called `name` in `table`, or the user's own "module:attr" with `custom_options`."""
    if ":" in name:
        return Kind(custom_options, name)
    return table[name]
