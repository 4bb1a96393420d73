"""Runs tests that are source against a program in another sandbox. Runs inside the sandbox.

``check.py FOLDER LIMITS``. The names that a test uses and does not define are looked up in the program: it is
asked over descriptors 5 (requests) and 4 (replies), and answers with plain data or the number of an object
that stays there. Such an object can be called and read, but never compared, so that no method of the program
decides a test. A verdict for each test goes to descriptor 3, which the program does not have.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import Any, NoReturn

_here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, _here)
import limits  # type: ignore[import-not-found]  # noqa: E402
import wire  # type: ignore[import-not-found]  # noqa: E402

sys.path.remove(_here)
VERDICT_FD, REPLY_FD, REQUEST_FD = 3, 4, 5
MAX_LINE = 1 << 22
MODULES = ("solution", "program", "main", "answer")
"""What a test may import the program as."""
_NEVER_RAISED = frozenset({"StopIteration", "StopAsyncIteration"})
"""They would end a loop of the test early, and so skip what it asserts."""


class ProgramGoneError(BaseException):
    """The program has ended or sent what is no reply. Not an Exception: a test must not catch it."""


class ProgramError(Exception):
    """An exception of the program whose type the test cannot know."""


class Link:
    """The program in the other sandbox."""

    def __init__(self, in_place: bool) -> None:
        self._replies = open(REPLY_FD, "rb", closefd=False)  # noqa: SIM115
        self._in_place = in_place
        self.num_called, self.failure, self.error_kind = 0, "", "runtime_error"

    def read(self) -> dict[str, Any]:
        """The next reply."""
        line = self._replies.readline(MAX_LINE)
        try:
            found = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            found = None
        return found if isinstance(found, dict) else self._gone()

    def ask(self, action: str, target: object, *args: Any, **words: Any) -> Any:
        """The result of an action, or the program's exception."""
        if self.failure:
            self._gone()
        packed = [_argument(each) for each in args]
        named = {key: _argument(each) for key, each in words.items()}
        request = {
            "action": action,
            "target": target,
            "args": packed,
            "words": named,
            "mutable": self._in_place,
        }
        rest = (json.dumps(request) + "\n").encode("ascii")
        self.num_called += action != "get"
        try:
            while rest:
                rest = rest[os.write(REQUEST_FD, rest) :]
        except OSError:
            self._gone()
        return self._result(self.read(), args)

    def _result(self, reply: dict[str, Any], args: tuple[Any, ...]) -> Any:
        try:
            if "error" in reply:
                name, message, self.error_kind = (str(part) for part in reply["error"])
                raise _exception(name, message)
            if self._in_place and isinstance(reply.get("args"), list):
                for given, after in zip(args, reply["args"], strict=False):
                    _change(given, None if after is None else wire.unpack(after))
            if "handle" in reply:
                return Remote(self, int(reply["handle"]))
            return wire.unpack(reply["ok"])
        except (wire.NotPlainError, KeyError, ValueError, TypeError, RecursionError) as error:
            if "error" in reply and isinstance(error, (KeyError, ValueError, TypeError, RecursionError)):
                raise
            self._gone()

    def _gone(self) -> NoReturn:
        self.failure = self.failure or "the program ended, or did not answer as it was asked"
        raise ProgramGoneError(self.failure)


class Remote:
    """An object of the program. Nothing that would let its own methods decide a comparison is passed on."""

    def __init__(self, link: Link, handle: int) -> None:
        self._link, self._target = link, {"handle": handle}

    def __call__(self, *args: Any, **words: Any) -> Any:
        return self._link.ask("call", self._target, *args, **words)

    def __getattr__(self, name: str) -> Any:
        # Python looks for such names itself, for copies and for pickling; the program must not answer.
        if name.startswith("__"):
            raise AttributeError(name)
        return self._link.ask("attribute", self._target, name)

    def __getitem__(self, key: Any) -> Any:
        return self._link.ask("item", self._target, key)

    def __contains__(self, key: Any) -> bool:
        return self._link.ask("contains", self._target, key) is True

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._link.ask("list", self._target)))

    def __len__(self) -> int:
        return int(self._link.ask("length", self._target))

    def __str__(self) -> str:
        return str(self._link.ask("text", self._target))

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("an object of the program must not be compared: only plain data can be")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse  # type: ignore[assignment]
    __bool__ = __hash__ = _refuse  # type: ignore[assignment]


class ProgramModule(ModuleType):
    """What ``import solution`` gives a test."""

    def __init__(self, name: str, link: Link) -> None:
        super().__init__(name)
        self.__dict__["_link"] = link

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _look_up(self.__dict__["_link"], name)


def _look_up(link: Link, name: str) -> Any:
    try:
        return link.ask("get", name)
    except NameError:
        raise AttributeError(f"the program has no {name!r}") from None


def _argument(value: Any) -> object:
    return value._target if isinstance(value, Remote) else wire.pack(value)


def _exception(name: str, message: str) -> Exception:
    kind = getattr(builtins, name, None)
    known = isinstance(kind, type) and issubclass(kind, Exception) and name not in _NEVER_RAISED
    if name in ("ImportError", "ModuleNotFoundError"):  # with no name it would count as the test's
        return ImportError(message, name=MODULES[0])
    if known and kind not in (UnicodeDecodeError, UnicodeEncodeError, UnicodeTranslateError, ExceptionGroup):
        return kind(message)  # type: ignore[no-any-return, misc]
    return ProgramError(f"{name}: {message}")


def _change(given: Any, after: Any) -> None:
    """Make a list, mapping, set or bytearray of the test what the program has made of it."""
    if type(given) is not type(after):
        return
    if isinstance(given, (list, bytearray)):
        given[:] = after
    elif isinstance(given, (dict, set)):
        given.clear()
        given.update(after)


def free_names(text: str, entry_point: str) -> list[str]:
    """Names that the test loads and does not bind: the program's. Built-in names are among them only if the
    test uses no other name of the program, or if `entry_point` is one."""
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    loaded = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    free = loaded - bound
    own = {name for name in free if not hasattr(builtins, name)}
    called = {
        node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    if entry_point in free:
        own.add(entry_point)
    imports_program = any(name in MODULES for name in _imported(nodes))
    return sorted(own if own or imports_program else free & called)


def _imported(nodes: list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _run(path: str, number: int, entry_point: str, link: Link) -> dict[str, object]:
    """The verdict of one test: passed, failed, or broken, which is the test's own fault.

    Only what no program can bring about makes a test broken: such rows get no score.
    """
    try:
        with open(path, encoding="utf-8") as file:
            names = free_names(file.read(), entry_point)
        module = ModuleType(f"test_{number}")
    except (SyntaxError, ValueError, RecursionError) as error:
        return {"outcome": "broken", "why": f"the test is not Python: {error}"}
    called, link.error_kind = link.num_called, "runtime_error"
    try:
        for name in names:
            _bind(module, name, link)
        SourceFileLoader(module.__name__, path).exec_module(module)
        _call_tests(module)
    except BaseException as error:
        return _failed(error, link, link.num_called > called)
    if link.failure:
        return {"outcome": "failed", "kind": "runtime_error", "why": link.failure}
    # A test that calls nothing would pass whatever the program is.
    if link.num_called == called:
        return {"outcome": "broken", "why": "the test never calls the program"}
    return {"outcome": "passed"}


def _call_tests(module: ModuleType) -> None:
    """Call the functions named test..., and run the cases of `unittest` if the module uses it."""
    for name, value in list(vars(module).items()):
        if isinstance(value, type) and "unittest" in sys.modules:
            _run_cases(value)
        elif name.startswith("test") and callable(value) and not isinstance(value, Remote):
            value()


def _run_cases(kind: type) -> None:
    import unittest

    if not issubclass(kind, unittest.TestCase) or kind is unittest.TestCase:
        return
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(kind).run(result)
    if not result.wasSuccessful():
        raise AssertionError([trace.splitlines()[-1] for _, trace in (*result.failures, *result.errors)])


def _bind(module: ModuleType, name: str, link: Link) -> None:
    try:
        setattr(module, name, link.ask("get", name))
    except Exception:  # the program lacks it: the test then has a NameError, unless it does not come that far
        return


def _failed(error: BaseException, link: Link, has_called: bool) -> dict[str, object]:
    name, said = type(error).__name__, str(error)
    # An exception of the program comes with its name.
    why = (said if said.startswith(f"{name}: ") else f"{name}: {said}")[:300]
    if isinstance(error, wire.WrongTypeError) and str(error) != Remote.__name__:
        return {"outcome": "broken", "why": f"the test passes what cannot be sent, a value of type {error}"}
    # A module that is not installed here is the fault of the test, not of the program.
    if isinstance(error, ImportError) and error.name not in MODULES and not has_called:
        return {"outcome": "broken", "why": why}
    kind = "wrong_answer" if isinstance(error, AssertionError) else link.error_kind
    return {"outcome": "failed", "kind": kind, "why": why}


def main() -> None:
    """Wait until the program is loaded, then run each test in turn."""
    folder, words = sys.argv[1], sys.argv[2]
    limits.apply(words)
    with open(os.path.join(folder, "job.json"), encoding="utf-8") as file:
        job = json.load(file)
    link = Link(job["in_place"])

    def tell(verdict: dict[str, object]) -> None:
        os.write(VERDICT_FD, (json.dumps(verdict) + "\n").encode("ascii"))

    try:
        loaded = link.read()
    except ProgramGoneError:
        loaded = {"loaded": False, "problem": "runtime_error"}
    said = {key: str(loaded.get(key, "")) for key in ("problem", "message")}
    tell({"loaded": loaded.get("loaded") is True, **said})
    if loaded.get("loaded") is not True:
        return
    for name in MODULES:
        sys.modules[name] = ProgramModule(name, link)
    for number in range(job["count"]):
        path = os.path.join(folder, f"test_{number}.py")
        tell({"test": number, **_run(path, number, job["entry_point"], link)})
        if link.failure:  # the tests that are left get a new start of the program
            return


if __name__ == "__main__":
    main()
