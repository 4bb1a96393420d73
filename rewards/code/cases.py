"""The tests of a prompt, whatever shape the dataset has them in. In: a `Prompt`. Out: a list of tests.

Shapes: APPS, PRIME and verl (``inputs``, ``outputs``, ``fn_name``), LiveCodeBench and DeepCoder (a list with
``input``, ``output``, ``testtype``), MBPP (``test_list``), HumanEval (``test``, ``entry_point``), AceCode and
KodCode (asserts or test functions as source). docs/scorers/code.md has an example of each.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rollouts.files import Json
from rollouts.records import Prompt


@dataclass(frozen=True, slots=True)
class StdinTest:
    """The program reads `stdin` and must write `stdout`."""

    stdin: str
    stdout: str


@dataclass(frozen=True, slots=True)
class CallTest:
    """``function(*args, **words)`` must equal `expected`.

    `loose`: a tuple equals a list with the same elements, and `expected` may be in a list, as in APPS.
    """

    function: str
    args: tuple[Any, ...]
    words: Mapping[str, Any]
    expected: Any
    loose: bool


@dataclass(frozen=True, slots=True)
class SourceTest:
    """Python source that calls the program and raises if it is wrong."""

    text: str
    entry_point: str = ""


Test = StdinTest | CallTest | SourceTest
_SOURCES: Final = ("assert", "asserts", "assert_case", "functional", "test", "tests", "test_list")
_FIELDS: Final = ("inputs", "outputs", *_SOURCES)
_NAMES: Final = ("fn_name", "function", "func_name", "entry_point")


def read_tests(prompt: Prompt) -> list[Test]:
    """The tests of a row: of its ground truth, or of the columns that MBPP and HumanEval have beside it.

    Raises:
        ValueError: there are none, or none of the known shapes; the message names the row.
    """
    where = prompt.place or f"prompt {prompt.prompt_id}"
    truth: Json = prompt.ground_truth if prompt.ground_truth is not None else prompt.answer
    if isinstance(truth, str):
        truth = _from_text(truth)
    beside = {key: value for key, value in prompt.extra.items() if key in (*_FIELDS, *_NAMES, *_SETUPS)}
    if isinstance(truth, dict):
        truth = {**beside, **truth}
    # Some datasets have the reference solution as the answer, and the tests in columns beside it.
    elif truth is None or not _has_tests(truth):
        truth = beside
    try:
        tests = list(_tests(truth, {key: str(value) for key, value in beside.items() if key in _NAMES}))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: tests must have one of the known shapes, got {_short(truth)}: {error}"
        ) from None
    if not tests:
        raise ValueError(f"{where}: ground truth must hold tests (docs/scorers/code.md), got {_short(truth)}")
    return tests


_SETUPS: Final = ("test_imports", "test_setup_code", "setup")


def _from_text(text: str) -> Json:
    try:
        found: Json = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, (dict, list)) else text


def _has_tests(truth: Json) -> bool:
    return isinstance(truth, list) or (isinstance(truth, str) and ("assert" in truth or "def test" in truth))


def _tests(truth: Any, names: Mapping[str, str]) -> Iterator[Test]:
    if isinstance(truth, str):
        yield from _from_source(truth, "", _name(names))
    elif isinstance(truth, list):
        for each in truth:
            yield from _from_source(each, "", _name(names)) if isinstance(each, str) else _one(each, names)
    elif "inputs" in truth:
        # All tests of such a row call one function, or all read standard input.
        name = _name(truth)
        for given, wanted in zip(truth["inputs"], truth["outputs"], strict=True):
            yield _pair(given, wanted, name)
    else:
        yield from _sources(truth, names)


def _sources(truth: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[Test]:
    setup = "\n".join(_lines(truth.get(key, "")) for key in _SETUPS).strip()
    name = _name(truth) or _name(names)
    for key in _SOURCES:
        found = truth.get(key)
        if isinstance(found, list) and found and isinstance(found[0], dict):
            yield from _tests(found, names)
        elif isinstance(found, (str, list)):
            for text in [found] if isinstance(found, str) else found:
                yield from _from_source(text, setup, name)


def _one(test: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[Test]:
    """One entry of a list of tests, as LiveCodeBench has them."""
    if "input" not in test:
        yield from _sources(test, names)
        return
    metadata = test.get("metadata") or {}
    name = _name(test) or _name(metadata) or _name(names)
    is_call = test.get("testtype", "functional" if name else "stdin") == "functional"
    yield _pair(test["input"], test["output"], name if is_call else "")


def _pair(given: Any, wanted: Any, name: str) -> Test:
    """A test from what goes in and what must come out."""
    if not name:
        return StdinTest(_lines(given), _lines(wanted))
    if isinstance(given, str):  # one argument a line, as JSON, and then the result is JSON too
        given = [json.loads(line) for line in given.split("\n") if line.strip()]
        if isinstance(wanted, str):
            with contextlib.suppress(ValueError):  # else it is a text that is the result itself
                wanted = json.loads(wanted)
    if not isinstance(given, list):
        raise TypeError(f"the input of a call must be a list of arguments, got {_short(given)}")
    return CallTest(name, tuple(given), {}, wanted, loose=True)


def _from_source(text: str, setup: str, name: str) -> Iterator[Test]:
    """Asserts one by one; a whole source as one test. HumanEval's ``check`` gets the entry point."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"a test must be Python source: {error}") from None
    if body and all(isinstance(node, ast.Assert) for node in body):
        for node in body:
            assert isinstance(node, ast.Assert)
            source = ast.get_source_segment(text, node) or ast.unparse(node)
            # A comparison of plain data is made outside, where the program cannot reach it.
            call = _simple(node)
            # What the set-up defines is not the program's, so it cannot be called there.
            is_own = call is not None and re.search(rf"\b{call.function}\b", setup) is None
            yield call if call and is_own else SourceTest(f"{setup}\n{source}\n", name)
        return
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    tail = f"\ncheck({name})\n" if name and "check" in defined and not _calls_check(body) else "\n"
    yield SourceTest(f"{setup}\n{text}{tail}", name)


def _calls_check(body: Sequence[ast.stmt]) -> bool:
    values = [node.value for node in body if isinstance(node, ast.Expr)]
    calls = [value.func for value in values if isinstance(value, ast.Call)]
    return any(isinstance(each, ast.Name) and each.id == "check" for each in calls)


def _simple(node: ast.Assert) -> CallTest | None:
    """``assert name(literals) == literal`` as a call whose result is compared outside the sandbox."""
    test = node.test
    if not (isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq)):
        return None
    call = test.left
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
        return None
    try:
        args = tuple(ast.literal_eval(each) for each in call.args)
        words = {each.arg: ast.literal_eval(each.value) for each in call.keywords if each.arg}
        expected = ast.literal_eval(test.comparators[0])
    except (ValueError, TypeError, RecursionError, MemoryError):
        return None
    # A keyword without a name is `**mapping`, which is no literal call.
    if len(words) != len(call.keywords):
        return None
    return CallTest(call.func.id, args, words, expected, loose=False)


def _name(fields: Mapping[str, Any]) -> str:
    return next((str(fields[key]) for key in _NAMES if fields.get(key)), "")


def _lines(value: Any) -> str:
    """A text, or a list of lines."""
    if isinstance(value, list):
        return "\n".join(str(line) for line in value)
    return value if isinstance(value, str) else str(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
