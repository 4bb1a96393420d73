"""A kind: a name a config may use, its options dataclass, and where its code lives ("module:attr").

Kinds are looked up in plain dicts (one file per role beside this one); a user's own is "module:attr" under a
prefix listed in `allow`. Importing a kind's table imports none of the code it points at.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


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


def load_target(target: str) -> Callable[..., Any]:
    """Import "module:attr" and return the attribute.

    Raises:
        ValueError: the text is not "module:attr", or names nothing.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise ValueError(f'a target must be "module:attr", got {target!r}')
    try:
        return getattr(importlib.import_module(module_name), attribute)  # type: ignore[no-any-return]
    except (ImportError, AttributeError) as error:
        raise ValueError(f"target {target!r} must name something importable: {error}") from error


def find_kind(table: Mapping[str, Kind], name: str, custom_options: type) -> Kind:
    """The kind called `name` in `table`, or the user's own "module:attr" with `custom_options`."""
    if ":" in name:
        return Kind(custom_options, name)
    return table[name]
