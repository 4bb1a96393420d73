"""Removes secrets from a config before it is written or printed.

In: plain containers (dict, list, tuple, scalars). Out: the same shape with `***` in place of secrets. Called
by `configs.load` for the config that a run keeps and for its hash, and by `configs.errors` for what it shows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping

MASK = "***"
MIN_SECRET_CHARS = 6
"""Shorter values of secret-looking environment variables are left alone: they would match by accident."""
SECRET_WORDS = frozenset(
    {"token", "key", "keys", "secret", "secrets", "password", "passwords", "passwd", "pwd", "passphrase"}
    | {"credential", "credentials", "apikey", "bearer"}
)
_URL_CREDENTIALS = re.compile(r"(\w://)[^/@\s]+@")
WORKING_FOLDERS = frozenset({"PWD", "OLDPWD"})
"""Variables of every shell whose names look like passwords: masking their values would mask paths."""
NAMED = frozenset(
    {"scorers", "loss", "token_advantage", "controllers", "reward_shape", "bonus", "prompt_weight", "models"}
    | {"bands", "actuators", "changes"}
)
"""Keys under which names that a user chose lead to mappings: a band called `token` is no secret."""
VARIABLE_NAME = re.compile(r"[A-Z_][A-Z0-9_]*|[a-z]+_proxy")
"""Environment variables that a scorer may name as its secrets; values rarely look like this."""
VARIABLES_OF_SCORER = frozenset({"secrets", "api_key"})
"""Keys of a scorer that hold names of environment variables, not their values."""
TEXT_ONLY_WORDS = frozenset({"tokens"})
"""`max_tokens: 40` is a length, `api_tokens: [abc]` is not: under these words only text is a secret."""


def is_secret_name(name: str) -> bool:
    """Whether a key or an environment variable is called like a secret, such as `apiKey` or `HF_TOKEN`.

    A section of the schema is none, whatever it is called (`token_advantage`).
    """
    return name not in NAMED and not SECRET_WORDS.isdisjoint(_words(name))


def redact(container: object) -> object:
    """A copy with `***` in place of secrets. Containers keep their shape.

    A secret is the value of a key with a secret's name, or the value of an environment variable that looks
    like a secret or that a scorer declares as one, also inside longer text such as a URL.
    """
    return _redact(container, _environment_secrets(_declared(container)))


def redact_value(key: str, value: object) -> object:
    """`redact` for the value of the dotted `key`."""
    *parts, last = key.split(".")
    if len(parts) == 2 and parts[0] == "scorers" and last in VARIABLES_OF_SCORER:
        return _scorer_variables(last, value, _environment_secrets())
    names = [part for above, part in zip(["", *parts], parts, strict=False) if above not in NAMED]
    if any(is_secret_name(part) for part in (*names, last)):
        return _mask(value, text_only=False)
    redacted = redact({key.rpartition(".")[2]: value})
    assert isinstance(redacted, dict), "redact keeps the shape of its argument"
    return redacted[key.rpartition(".")[2]]


def redact_text(text: str) -> str:
    """The text with the values of secret-looking environment variables masked."""
    for secret in _environment_secrets():
        text = text.replace(secret, MASK)
    return _URL_CREDENTIALS.sub(rf"\1{MASK}@", text)


def _words(name: str) -> list[str]:
    split_camel = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return [word for word in re.split(r"[^a-z0-9]+", split_camel.lower()) if word]


def _declared(container: object) -> list[str]:
    """The environment variables that the scorers of a config have as secrets."""
    scorers = container.get("scorers") if isinstance(container, Mapping) else None
    entries = scorers.values() if isinstance(scorers, Mapping) else ()
    lists = [entry.get("secrets") for entry in entries if isinstance(entry, Mapping)]
    return [name for names in lists if isinstance(names, list | tuple) for name in names]


def _variable_names(value: object) -> object:
    """The value of a scorer's `secrets`: names of variables are kept, anything else may be a secret."""
    if not isinstance(value, list | tuple):
        return _mask(value, text_only=False)
    return [
        # The list has names of variables. Who puts the secret itself there by mistake must not find it in a
        # log.
        name if isinstance(name, str) and VARIABLE_NAME.fullmatch(name) else _mask(name, text_only=False)
        for name in value
    ]


def _environment_secrets(declared: Collection[str] = ()) -> tuple[str, ...]:
    values = {
        value
        for name, value in os.environ.items()
        if name in declared or (is_secret_name(name) and name not in WORKING_FOLDERS)
        if len(value) >= MIN_SECRET_CHARS
    }
    # The longest first: a secret that contains another must be masked as a whole.
    return tuple(sorted(values, key=lambda value: (-len(value), value)))


def _redact(value: object, secrets: tuple[str, ...], key: str = "") -> object:
    """`value`, which is under `key`, without secrets."""
    if isinstance(value, Mapping):
        return {
            name: _redact_named(key, str(name), item, secrets)
            if key in NAMED and isinstance(item, Mapping)
            else _redact_entry(str(name), item, secrets)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_redact(item, secrets) for item in value]
    if isinstance(value, tuple):
        return tuple(_redact(item, secrets) for item in value)
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, MASK)
        return _URL_CREDENTIALS.sub(rf"\1{MASK}@", value)
    return value


def _redact_named(section: str, name: str, entry: Mapping[str, object], secrets: tuple[str, ...]) -> object:
    """An entry under a name of the user's choice."""
    redacted = _redact(entry, secrets, name)
    if section == "scorers":
        assert isinstance(redacted, dict), "a mapping stays one"
        for key in VARIABLES_OF_SCORER & entry.keys():
            redacted[key] = _scorer_variables(key, entry[key], secrets)
    if section == "scorers" and isinstance(entry.get("schema"), Mapping):
        # A JSON Schema says how keys are called; masked, it would be another schema.
        assert isinstance(redacted, dict), "a mapping stays one"
        redacted["schema"] = _redact_texts(entry["schema"], secrets)
    return redacted


def _scorer_variables(key: str, value: object, secrets: tuple[str, ...]) -> object:
    """What a scorer has under a key of `VARIABLES_OF_SCORER`."""
    if key == "secrets":
        return _variable_names(value)
    # Who puts the key itself there by mistake must not find it in a log: a key may consist of capitals, so
    # only what is a variable, or called like one with a secret, is shown.
    is_name = isinstance(value, str) and VARIABLE_NAME.fullmatch(value) and value not in secrets
    is_shown = is_name and (str(value) in os.environ or is_secret_name(str(value)))
    return value if is_shown else _mask(value, text_only=False)


def _redact_texts(value: object, secrets: tuple[str, ...]) -> object:
    """Masked are the values of secret variables alone, whatever the keys are called."""
    if isinstance(value, Mapping):
        return {name: _redact_texts(item, secrets) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redact_texts(item, secrets) for item in value]
    return _redact(value, secrets)


def _redact_entry(name: str, value: object, secrets: tuple[str, ...]) -> object:
    if is_secret_name(name):
        return _mask(value, text_only=False)
    if not TEXT_ONLY_WORDS.isdisjoint(_words(name)):
        return _mask(value, text_only=True)
    return _redact(value, secrets, name)


def _mask(value: object, text_only: bool) -> object:
    """Every leaf masked; null and booleans say nothing and stay."""
    if isinstance(value, Mapping):
        return {name: _mask(item, text_only) for name, item in value.items()}
    if isinstance(value, list):
        return [_mask(item, text_only) for item in value]
    if isinstance(value, tuple):
        return tuple(_mask(item, text_only) for item in value)
    if value is None or isinstance(value, bool) or value == "" or (text_only and not isinstance(value, str)):
        return value
    return MASK
