"""The user's own code, tried before anything starts: imported in a killable process, its files hashed.

In: a config. Out: the digests of the modules that decide what is trained, or one ValueError with every name
that cannot be used. Called by `cluster.train`.
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
"""Entries whose outcome, the prompts and demonstrations, is hashed instead of their code."""


@dataclass(frozen=True, slots=True)
class UserCode:
    """The user's own modules that decide what a run trains: name -> sha256, and name -> file."""

    digests: Mapping[str, str]
    files: Mapping[str, str]


NO_CODE: Final = UserCode({}, {})


def own_targets(config: RunConfig) -> dict[str, str]:
    """Dotted key -> "module:attr" of everything in a config that is the user's own."""
    return {
        f"{entry.key}.{name}": target
        for entry in bind(config).entries()
        for name, target in entry.own_code().items()
    }


def check_user_code(
    config: RunConfig, note: Callable[[str], None], sections: tuple[str, ...] = ("",)
) -> UserCode:
    """Import all of it under `sections`, each in a process of its own, and hash the files it was loaded from.

    Raises:
        ValueError: something cannot be imported, or not within a limit: a line each, with the nearest name.
    """
    targets = {key: target for key, target in own_targets(config).items() if key.startswith(sections)}
    if not targets:
        return NO_CODE
    secrets: dict[str, Secrets] = {}
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
