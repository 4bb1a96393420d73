"""Checks of the user's own code before anything starts: import it in a killable process, hash its files.

In: a bound run. Out: the digests of the modules that decide what is trained, or one ValueError that lists
every target that cannot be imported. Called by `cluster.checks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from actors.sandbox import TargetUse, import_targets
from actors.secrets import NO_SECRETS, Secrets
from actors.user_calls import UserCall, custom_call, scorer_call
from cluster.secrets import secrets_of
from configs.bound import BoundEntry, BoundRun
from configs.kinds.refiners import CriticOptions
from configs.kinds.scorers import CustomOptions

_OF_ROWS: Final = UserCall(("rows", "options"))
_CALLS: Final = {
    "data": UserCall(("options",)),
    "sft": UserCall(("options",)),
    "loss": UserCall(("inputs", "options")),
    "token_advantage": UserCall(("inputs", "options")),
    "advantage": _OF_ROWS,
    "bonus": _OF_ROWS,
    "prompt_weight": _OF_ROWS,
    "reward_shape": _OF_ROWS,
    "controllers": UserCall(("options",)),
    "rollouter": UserCall(("submission", "tools", "options")),
    "refiner": UserCall(("group", "tools", "options")),
    "scorers": scorer_call(),
}
"""How a user's own kind is called, by the first part of its key."""
_HASHED_OTHERWISE = ("data.", "sft.data")
"""Entries whose code is not hashed, because the prompts and demonstrations that it returns are."""


@dataclass(frozen=True, slots=True)
class UserCode:
    """The user's own modules that decide what a run trains.

    `digests` maps a module's name to the sha256 of its file, `files` maps it to the file's path.
    """

    digests: Mapping[str, str]
    files: Mapping[str, str]
    in_actor: frozenset[str] = frozenset()
    """Targets of scorers that run in the scorer's own process, not in a sandbox: async, classes, batched."""


NO_CODE: Final = UserCode({}, {})


def own_targets(run: BoundRun) -> dict[str, str]:
    """The user's own functions that a run names: dotted key -> "module:attr"."""
    return {
        f"{entry.key}.{name}": target for entry in run.entries() for name, target in entry.own_code().items()
    }


def _calls(run: BoundRun) -> dict[str, UserCall]:
    """Dotted key -> how it is called, of everything in `own_targets`."""
    return {
        f"{entry.key}.{name}": _call_of(entry, name) for entry in run.entries() for name in entry.own_code()
    }


def _call_of(entry: BoundEntry[Any], name: str) -> UserCall:
    if name == "kind" and entry.key.startswith("scorers.") and entry.options.model_names():
        return scorer_call(with_models=True)
    if name == "kind":
        return _CALLS[entry.key.partition(".")[0]]
    if isinstance(entry.options, CriticOptions):
        return UserCall(("prompt", "text"))
    assert isinstance(entry.options, CustomOptions), "no other kind names a function"
    return custom_call(tuple(entry.options.options))


def check_user_code(
    run: BoundRun, note: Callable[[str], None], sections: tuple[str, ...] = ("",)
) -> UserCode:
    """Import the user's functions whose keys begin with one of `sections`, and hash the modules' files.

    Each function is imported in its own process. `note` receives what is worth a line in the log.

    Raises:
        ValueError: a function cannot be imported, not within the time limit, or does not take the arguments
            that it will get. One line for each, with the most similar name that exists.
    """
    targets = {key: target for key, target in own_targets(run).items() if key.startswith(sections)}
    if not targets:
        return NO_CODE
    calls, config = _calls(run), run.config
    uses: dict[str, TargetUse] = {key: (target, calls[key]) for key, target in targets.items()}
    secrets: dict[TargetUse, Secrets] = {}
    # A module may read its scorer's secrets while it is imported, so the trial import must have them too.
    for key, use in uses.items():
        section, _, name = key.rpartition(".")[0].partition(".")
        of_target = secrets.get(use, NO_SECRETS)
        # One process imports a target for all scorers that use it, and so has the secrets of all of them.
        secrets[use] = of_target | secrets_of(config, name) if section == "scorers" else of_target
    imported = import_targets(secrets, config.allow, note)
    problems = [
        f"{key} = {target!r}: {imported[uses[key]].problem.removeprefix(f'target {target!r} ')}"
        for key, target in targets.items()
        if imported[uses[key]].problem
    ]
    if problems:
        raise ValueError("\n".join(problems))
    modules: dict[str, tuple[str, str]] = {}
    for key, use in uses.items():
        if not key.startswith(_HASHED_OTHERWISE):
            modules |= imported[use].modules
    return UserCode(
        digests={name: digest for name, (_, digest) in sorted(modules.items())},
        files={name: path for name, (path, _) in modules.items()},
        in_actor=frozenset(target for key, target in targets.items() if imported[uses[key]].in_actor),
    )
