"""Loads a program as a module and calls its functions when asked. Runs inside the sandbox.

``serve.py FOLDER LIMITS``. Requests are lines of ``FOLDER/requests``, or of descriptor 4 if there is no such
file. A reply to each goes to descriptor 3, after one that says whether the program could be loaded. The
scorer compares what comes back: nothing in this process knows which result is right. Mappings with the one
key "handle" stand for objects that are not plain data, which stay here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from typing import Any

_here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, _here)
import limits  # type: ignore[import-not-found]  # noqa: E402
import wire  # type: ignore[import-not-found]  # noqa: E402

sys.path.remove(_here)
REPLY_FD, REQUEST_FD = 3, 4
_MESSAGE_CHARS = 300
_MAX_LISTED = 100_000


class Handles:
    """Objects that a test holds by a number. Only tests that ask for them step by step get any."""

    def __init__(self, allowed: bool) -> None:
        self._allowed = allowed
        self._objects: list[Any] = []

    def out(self, value: Any) -> object:
        """`value` as the wire takes it."""
        try:
            return {"ok": wire.pack(value)}
        except wire.NotPlainError as error:
            if not self._allowed:
                raise TypeError(f"the result must be plain data, got {error}") from None
            self._objects.append(value)
            return {"handle": len(self._objects) - 1}

    def back(self, value: Any) -> Any:
        """What the test has sent, with its objects in the place of their numbers."""
        if isinstance(value, Handle):
            return self._objects[value.number]
        if isinstance(value, list):
            return [self.back(each) for each in value]
        if isinstance(value, tuple):
            return tuple(self.back(each) for each in value)
        return {key: self.back(each) for key, each in value.items()} if isinstance(value, dict) else value


class Handle:
    """The number of an object in `Handles`."""

    def __init__(self, number: int) -> None:
        self.number = number


def _load(path: str) -> tuple[Any, dict[str, str]]:
    """The program as a module, and why it could not be loaded ({} if it was)."""
    module = type(sys)("program")
    try:
        with open(path, "rb") as file:
            # Compiled apart, to tell a program that is not Python from one that fails.
            compile(file.read(), "main.py", "exec", dont_inherit=True)
    except BaseException as error:
        return module, {"problem": "compile_error", "message": _message(error)}
    sys.modules["program"] = module
    try:
        SourceFileLoader("program", path).exec_module(module)
    except BaseException as error:  # an exit too: a program that is not there cannot be called
        return module, {"problem": _kind(error), "message": _message(error)}
    return module, {}


def _kind(error: BaseException) -> str:
    return "memory" if isinstance(error, MemoryError) else "runtime_error"


def _message(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:_MESSAGE_CHARS]
    except BaseException:  # its own __str__
        return type(error).__name__


def _find(module: Any, name: str) -> Any:
    """A function, class or value of the program; else a method of its class ``Solution``, as LeetCode has."""
    if hasattr(module, name):
        return getattr(module, name)
    if hasattr(module, "Solution"):
        return getattr(module.Solution(), name)
    raise NameError(f"name {name!r} is not defined")


def _listed(value: Any) -> list[Any]:
    found = []
    for each in value:
        found.append(each)
        if len(found) > _MAX_LISTED:
            raise ValueError(f"more than {_MAX_LISTED} elements")
    return found


_ACTIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *args, **words: function(*args, **words),
    "get": lambda value: value,
    "attribute": lambda value, name: getattr(value, name),
    "item": lambda value, key: value[key],
    "contains": lambda value, key: key in value,
    "list": _listed,
    "length": len,
    "text": str,
}


def _answer(module: Any, handles: Handles, request: dict[str, Any]) -> dict[str, Any]:
    """Do what one request asks. `request` has an action, a target (a name or a Handle), args and words."""
    target, args, words = request["target"], request["args"], request["words"]
    try:
        subject = handles.back(target) if isinstance(target, Handle) else _find(module, target)
        given = [handles.back(each) for each in args]
        named = {key: handles.back(each) for key, each in words.items()}
        reply: dict[str, Any] = dict(handles.out(_ACTIONS[request["action"]](subject, *given, **named)))  # type: ignore[call-overload]
        if request.get("mutable"):
            reply["args"] = [_mutated(each) for each in given]
        return reply
    except BaseException as error:
        return {"error": [type(error).__name__, _message(error), _kind(error)]}


def _mutated(value: Any) -> object:
    """An argument after the call, where the function may have changed it."""
    try:
        return wire.pack(value) if isinstance(value, (list, dict, set, bytearray)) else None
    except wire.NotPlainError:
        return None


def _requests(folder: str) -> Iterator[str]:
    path = os.path.join(folder, "requests")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            yield from file
        return
    with open(REQUEST_FD, encoding="utf-8", closefd=False) as pipe:
        yield from pipe


def read_request(line: str) -> dict[str, Any]:
    """A request of `rewards.code.inside.check` or of the scorer, which are trusted."""

    fields = json.loads(line)
    target = fields["target"]
    return {
        **fields,
        "target": Handle(target["handle"]) if isinstance(target, dict) else target,
        "args": [_argument(each) for each in fields["args"]],
        "words": {key: _argument(each) for key, each in fields["words"].items()},
    }


def _argument(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"handle"}:
        return Handle(value["handle"])
    return wire.unpack(value)


def main() -> None:
    """Load, tell, then answer each request in turn."""

    folder, words = sys.argv[1], sys.argv[2]
    limits.apply(words)
    # Taken before the program runs, which may replace the functions of these modules.
    write, dumps, close = os.write, json.dumps, os._exit
    requests = _requests(folder)
    stepwise = not os.path.exists(os.path.join(folder, "requests"))
    sys.argv[:] = [os.path.join(folder, "main.py")]
    module, problem = _load(sys.argv[0])
    handles = Handles(stepwise)

    def send(reply: dict[str, Any]) -> None:
        rest = (dumps(reply, separators=(",", ":")) + "\n").encode("ascii")
        while rest:
            rest = rest[write(REPLY_FD, rest) :]

    send({"loaded": not problem, **problem})
    if not problem:
        for line in requests:
            send(_answer(module, handles, read_request(line)))
    # Without the handlers that the program may have registered for the exit.
    close(0)


if __name__ == "__main__":
    main()
