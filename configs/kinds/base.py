"""A kind: a name a config may use, its options dataclass, and where its code lives ("module:attr").

Kinds are looked up in plain dicts (one file per role beside this one); a user's own is "module:attr" under a
prefix listed in `allow`. Importing a kind's table imports none of the code it points at.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from configs.errors import Broken, nearest, raised_at
from configs.origins import REFINED
from configs.schema import RunConfig


@dataclass
class Common:
    """Keys that an entry takes whatever its kind; a role may have more of them."""

    kind: str = ""
    """Name of a built-in kind, or your own "module:attr"."""

    def check(self) -> Iterator[Broken]:
        """(key, rule in words) for each value that is wrong beside the others."""
        return iter(())


class EntryView(Protocol):
    """What `Options.check_run` may read of an entry (`configs.bound.BoundEntry`)."""

    @property
    def kind_name(self) -> str: ...

    @property
    def kind(self) -> Kind: ...

    @property
    def common(self) -> Any: ...

    @property
    def options(self) -> Any: ...


class RunView(Protocol):
    """What `Options.check_run` may read of the run: a part of `configs.bound.BoundRun`."""

    @property
    def config(self) -> RunConfig: ...

    @property
    def single(self) -> Mapping[str, EntryView]: ...

    @property
    def advantage(self) -> EntryView: ...

    @property
    def losses(self) -> Mapping[str, EntryView]: ...

    @property
    def scorers(self) -> Mapping[str, EntryView]: ...

    @property
    def token_advantages(self) -> Mapping[str, EntryView]: ...


class Options:
    """What every dataclass of options can say of its values, beside the rule of each field."""

    def check(self) -> Iterator[Broken]:
        """(option, rule in words) for each value that is wrong beside the others."""
        return iter(())

    def check_run(self, key: str, run: RunView) -> Iterator[Broken]:
        """(dotted key, rule in words) for what cannot work with the rest of the run.

        `key` is the key of the entry with these options, such as ``advantage`` or ``loss.policy``.
        """
        return iter(())

    def own_code(self) -> Mapping[str, str]:
        """option -> the user's own "module:attr" that it names."""
        return {}

    def notes(self) -> Iterator[str]:
        """Scorers only: what a user must know of these options, noted and recorded before each run."""
        return iter(())

    def reads(self) -> Mapping[str, str]:
        """Scorers only: option -> the scorer that it names, whose judgements this one gets."""
        return {}

    def model_names(self) -> Mapping[str, str]:
        """option -> the frozen model under `models` that it names."""
        return {}

    def with_folders(self, folders: Mapping[str, Path]) -> Self:
        """Scorers only: these options once the folders of the models that they name are known, by name.

        Raises:
            ValueError: an option does not fit what is in a folder; the message begins with the option.
        """
        return self

    def with_model_ids(self, ids: Mapping[str, str]) -> Self:
        """Scorers only: these options once it is known which models the names stand for: name -> digest."""
        return self

    def model_tasks(self) -> Mapping[str, tuple[str, ...]]:
        """option of `models` -> the tasks that its model may have; any if the option is not in it."""
        return {}

    def row_fields(self) -> Mapping[str, str]:
        """Refiners only: option -> the field of a dataset's row that it names; each has text there."""
        return {}

    def reads_tokens(self) -> bool:
        """Scorers only: whether a score depends on token ids, which a file of texts lacks."""
        return False

    def files(self) -> tuple[str, ...]:
        """Scorers, refiners and token advantages: paths of the files whose content decides rows or losses,
        after `Kind.start`. A run is not resumed if one has changed."""
        return ()

    def failure_limit(self) -> float:
        """Scorers only: the share of its recent scores that may be missing before the run stops."""
        return 1.0

    def for_replica(self, index: int, count: int) -> Options:
        """Scorers only: the options that replica `index` of `count` is built with."""
        return self


class ControllerOptions(Options):
    """What options of a controller say as well."""

    SETTING: ClassVar[str] = ""
    """The option that names the setting, where there is one."""
    BOUNDS: ClassVar[tuple[str, ...]] = ()
    """The options that say between which values a setting is moved."""

    def moves(self) -> Mapping[str, tuple[float, float]]:
        """dotted config key -> (lowest, highest value) of what is moved; none if `check` finds something."""
        raise NotImplementedError

    def watches(self) -> Mapping[str, str]:
        """option -> the metric that it names."""
        return {}


@dataclass
class OwnOptions(Options):
    """Options of a user's own "module:attr" kind, passed on unchanged."""

    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class OwnModelOptions(OwnOptions):
    """Options of a user's own kind that may call frozen models: scorers and rollouters."""

    models: dict[str, str] = field(default_factory=dict)
    """Name that your code uses -> the model of section `models`."""

    def model_names(self) -> Mapping[str, str]:
        return {f"models.{own}": name for own, name in self.models.items()}


@dataclass(frozen=True, slots=True)
class Kind:
    """`options` is a dataclass type: its fields are the kind's own config keys. `target` is "module:attr".

    The rest says what `configs.rules`, the learner and the scorers need to know of a kind, so that none of
    them knows kinds by name.
    """

    options: type[Options]
    target: str
    prepare: str = ""
    """Losses and token advantages: "module:attr" of the function that needs all rows of all ranks.

    Its table holds the learned tokens of the loss's origin (of policy, for a token advantage), ordered by
    sample_id and position: those two, token_ids, origin, weight, advantage, draw (a uniform number in [0, 1)
    of each token's own), policy_logprobs and policy_entropy (of the weights that the update starts from),
    behavior_logprobs and what else was scored: proximal_logprobs, entropy, ref_logprobs. A loss sees the
    advantages as they are before all token-advantage transforms, a transform as those before it make them.
    It returns columns of the same length, or a `trainer.losses.batch_statistics.Prepared`.
    """
    start: str = ""
    """Token advantages and scorers: "module:attr" of options -> options, called before anything starts.

    It raises ValueError if what the options name cannot be used, and makes relative paths absolute.
    """
    supervised: bool = False
    """Losses only: it needs neither advantages nor a sampler, so that it can train demonstrations."""
    needs_ratios: bool = False
    """Losses only: it differs from ppo_clip only where ratios are not 1."""
    in_proportion: bool = True
    """Losses only: a token's gradient is proportional to its advantage."""
    masks: bool = False
    """Token advantages only: it scales or drops a token's gradient, so the loss must be `in_proportion`."""
    compares_siblings: bool = False
    """Advantages and bonuses only: it compares a row with those of its group, so one alone gets nothing."""
    counts_tags: bool = False
    """Bonuses only: it needs the counts of earlier samples by the value of its option `tag`."""
    needs_answers: bool = True
    """Bonuses and prompt weights only: it counts answers, which a scorer must read."""
    only_success: bool = False
    """Advantages only: it uses only whether a reward is a success."""
    reference: bool = False
    """Reward shapes only: it needs the reference's logprobs, which the learner then scores."""
    needs_verdicts: bool = False
    """Reward shapes only: it needs a scorer that says which answers are right."""
    answers: bool = False
    """Scorers only: it can say which answer a text gives and whether it is right."""
    needs_answer: bool = False
    """Scorers only: its score is null for a prompt without an answer that it can read."""
    outcomes: bool = False
    """Scorers only: it runs programs and stores the text ``outcomes``, one word for each test."""
    partitions: bool = False
    """Scorers only: it puts the completions of a group into classes (`Judgement.partition`)."""
    isolated: bool = False
    """Scorers only: code we cannot trust to end, run one sample at a time in processes that can be killed.

    Its options have `limit_s` (per sample) and `num_processes`.
    """
    warm_up: str = ""
    """Isolated scorers only: "module:attr" of what their processes run once, as ``fn(options)``."""
    reports: bool = False
    """Scorers only: its class has `take_report`; see `rewards.scorer_reports`."""
    tags: tuple[str, ...] = ()
    """Scorers only: names of the tags it gives, which no other scorer of a run may give."""
    adds: str = REFINED
    """Refiners only: the origin of the rows that it adds; a user's own may add others."""
    taught: bool = False
    """Losses only: it needs the scores of a teacher, so its rows must be of an origin that is taught."""
    other_tags: tuple[str, ...] = ()
    """Scorers only: names of tags it gives that others may give too; see `rewards.combine`."""


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
        # The path shows when another module of the same name was found first.
        place = getattr(module, "__file__", None) or "built in"
        reason = f"module {module_name!r} ({place}) has no attribute {attribute!r}"
        raise TargetError(f"{rule}: {reason}{_hint(attribute, vars(module))}")
    return getattr(module, attribute)  # type: ignore[no-any-return]


def _why_not_imported(name: str, error: ImportError) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    # A missing module may be the one that is named, one of its parents, or one that it imports.
    if missing is None or not (name == missing or name.startswith(f"{missing}.")):
        # The module itself exists; something that it imports does not.
        return f"{raised_at(error, (__file__,))}: {type(error).__name__}: {error}"
    parent = missing.rpartition(".")[0]
    folders = list(sys.modules[parent].__path__) if parent else [os.getcwd()]
    names = [f"{parent}{'.' if parent else ''}{each.name}" for each in pkgutil.iter_modules(folders)]
    return f"there is no module {missing!r} in {folders[0]} or among what is installed{_hint(missing, names)}"


def _hint(name: str, valid: Iterable[str]) -> str:
    close = nearest(name, valid)
    return f" (did you mean {close}?)" if close else ""


def find_kind(table: Mapping[str, Kind], name: str, custom_options: type[Options]) -> Kind:
    """The kind called `name` in `table`, or the user's own "module:attr" with `custom_options`."""
    if ":" in name:
        return Kind(custom_options, name)
    return table[name]
