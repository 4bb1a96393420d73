"""A run's config with every entry bound: its options as a dataclass, its kind beside them.

In: a complete `RunConfig`. Out: a `BoundRun`, made once before anything starts and passed to driver and ranks
alike; it pickles, because a kind names its code as text. Called by `configs.rules`, `cluster` and tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from operator import attrgetter
from typing import Any, Generic, TypeVar

from configs.entries import NAMED_ENTRIES, SINGLE_ENTRIES, NoCommon, typed, with_value
from configs.fields import settings_of
from configs.kinds.base import Common, Kind, load_target
from configs.kinds.losses import LossCommon
from configs.kinds.models import ModelOptions
from configs.kinds.scorers import ScorerCommon
from configs.origins import REFINED
from configs.schema import RunConfig

MOVABLE = tuple(sorted(key for key, setting in settings_of(RunConfig) if setting.movable))
"""The settings outside of entries that a controller may move."""
CommonT = TypeVar("CommonT", bound=Common | NoCommon)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundEntry(Generic[CommonT]):
    """One entry of a config: its dotted key, its kind and its options."""

    key: str
    common: CommonT
    options: Any
    """The options dataclass of the kind; `configs.kinds.base.OwnOptions` for a user's own."""
    kind: Kind

    @property
    def kind_name(self) -> str:
        """The kind as the config calls it; "" where entries have none."""
        return self.common.kind if isinstance(self.common, Common) else ""

    @property
    def is_own(self) -> bool:
        """Whether the kind is the user's own code."""
        return ":" in self.kind_name

    def own_code(self) -> dict[str, str]:
        """key within the entry -> the user's own "module:attr" there."""
        return ({"kind": self.kind_name} if self.is_own else {}) | dict(self.options.own_code())

    def function(self) -> Callable[..., Any]:
        """The code behind the kind."""
        return load_target(self.kind.target)

    def moved(self, option: str, value: float) -> BoundEntry[CommonT]:
        """The same with another number as `option`.

        Raises:
            ValueError: the kind has no such option.
        """
        if option not in {item.name for item in fields(self.options)}:
            raise ValueError(f"{self.key}.{option}: must be an option of {self.kind_name}")
        return replace(self, options=replace(self.options, **{option: value}))


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundRun:
    """A run's sections (`config`) and its entries. Read entries here: in `config` they are plain dicts."""

    config: RunConfig
    named: Mapping[str, Mapping[str, BoundEntry[Any]]]
    """Section -> name -> entry, in the order of the config."""
    single: Mapping[str, BoundEntry[Any]]
    """Dotted key -> entry."""

    @property
    def advantage(self) -> BoundEntry[Common]:
        return self.single["advantage"]

    @property
    def rollouter(self) -> BoundEntry[Common]:
        return self.single["rollouter"]

    @property
    def refiner(self) -> BoundEntry[Common]:
        return self.single["refiner"]

    @property
    def joins_refined(self) -> bool:
        """Whether refined rows are compared with the policy rows of their group as one group."""
        return getattr(self.refiner.options, "baseline", "joined") == "joined"

    @property
    def right_at(self) -> float | None:
        """The lowest reward that a refiner holds for right; None if it adds no answers."""
        if self.refiner.kind.adds != REFINED:
            return None
        return float(getattr(self.refiner.options, "threshold", 0.5))

    def taught_losses(self) -> Mapping[str, BoundEntry[LossCommon]]:
        """The losses that need a teacher, by origin."""
        return {origin: loss for origin, loss in self.losses.items() if loss.kind.taught}

    @property
    def losses(self) -> Mapping[str, BoundEntry[LossCommon]]:
        """By origin."""
        return self.named["loss"]

    @property
    def scorers(self) -> Mapping[str, BoundEntry[ScorerCommon]]:
        return self.named["scorers"]

    @property
    def token_advantages(self) -> Mapping[str, BoundEntry[Common]]:
        return self.named["token_advantage"]

    @property
    def controllers(self) -> Mapping[str, BoundEntry[Common]]:
        return self.named["controllers"]

    def scored_after(self) -> Mapping[str, tuple[str, ...]]:
        """Scorer -> the scorers whose judgements it gets, which therefore run before it."""
        return {
            name: tuple(dict.fromkeys((*entry.common.after, *entry.options.reads().values())))
            for name, entry in self.scorers.items()
        }

    @property
    def models(self) -> Mapping[str, ModelOptions]:
        """The frozen models, by name."""
        return {name: entry.options for name, entry in self.named["models"].items()}

    def used_models(self) -> set[str]:
        """Names of the models that some option names."""
        return {name for entry in self.entries() for name in entry.options.model_names().values()}

    def entries(self) -> Iterator[BoundEntry[Any]]:
        """All of them."""
        for section in self.named.values():
            yield from section.values()
        yield from self.single.values()

    def moved_settings(self) -> set[str]:
        """Dotted keys of everything that some controller moves."""
        return {key for entry in self.controllers.values() for key in entry.options.moves()}

    def is_anchored(self, section: str) -> bool:
        """Whether the KL anchor `kl` or `kl_base` (the section) acts, or a controller may make it act."""
        return getattr(self.config, section).coef > 0 or f"{section}.coef" in self.moved_settings()

    def needs_reference(self) -> bool:
        """Whether the reference's logprobs are needed: by the anchor `kl` or by a reward shape."""
        shapes = self.named["reward_shape"].values()
        return self.is_anchored("kl") or any(entry.kind.reference for entry in shapes)

    def with_settings(self, settings: Mapping[str, float]) -> BoundRun:
        """The run with numbers that controllers moved, by dotted config key.

        Raises:
            ValueError: a key names no number of the run.
        """
        moved = self
        for key, value in settings.items():
            section, _, rest = key.partition(".")
            name, _, option = rest.partition(".")
            if section in self.named:
                if name not in moved.named[section]:
                    raise ValueError(f"{key}: must name an entry under {section}")
                entries = {**moved.named[section], name: moved.named[section][name].moved(option, value)}
                moved = replace(moved, named={**moved.named, section: entries})
            elif key not in MOVABLE:
                raise ValueError(f"{key}: must be a number that controllers can move")
            else:
                moved = replace(moved, config=with_value(moved.config, key, value))
        return moved


def bind(config: RunConfig) -> BoundRun:
    """Bind every entry of a config.

    Raises:
        ConfigError: an entry has an unknown kind or key, or a value of the wrong type.
    """
    return BoundRun(
        config=config,
        named={
            section: {
                name: bind_entry(entry, f"{section}.{name}")
                for name, entry in getattr(config, section).items()
            }
            for section in NAMED_ENTRIES
        },
        single={key: bind_entry(attrgetter(key)(config), key) for key in SINGLE_ENTRIES},
    )


def started(run: BoundRun, section: str) -> BoundRun:
    """The run after the `start` of each kind in a section: files are checked, paths are absolute.

    Raises:
        ValueError: a file cannot be used; the message names the entry.
    """
    # `config` has the plain entries, which the run directory keeps.
    plain, bound = dict(getattr(run.config, section)), dict(run.named[section])
    for name, entry in run.named[section].items():
        if entry.kind.start:
            try:
                options = load_target(entry.kind.start)(entry.options)
            except ValueError as error:
                raise ValueError(f"{entry.key}: {error}") from error
            # Both forms change together: ranks get the bound one, the config that is saved is made of the
            # plain one.
            bound[name] = replace(entry, options=options)
            plain[name] = {**plain[name], **asdict(options)}
    config = with_value(run.config, section, plain)
    return replace(run, config=config, named={**run.named, section: bound})


def bind_entry(entry: Mapping[str, object], key: str) -> BoundEntry[Any]:
    """The entry that stands at the dotted `key`; raises like `bind`."""
    common, options, kind = typed(entry, key)
    return BoundEntry(key=key, common=common, options=options, kind=kind)
