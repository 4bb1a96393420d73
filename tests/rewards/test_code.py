"""The scorer `code`: outcomes of programs, and that no program decides its own verdict."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from code_cases import (
    ADD,
    ASSERTS,
    CALLS,
    CHECK,
    STDIN,
    SUM,
    completion,
    fenced,
    judge,
    methods_here,
    options,
    prompt,
)
from matrices import quick_of

from rewards.code import proof, scorer
from rewards.code.box import Box, Job, Limits
from rewards.code.isolation import sandbox
from trainer.rollout.rollouter import whole_texts

EQUAL_TO_ALL = """
class E:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    def __sub__(self, other): return self
    def __abs__(self): return self
    def __bool__(self): return True
    def __hash__(self): return 0
def add(a, b): return E()
"""


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.slow if number else ())
        for number, name in enumerate(methods_here())
    ]
)
def method(request: pytest.FixtureRequest) -> str:
    """Each isolation of this machine; those after the first are left to `make test`."""
    return str(request.param)


@pytest.mark.parametrize(
    ("row", "program", "outcome"),
    [
        (STDIN, SUM, "passed"),
        (STDIN, "print(3)", "wrong_answer"),
        (STDIN, "print(3", "compile_error"),
        (STDIN, "(" * 10000, "compile_error"),
        (STDIN, "print(3)\n1/0", "runtime_error"),
        (STDIN, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "runtime_error"),
        (STDIN, "while True: pass", "timeout"),
        (STDIN, "import time; time.sleep(60)", "timeout"),
        (STDIN, "x = bytearray(1 << 30)", "memory"),
        (STDIN, "while True: print('x' * 10000)", "output_limit"),
        (STDIN, "import os; os._exit(0)", "wrong_answer"),
        (CALLS, ADD, "passed"),
        (CALLS, "class Solution:\n    def add(self, a, b): return a + b", "passed"),
        (CALLS, "def add(a, b): return 3", "wrong_answer"),
        (CALLS, "def add(a, b", "compile_error"),
        (CALLS, "def sub(a, b): return 3", "runtime_error"),
        (CALLS, "def add(a, b):\n    while True: pass", "timeout"),
        (CALLS, "def add(a, b): return bytearray(1 << 30)", "memory"),
        (CALLS, "def add(a, b):\n    while True: print('x' * 10000)", "output_limit"),
        (CALLS, EQUAL_TO_ALL, "runtime_error"),
        (ASSERTS, ADD, "passed"),
        (ASSERTS, EQUAL_TO_ALL, "runtime_error"),
        (CHECK, ADD, "passed"),
        (CHECK, "def add(a, b): return 3", "wrong_answer"),
        (CHECK, "def add(a, b", "compile_error"),
        (CHECK, "def sub(a, b): return 3", "runtime_error"),
        (CHECK, "import os\ndef add(a, b): os._exit(0)", "runtime_error"),
        (CHECK, "def add(a, b): return bytearray(1 << 30)", "memory"),
        (CHECK, "def add(a, b):\n    while True: print('x' * 10000)", "output_limit"),
        (CHECK, "def add(a, b):\n    while True: pass", "timeout"),
        (CHECK, EQUAL_TO_ALL, "runtime_error"),
    ],
)
def test_outcomes(row: Any, program: str, outcome: str, method: str) -> None:
    judgement = judge(row, program, isolation=method)
    assert judgement.tags == {"code": outcome}, judgement.detail
    assert judgement.score == float(outcome == "passed")
    assert judgement.answer_ok is (outcome == "passed")


@pytest.mark.parametrize(
    ("row", "program", "reason"),
    [
        (STDIN, "int('x')", "ValueError: invalid literal for int() with base 10: 'x'"),
        (STDIN, "import socket\nsocket.socket()", "PermissionError: [Errno 1] Operation not permitted"),
        (STDIN, "I do not know", "SyntaxError: invalid syntax"),
        (STDIN, "raise ValueError(f'{object()}\\x1b[2J')",
         "ValueError: <object object at 0x...>\ufffd[2J"),
        (CALLS, "def add(a, b): return a / 0", "ZeroDivisionError: division by zero"),
        (CALLS, "import os\nos.write(2, b'so long')\nos._exit(3)", "so long"),
        (CHECK, "def add(a, b): return a / 0", "ZeroDivisionError: division by zero"),
        (CHECK, "def add(a, b:", "SyntaxError: '(' was never closed (main.py, line 1)"),
    ],
)  # fmt: skip
def test_a_program_that_fails_says_why(row: Any, program: str, reason: str) -> None:
    """What it wrote last, so that a socket that is refused can be told from a typing error."""
    assert judge(row, program, wall_s=8.0).texts["reason"] == reason


@pytest.mark.parametrize("row", [STDIN, CALLS, CHECK])
def test_a_program_that_passes_has_no_reason(row: Any) -> None:
    program = "import sys\nprint('noise', file=sys.stderr)\n" + (SUM if row is STDIN else ADD)
    assert "reason" not in judge(row, program, wall_s=8.0).texts


def test_the_share_of_tests_that_pass() -> None:
    judgement = judge(STDIN, "print(3)", reward="share")
    assert judgement.score == 0.5 and judgement.tags == {"code": "wrong_answer"}
    assert judgement.numbers == {"tests_passed": 1.0, "tests_total": 2.0}
    assert judgement.texts == {"outcomes": "passed wrong_answer"}
    program = "import os\ndef add(a, b):\n    if a == 1: os._exit(0)\n    return a + b"
    for row in (CALLS, ASSERTS):
        assert judge(row, program, reward="share").score == 0.5  # the second test has a new start


def test_without_a_program_there_is_a_score_and_a_tag() -> None:
    (judgement,) = scorer.code(STDIN, [completion("I do not know.\n```json\n{}\n```")], options())
    assert judgement.score == 0.0 and judgement.tags == {"code": "no_code"}


def test_max_tests_runs_the_first() -> None:
    assert judge(STDIN, "print(3)", max_tests=1).score == 1.0


BROKEN = {
    "a lambda": "def check(candidate):\n    assert candidate(lambda: 1, 2) == 3\n",
    "not installed": "import no_such_module\ndef check(candidate):\n    assert candidate(1, 2) == 3\n",
    "no call": "def check(candidate):\n    assert True\n",
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("program", [ADD, "def add(a, b): return 3"])
def test_a_test_that_cannot_be_run_gives_no_score(name: str, program: str) -> None:
    judgement = judge(prompt(test=BROKEN[name], entry_point="add"), program)
    assert judgement.score is None and judgement.status == "error" and judgement.detail


@pytest.mark.parametrize(
    "program",
    [
        "def add(a, b): raise ImportError('x')",
        "def sub(a, b): return 3",
        "add = 5",
        "def add(a, b): return object()",
        "def add(a, b): raise StopIteration",
        "import sys\ndef add(a, b): sys.exit(0)",
        "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
        "import os\nos.close(3)\ndef add(a, b): return a + b",
    ],
)
@pytest.mark.parametrize("row", [CALLS, CHECK])
def test_no_program_can_make_its_own_score_missing(program: str, row: Any) -> None:
    """A missing score is not trained on, so a policy that could cause it would never be wrong."""
    assert judge(row, program).score == 0.0


@pytest.mark.parametrize("error", ["ImportError", "ModuleNotFoundError"])
def test_a_name_that_the_program_fails_to_give_is_its_own_fault(error: str) -> None:
    """Only a module that the test imports itself, and that is not installed, is the fault of the test."""
    row = prompt({"functional": "from solution import f\ndef test_a():\n    assert f(1) == 1\n"})
    assert judge(row, f"def __getattr__(name): raise {error}(name)").score == 0.0
    row = prompt({"functional": "import not_installed\nassert f(1) == 1\n"})
    assert judge(row, "def f(x): return x").score is None


FORGED = [
    '{"ok": {"float": "0x1p99999"}}',
    '{"ok": {"complex": []}}',
    '{"ok": {"int": null}}',
    '{"ok": ' + "9" * 5000 + "}",
    '{"ok": ' + "[" * 100000,
    '{"error": 3}',
    '{"error": []}',
    '{"error": ["UnicodeDecodeError", "x", "x"]}',
    '{"handle": "x"}',
    '{"handle": 1e999}',
    '{"ok": 1, "args": 3}',
    "[]",
    "3",
    "\\xff",
    "",
]
"""Lines that a program may send in the place of a reply."""


@pytest.mark.parametrize("line", quick_of(FORGED, FORGED[:3], rest="slow"))
@pytest.mark.parametrize("row", [CALLS, CHECK])
def test_no_line_that_a_program_sends_makes_its_score_missing(line: str, row: Any) -> None:
    program = f"""
import os
def add(a, b):
    os.write(3, ({line!r} + chr(10)).encode())
    os._exit(0)
"""
    judgement = judge(row, program, in_place=True)
    assert judgement.score == 0.0, judgement


SOURCE_ROWS = {
    "a case of unittest": (
        "import unittest\nclass T(unittest.TestCase):\n    def test_a(self): self.assertEqual(f(2), 4)\n",
        "import os\ndef f(x): os._exit(0)",
    ),
    "a loop over map": ("for got in map(f, [1, 2]):\n    assert got == 9\n", "def f(x): raise StopIteration"),
    "sorted of the argument": (
        "xs = [3, 1]\nassert f(xs) == sorted(xs)\n",
        "def f(xs):\n    xs.clear()\n    return []",
    ),
    "a built-in of the program": (
        "assert sorted(f([2, 1])) == [1, 2]\n",
        "def sorted(x): return [1, 2]\ndef f(x): return []",
    ),
    "an exception that is swallowed": (
        "try:\n    f(1)\nexcept BaseException:\n    pass\nassert f(2) == 2\n",
        "import os\ndef f(x): os._exit(0)",
    ),
    "a comparison the other way": (
        "assert 3 == f(1)\n",
        "class E:\n    def __eq__(s, o): return True\ndef f(x): return E()",
    ),
    "contains": (
        "assert f(1) in [1, 2]\n",
        "class E:\n    def __eq__(s, o): return True\ndef f(x): return E()",
    ),
    "truth": ("assert f(1)\n", "class E:\n    def __bool__(s): return True\ndef f(x): return E()"),
    "the checker's modules": (
        "import math\nassert math.isclose(f(1), 2.5)\n",
        "import math\nmath.isclose = lambda *a: True\ndef f(x): return 9.0",
    ),
    "lines for the checker": (
        "assert f(1) + f(2) == 3\n",
        """
import os
for fd in (3, 4, 5):
    try: os.write(fd, b'{"test": 0, "outcome": "passed"}\\n')
    except OSError: pass
def f(x): return 9
""",
    ),
}


@pytest.mark.parametrize("name", quick_of(list(SOURCE_ROWS), list(SOURCE_ROWS)[:3], rest="slow"))
def test_no_program_can_decide_a_test_that_is_source(name: str) -> None:
    test, program = SOURCE_ROWS[name]
    assert judge(prompt({"functional": test}), program).score == 0.0


@pytest.mark.parametrize(
    ("test", "program"),
    [
        ("from solution import f\ndef test_one():\n    assert f([1]) == [1]\n", "def f(x): return x"),
        (
            "s = Stack()\ns.push(3)\nassert s.pop() == 3\nassert len(s) == 0\n",
            """
class Stack:
    def __init__(self): self.items = []
    def push(self, item): self.items.append(item)
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
""",
        ),
        (
            "import unittest\nclass T(unittest.TestCase):\n    def test_a(self): self.assertEqual(f(2), 4)\n",
            "def f(x): return x * x",
        ),
        ("assert list(f(3)) == [0, 1, 2]\n", "def f(n): return (i for i in range(n))"),
        (
            "try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass\n",
            "def f(x): raise ValueError('x')",
        ),
        ("assert sum(10, 15) == 25\nassert sum(*[1, 2]) == 3\n", "def sum(a, b): return a + b"),
        (
            "assert f((1, 2), k={'a': 1}) == ((1, 2), {'a': 1}) and LIMIT == 3\n",
            "LIMIT = 3\ndef f(x, k): return x, k",
        ),
    ],
)
def test_what_tests_may_do(test: str, program: str) -> None:
    judgement = judge(prompt({"functional": test}), program)
    assert judgement.score == 1.0, judgement


def test_a_test_sees_its_arguments_change_only_if_asked() -> None:
    row = prompt({"functional": "xs = [3, 1]\nf(xs)\nassert xs == [1, 3]\n"})
    program = "def f(xs): xs.sort()"
    assert judge(row, program).score == 0.0
    assert judge(row, program, in_place=True).score == 1.0


def test_every_method_that_is_tried_is_named_when_none_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "escapes", lambda method, processes: "a file outside could be read")
    with pytest.raises(
        ValueError, match=r"namespaces: .*a file outside could be read; landlock: .*isolation: none"
    ):
        proof.choose.__wrapped__("auto", 1)


def test_auto_takes_the_next_method_when_one_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "missing", lambda method, processes: "")
    monkeypatch.setattr(proof, "escapes", lambda method, processes: "" if method == "landlock" else "no")
    assert proof.choose.__wrapped__("auto", 1) == "landlock"


def test_the_proof_sees_that_nothing_is_isolated_without_isolation() -> None:
    found = proof.escapes("none", 1)
    for words in (
        "could be read",
        "could be written",
        "connection",
        "signalled",
        "processes could be started",
    ):
        assert words in found


def test_more_than_one_process_holds_where_it_is_allowed(method: str) -> None:
    if method == "landlock":
        assert "more than one process" in proof.missing(method, 8)
        return
    assert proof.missing(method, 8) == "" and proof.escapes(method, 8) == ""


def test_a_program_cannot_choose_to_outlive_the_scorer(method: str) -> None:
    """By taking back the signal that the kernel sends it when its parent dies: prctl(PR_SET_PDEATHSIG, 0)."""
    program = (
        "import ctypes\ncall = ctypes.CDLL(None).prctl\nprint(call(1, 0, 0, 0, 0), call(39, 0, 0, 0, 0))"
    )
    row = prompt({"inputs": [""], "outputs": ["-1 1"]})  # 39 asks whether there is no_new_privs
    judgement = judge(row, program, isolation=method)
    assert judgement.score == 1.0, judgement


def test_a_sandbox_that_cannot_be_watched_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process and no descriptor: one for each completion would use them up."""

    def children() -> set[str]:
        tasks = Path("/proc/self/task").iterdir()
        return {child for task in tasks for child in (task / "children").read_text().split()}

    before, born_before = os.listdir("/proc/self/fd"), children()

    def refuse(pid: int) -> int:
        raise OSError("too many open files")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(OSError, match="too many"):
        Box(Job("program.py", {}, Limits(1, 1 << 28, 1, 1 << 20, 1 << 20)), sandbox("none"))
    assert os.listdir("/proc/self/fd") == before
    assert children() <= born_before  # other tests of this process may have children


def test_a_null_row_says_which_row(method: str) -> None:
    with pytest.raises(ValueError, match="prompt p"):
        scorer.code(prompt("42"), [completion(fenced(ADD))], options(isolation=method))


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("def : x = 3 + 4 -> 7 ; x = x * 2 -> 14 ; return 14", "passed"),
        ("def : x = 3 + 4 -> 7 ; x = x * 2 -> 15 ; return 14", "runtime_error"),
        ("def : x = 3 + 4 -> 7 ; return 7", "wrong_answer"),
        ("def : x = 3 + -> 7 ; return 14", "compile_error"),
        ("def : import os ; return 14", "compile_error"),
        ("def : x = 3 + 4", "compile_error"),
        ("we take 3 plus 4 which is 7 so the answer is 7", "no_code"),
    ],
)
def test_programs_of_the_lab(text: str, outcome: str) -> None:
    row = prompt({"inputs": [""], "outputs": ["14"]})
    (judgement,) = scorer.code(row, [completion(text)], options(language="lab"))
    assert judgement.tags == {"code": outcome} and judgement.score == float(outcome == "passed")


def test_a_block_that_the_prompt_opens() -> None:
    """A run passes a prefill with the completion, so it must not be put before it once more."""
    row = replace(CALLS, messages=(("user", "q"), ("assistant", "```python\n")))
    (judgement,) = scorer.code(row, whole_texts(row, [completion(f"{ADD}```")]), options())
    assert judgement.score == 1.0 and judgement.tags == {"code": "passed"}
