"""Fields of a config: beside its type, the values a field may have, and what another value of it means.

Every field of `configs.schema` is a `setting`, every option of a kind with a rule an `option`. Read by
`configs.rules` (ranges), `configs.experiment` (what makes another experiment), `cluster.actor_pool` (what
needs other actors) and docs/config_page.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Flag, auto
from typing import Any, Final, TypeVar, cast, get_type_hints

T = TypeVar("T")
_KEY: Final = "setting"


@dataclass(frozen=True, slots=True)
class Rule:
    """Which values of a field's type are right; `words` say it in messages, as "must be ..."."""

    holds: Callable[[Any], bool]
    words: str
    choices: tuple[str, ...] = ()
    """Of a text, the values that are right; the nearest is suggested."""


class Effect(Flag):
    """What another value of a field needs."""

    NOTHING = 0
    EXPERIMENT = auto()
    """Another experiment: a run that has begun with one value cannot continue with the other."""
    EVALUATION = auto()
    """Other evaluations: results are not compared with those of another value."""
    ACTORS = auto()
    """Other actors: engines and learner ranks are built with it."""


NOTHING: Final = Effect.NOTHING
EXPERIMENT: Final = Effect.EXPERIMENT
EVALUATION: Final = Effect.EVALUATION
ACTORS: Final = Effect.ACTORS


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a field says of itself."""

    effect: Effect
    rule: Rule | None = None
    movable: bool = False
    """Whether a controller may move it (beside the floats among the options of losses and the like)."""


POSITIVE: Final = Rule(lambda value: value > 0, "must be above 0")
NOT_NEGATIVE: Final = Rule(lambda value: value >= 0, "must not be negative")
SHARE: Final = Rule(lambda value: 0 <= value <= 1, "must be between 0 and 1")
SHARE_ABOVE_ZERO: Final = Rule(lambda value: 0 < value <= 1, "must be above 0 and at most 1")
SHARE_BELOW_ONE: Final = Rule(lambda value: 0 <= value < 1, "must be at least 0 and below 1")
NOT_EMPTY: Final = Rule(lambda value: bool(value), "must not be empty")


def at_least(low: float) -> Rule:
    """`low` or more."""
    return Rule(lambda value: value >= low, f"must be at least {low:g}")


def one_of(*choices: str) -> Rule:
    """One of these texts."""
    return Rule(lambda value: value in choices, f"must be one of {', '.join(choices)}", choices)


def setting(default: T, effect: Effect, rule: Rule | None = None, *, movable: bool = False) -> T:
    """A field of a section: its default, what another value needs, and which values are right."""
    return field(default=default, metadata={_KEY: Setting(effect=effect, rule=rule, movable=movable)})


def entries(default: Callable[[], dict[str, Any]], effect: Effect) -> dict[str, Any]:
    """A field that holds an entry with a kind, or such entries by name; `default` makes its default."""
    return field(default_factory=default, metadata={_KEY: Setting(effect=effect)})


def option(default: T, rule: Rule | None = None, effect: Effect = EXPERIMENT) -> T:
    """An option of a kind: its default, which values are right, and what another value needs."""
    return field(default=default, metadata={_KEY: Setting(effect=effect, rule=rule)})


def options_of(cls: type) -> dict[str, Setting | None]:
    """The `Setting` of each field of an options class; None for a field without one."""
    return {item.name: item.metadata.get(_KEY) for item in fields(cls)}


def settings_of(cls: type, prefix: str = "") -> Iterator[tuple[str, Setting]]:
    """(dotted key, `Setting`) of every field of a config that is not a section.

    Raises:
        ValueError: a field has no `Setting`.
    """
    # The annotations are text (`from __future__ import annotations`); this gives the types.
    hints = get_type_hints(cls)
    for item in fields(cls):
        key, hint = f"{prefix}{item.name}", hints[item.name]
        if is_dataclass(hint):
            yield from settings_of(cast(type, hint), f"{key}.")
        elif _KEY in item.metadata:
            yield key, item.metadata[_KEY]
        else:
            raise ValueError(f"{key}: must be declared with `setting`, which has the effect of a change")
