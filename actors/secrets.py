"""Secrets of one scorer: environment variables for its process, masked in its output.

The driver passes a `Secrets` to the constructor of the scorer's actor, which passes it on through the pipe of
its sandbox; never on a command line or in a file. Imports only the standard library.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MASK = "***"


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """Variable name -> value. Its repr has only the names."""

    values: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Secrets({', '.join(self.values)})"

    def __or__(self, other: Secrets) -> Secrets:
        """The secrets of both; for a name in both, the value of `other`."""
        return Secrets({**self.values, **other.values})

    def enter_environment(self) -> None:
        """Set the variables in this process."""
        os.environ.update(self.values)

    def mask(self, text: str) -> str:
        """The text with `***` in place of each value."""
        # Longest first: a value may be part of a longer one, the rest of which would stay readable.
        for value in sorted(self.values.values(), key=len, reverse=True):
            text = text.replace(value, MASK)
        return text

    def mask_output(self) -> None:
        """Mask all that this process writes to sys.stdout and sys.stderr from now on, logging included.

        Output of C code, which writes to the file descriptors, is not masked.
        """
        if self.values:
            sys.stdout, sys.stderr = _MaskedStream(sys.stdout, self), _MaskedStream(sys.stderr, self)


NO_SECRETS = Secrets()


class _MaskedStream:
    """A text stream that masks what is written to it."""

    def __init__(self, stream: Any, secrets: Secrets) -> None:
        self._stream, self._secrets = stream, secrets

    def write(self, text: str) -> int:
        self._stream.write(self._secrets.mask(text))
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
