"""Checks of the user's own code before anything starts: import it in a killable process, hash its files.

In: a config. Out: the digests of the modules that decide what is trained, or one ValueError that lists every
target that cannot be imported. Called by `cluster.train`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from actors.sandbox import import_targets
from actors.secrets import NO_SECRETS, Secrets
from cluster.secrets import secrets_of
from configs.bound import bind
from configs.schema import RunConfig

_HASHED_OTHERWISE = ("data.", "sft.data")
"""Entries whose code is not hashed, because the prompts and demonstrations that it returns are."""


@dataclass(frozen=True, slots=True)
class UserCode:
    """The user's own modules that decide what a run trains.

    `digests` maps a module's name to the sha256 of its file, `files` maps it to the file's path.
    """

    digests: Mapping[str, str]
    files: Mapping[str, str]


NO_CODE: Final = UserCode({}, {})


def own_targets(config: RunConfig) -> dict[str, str]:
    """The user's own functions in a config: dotted key -> "module:attr"."""
    return {
        f"{entry.key}.{name}": target
        for entry in bind(config).entries()
        for name, target in entry.own_code().items()
    }


def check_user_code(
    config: RunConfig, note: Callable[[str], None], sections: tuple[str, ...] = ("",)
) -> UserCode:
    """Import the user's functions whose keys begin with one of `sections`, and hash the modules' files.

    Each function is imported in its own process. `note` receives what is worth a line in the log.

    Raises:
        ValueError: a function cannot be imported, or not within the time limit. One line for each, with the
            most similar name that exists.
    """
    targets = {key: target for key, target in own_targets(config).items() if key.startswith(sections)}
    if not targets:
        return NO_CODE
    secrets: dict[str, Secrets] = {}
    # A module may read its scorer's secrets while it is imported, so the trial import must have them too.
    for key, target in targets.items():
        section, _, name = key.rpartition(".")[0].partition(".")
        of_target = secrets.get(target, NO_SECRETS)
        secrets[target] = of_target | secrets_of(config, name) if section == "scorers" else of_target
    imported = import_targets(secrets, config.allow, note)
    problems = [
        f"{key} = {target!r}: {imported[target].problem.removeprefix(f'target {target!r} ')}"
        for key, target in targets.items()
        if imported[target].problem
    ]
    if problems:
        raise ValueError("\n".join(problems))
    modules: dict[str, tuple[str, str]] = {}
    for key, target in targets.items():
        if not key.startswith(_HASHED_OTHERWISE):
            modules |= imported[target].modules
    return UserCode(
        digests={name: digest for name, (_, digest) in sorted(modules.items())},
        files={name: path for name, (path, _) in modules.items()},
    )
