"""What is said about a config that cannot be used: file, key, value, rule and nearest name, a line each.

In: problems found by `configs.sources`, `configs.entries`, `configs.load` and `configs.rules`. Out:
`ConfigError`, which the command line prints and turns into exit code 2.
"""

from __future__ import annotations

import difflib
import os
import sysconfig
import traceback
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from configs.redact import redact_text, redact_value

COMMAND_LINE = "command line"
MAX_VALUE_CHARS = 80
NO_VALUE: Final = object()
"""Of a problem whose value says nothing."""


Broken = tuple[str, str]
"""(dotted key, rule in words)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """`source` is a file or "command line"; an empty `key` means all of it (then `value` is not shown)."""

    source: str
    key: str
    value: object = NO_VALUE
    rule: str
    suggestion: str = ""

    def __str__(self) -> str:
        shown = self._shown_value() if self.key else ""
        # The beginning of a mapping says nothing.
        is_shown = self.value is not NO_VALUE and not (
            isinstance(self.value, Mapping) and shown.endswith("...")
        )
        value = f" = {shown}" if is_shown else ""
        where = f"{self.source}: {self.key}{value}" if self.key else self.source
        hint = f" (did you mean {self.suggestion}?)" if self.suggestion else ""
        line = redact_text(f"{where}: {self.rule}{hint}")  # a library's message may quote a value
        return " ".join(line.split())

    def _shown_value(self) -> str:
        value = redact_value(self.key, self.value)
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
        return shown if len(shown) <= MAX_VALUE_CHARS else shown[: MAX_VALUE_CHARS - 3] + "..."


class ConfigError(ValueError):
    """A config that cannot be used. The message has one line per problem; `problems` holds the records."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems, "a ConfigError needs a problem"
        self.problems = tuple(problems)
        # Two rules may find the same fault; it is said once.
        super().__init__("\n".join(dict.fromkeys(str(problem) for problem in problems)))


def raise_if_any(problems: Sequence[Problem]) -> None:
    """Nothing, or a `ConfigError` when there is at least one problem."""
    if problems:
        raise ConfigError(problems)


def nearest(name: str, valid: Iterable[str]) -> str:
    """The valid name closest to `name`, or "" when none is close."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return close[0] if close else ""


def nearest_key(key: str, valid: Iterable[str]) -> str:
    """The valid dotted key closest to `key`: one with the same last part, else a sibling, else any."""
    keys = list(valid)
    section, _, leaf = key.rpartition(".")
    # Most wrong keys have the right name in the wrong section.
    same_leaf = [other for other in keys if other.rpartition(".")[2] == leaf]
    if same_leaf:
        return nearest(key, same_leaf) or same_leaf[0]
    siblings = {other.rpartition(".")[2]: other for other in keys if other.rpartition(".")[0] == section}
    return siblings.get(nearest(leaf, siblings), "") or nearest(key, keys)


def raised_at(error: BaseException, skip: Collection[str] = ()) -> str:
    """Where in a user's code an exception comes from: "my_rewards.py:12 in compute_score"; "" if unknown.

    That is the innermost frame outside of the standard library, of installed packages and of the files in
    `skip`.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{_short_path(error.filename)}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    # The last frame is often inside a library that the user only called.
    own = [frame for frame in frames if not _is_library(frame.filename) and frame.filename not in skip]
    if not (own or frames):
        return ""
    frame = (own or frames)[-1]
    return f"{_short_path(frame.filename)}:{frame.lineno} in {frame.name}"


def traceback_of(error: BaseException, skip: Collection[str] = ()) -> str:
    """The traceback from the user's own frame on: without first frames that are of the files in `skip`."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename in skip:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))


def _is_library(path: str) -> bool:
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return path.startswith("<") or any(path.startswith(f"{folder}{os.sep}") for folder in folders)


def _short_path(path: str) -> str:
    """Relative to the working directory where it is below it."""
    here = os.getcwd() + os.sep
    return path.removeprefix(here)
