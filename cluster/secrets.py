"""Secrets of scorers: read from the driver's environment, and passed to no process but the scorer's own.

In: the names under `scorers.<name>.secrets`. Out: `Secrets` for the scorer's actors, or an error before
anything starts. docs/scorers.md describes where the values go, and which risks remain.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final

from actors.secrets import Secrets
from configs.schema import RunConfig

MIN_CHARS: Final = 6
"""Minimum length of a secret: logs are masked by searching for its value, so it must not be a common word."""


def secret_names(config: RunConfig) -> tuple[str, ...]:
    """The names of all environment variables that are secrets of a scorer, sorted."""
    return tuple(sorted({name for entry in config.scorers.values() for name in entry.get("secrets", ())}))


def secrets_of(config: RunConfig, scorer: str) -> Secrets:
    """The secrets of one scorer.

    Raises:
        ValueError: a variable is not set, or too short: the message names the key and the variable.
    """
    values = {name: os.environ.get(name, "") for name in config.scorers[scorer].get("secrets", ())}
    for name, value in values.items():
        if not value:
            raise ValueError(
                f"scorers.{scorer}.secrets: environment variable {name} is not set: "
                "export it before the run, or remove it from the list"
            )
        if len(value) < MIN_CHARS:
            raise ValueError(
                f"scorers.{scorer}.secrets: environment variable {name} must have at least {MIN_CHARS} "
                f"characters, got {len(value)}: so short a text cannot be kept out of logs"
            )
    return Secrets(values)


def check_secrets(config: RunConfig) -> None:
    """Check the secrets of all scorers.

    Raises:
        ValueError: as `secrets_of`, for any of them.
    """
    for scorer in config.scorers:
        secrets_of(config, scorer)


@contextmanager
def hidden(names: Collection[str]) -> Iterator[None]:
    """Take variables out of this process's environment, so that what is started meanwhile lacks them."""
    taken = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)
