"""What the scorer `code` reads: programs in answers, tests in rows, and what counts as equal."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pytest
from code_cases import (
    prompt,
)

from rewards.code.cases import CallTest, SourceTest, StdinTest, read_tests
from rewards.code.compare import same_output, same_value
from rewards.code.extract import extract
from rewards.code.inside import wire


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```python\na\n```", "a"),
        ("```python\na\n```\ntext\n```Python3\nb\n```", "b"),
        ("```py\na\n```\n```\nb\n```", "a"),
        ('```python title="a.py"\na\n```\n```py:a.py\nb\n```', "b"),
        ("```{.text}\na\n```", None),
        ("```\na\n```\n```text\nb\n```", "a"),
        ("```json\n{}\n```", None),
        ("```python\na", "a"),
        ("````python\na\n```\nb\n````", "a\n```\nb"),
        ("~~~python\na\n~~~", "a"),
        ("```python\n\n```", None),
        ("print(1)", "print(1)"),
        ("", None),
    ],
)
def test_the_last_block_of_the_language_is_the_program(text: str, expected: str | None) -> None:
    assert extract(text, "python", bare=True) == expected


def test_without_bare_an_answer_needs_a_block() -> None:
    assert extract("print(1)", "python", bare=False) is None


def call(*args: Any, expected: Any, loose: bool = True) -> CallTest:
    return CallTest("f", args, {}, expected, loose)


@pytest.mark.parametrize(
    ("truth", "extra", "expected"),
    [
        ({"inputs": ["1"], "outputs": ["2"]}, {}, [StdinTest("1", "2")]),
        ('{"inputs": [["1", "2"]], "outputs": [["3"]]}', {}, [StdinTest("1\n2", "3")]),
        ({"inputs": [[1, 2]], "outputs": [[3]], "fn_name": "f"}, {}, [call(1, 2, expected=[3])]),
        # What goes in is no JSON text, so what comes out is none: "3" is a text.
        ({"inputs": [[1, 2]], "outputs": ["3"], "fn_name": "f"}, {}, [call(1, 2, expected="3")]),
        ({"inputs": ["1\n2"], "outputs": ["3"], "fn_name": "f"}, {}, [call(1, 2, expected=3)]),
        (
            None,
            {"test_list": ["assert f(1) == 2"], "test_setup_code": "def f(x): return g(x)"},
            [SourceTest("def f(x): return g(x)\nassert f(1) == 2\n")],
        ),
        ([{"input": "1\n", "output": "2\n", "testtype": "stdin"}], {}, [StdinTest("1\n", "2\n")]),
        (
            [{"input": "[1]\n2", "output": "3", "testtype": "functional", "metadata": {"func_name": "f"}}],
            {},
            [call([1], 2, expected=3)],
        ),
        ({"assert": ["assert f(1) == (2,)"]}, {}, [call(1, expected=(2,), loose=False)]),
        (
            ["assert f(1) == 2", "assert f(2)"],
            {},
            [call(1, expected=2, loose=False), SourceTest("\nassert f(2)\n")],
        ),
        (
            "assert f(1) == 2\nassert f(3) == 4",
            {},
            [call(1, expected=2, loose=False), call(3, expected=4, loose=False)],
        ),
        (
            None,
            {"test_list": ["assert set(f(1)) == {2}"], "test_setup_code": "import math"},
            [SourceTest("import math\nassert set(f(1)) == {2}\n")],
        ),
        (
            None,
            {"test": "def check(candidate):\n    assert candidate(1)", "entry_point": "f"},
            [SourceTest("\ndef check(candidate):\n    assert candidate(1)\ncheck(f)\n", "f")],
        ),
        (
            {"functional": "def test_a():\n    assert f(1)"},
            {},
            [SourceTest("\ndef test_a():\n    assert f(1)\n")],
        ),
    ],
)
def test_the_shapes_of_tests_that_datasets_have(
    truth: Any, extra: dict[str, Any], expected: list[object]
) -> None:
    assert read_tests(prompt(truth, **extra)) == expected


@pytest.mark.parametrize("truth", [None, "42", {}, {"inputs": [1], "outputs": []}, ["assert f("], 7])
def test_a_row_without_tests_is_an_error_that_names_it(truth: Any) -> None:
    with pytest.raises(ValueError, match="prompt p"):
        read_tests(prompt(truth))


@pytest.mark.parametrize(
    ("got", "expected", "tolerance", "same"),
    [
        ("3\n", "3", 0, True),
        ("3 \n4\n\n", "3\n4", 0, True),
        ("3\n\n4", "3\n4", 0, False),
        ("3.0", "3", 0, False),
        ("3.0000001 x", "3 x", 1e-6, True),
        ("3.1", "3", 1e-6, False),
        ("nan", "nan", 1e-6, True),
        ("inf", "1e999", 1e-6, False),
        ("1" * 10**6, "2" * 10**6, 1e-6, False),
    ],
)
def test_output_is_compared_line_by_line(got: str, expected: str, tolerance: float, same: bool) -> None:
    assert same_output(got, expected, tolerance) is same


@pytest.mark.parametrize(
    ("got", "expected", "loose", "same"),
    [
        (3, 3, False, True),
        ((1, 2), [1, 2], False, False),
        ((1, 2), [1, 2], True, True),
        ([(1,)], [[1]], True, True),
        (3, [3], True, True),
        (3, [3], False, False),
        ({1: 2}, {"1": 2}, True, True),
        ({1: 2}, {"1": 2}, False, False),
        ({1 << 100000: 2}, {"1": 2}, True, False),
        ("3", 3, True, False),
        (float("nan"), float("nan"), False, False),
    ],
)
def test_values_are_compared_as_python_does(got: Any, expected: Any, loose: bool, same: bool) -> None:
    assert same_value(got, expected, loose=loose, tolerance=0) is same


def again(value: object) -> object:
    """A value after the way through the wire."""
    return wire.unpack(json.loads(json.dumps(wire.pack(value))))


def test_plain_values_survive_the_wire_and_nothing_else_does() -> None:
    values = [
        None,
        True,
        1,
        -(1 << 70),
        1.5,
        float("inf"),
        1j,
        "ä\ud800",
        b"\0",
        [1, (2,)],
        {1: {2}, (3,): frozenset()},
    ]
    for value in values:
        found = again(value)
        assert found == value and type(found) is type(value)
    assert again(set(range(20000))) == set(range(20000))
    for bad in (object(), lambda: 1, [object()], range(3)):
        with pytest.raises(wire.NotPlainError):
            wire.pack(bad)
    lines = [
        "1.5",
        "NaN",
        "[1]",
        '{"x": 1}',
        '{"int": "0xg"}',
        '{"set": [{"list": []}]}',
        '{"list": 3}',
        '{"int": 3}',
        '{"int": null}',
        '{"float": "0x1p99999"}',
        '{"float": []}',
        '{"complex": []}',
        '{"bytes": 3}',
        '{"dict": 3}',
        "{}",
    ]
    lines += ['{"list": [' * 100 + "]}" * 100, '{"dict": [[1]]}', '{"bytes": "0"}']
    alike = [wire.pack(number * (2**61 - 1)) for number in range(1, 100)]
    lines += [json.dumps({name: alike}) for name in ("set", "frozenset")]
    lines += [json.dumps({"dict": [[each, 1] for each in alike]})]
    for line in lines:
        with pytest.raises(wire.NotPlainError):
            wire.unpack(json.loads(line))


def test_a_subclass_crosses_as_its_plain_type() -> None:
    class Sly(int):
        def __eq__(self, other: object) -> bool:
            return True

        def __index__(self) -> int:
            return 7

        __hash__ = int.__hash__

    assert type(again(Sly(3))) is int
    assert again(Sly(3)) == 3


@pytest.mark.parametrize("kind", ["set", "frozenset", "dict"])
def test_elements_whose_hashes_were_made_equal_are_refused_beside_others(kind: str) -> None:
    """A set of them takes their number squared: 10,000 took a second, and a reply has room for 100,000."""
    equal = [{"int": hex(k * sys.hash_info.modulus)} for k in range(1, 20_001)]
    elements: list[Any] = [*equal, *range(30_000)]
    began = time.process_time()
    with pytest.raises(wire.NotPlainError, match="the same hash"):
        wire.unpack({kind: [[each, 0] for each in elements] if kind == "dict" else elements})
    assert time.process_time() - began < 2.0
    assert wire.unpack({"set": equal[:64]}) == {k * sys.hash_info.modulus for k in range(1, 65)}
    assert wire.unpack(wire.pack(set(range(50_000)))) == set(range(50_000))
