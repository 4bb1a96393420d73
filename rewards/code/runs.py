"""Run a program against its tests. In: the program and tests. Out: an outcome per test.

What a test expects never enters the program's sandbox: outputs and results are compared here, and tests that
are source run in a sandbox of their own (`rewards.code.inside.check`). Used by `rewards.code.scorer`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from rewards.code.box import Box, Clock, Ending, Job, Limits, Sandbox, supervise
from rewards.code.cases import CallTest, SourceTest, StdinTest, Test
from rewards.code.compare import same_output, same_value
from rewards.code.inside import wire

Outcome = Literal[
    "passed", "wrong_answer", "runtime_error", "compile_error", "timeout", "memory", "output_limit", "no_code"
]
_END_S: Final = 0.5
"""Wait for the end of a program that has ended for its partner."""
FAILURES: Final = frozenset({"wrong_answer", "runtime_error", "compile_error", "timeout", "memory"})
_PROGRAM = "main.py"
_REASON_CHARS: Final = 200
_ADDRESS: Final = re.compile(r"0x[0-9a-f]{6,}")


class BrokenTestError(Exception):
    """A test that no program could pass or fail: it is not Python, or cannot be run this way."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How tests are run and compared. `wall_s` is for each test, `total_s` for all of a program's."""

    limits: Limits
    wall_s: float
    total_s: float
    tolerance: float
    in_place: bool
    stop_at_failure: bool


class LocalRunner:
    """Runs programs in sandboxes of this machine."""

    def __init__(self, sandbox: Sandbox, rules: Rules) -> None:
        self._sandbox, self._rules = sandbox, rules
        self.reason = ""
        """Why the last program failed: the last line of its standard error, or its exception."""

    def run(self, program: str, tests: Sequence[Test]) -> list[Outcome]:
        """The outcome of each test in order, at most up to the first failure if the rules say so.

        Raises:
            SandboxBrokenError: the sandbox failed, and so there is no result.
            BrokenTestError: a test cannot be run whatever the program is.
        """
        deadline = time.monotonic() + self._rules.total_s
        self.reason = ""
        outcomes: list[Outcome] = []
        while len(outcomes) < len(tests):
            # Tests without time are timeouts and not left out: a slow program must not gain by being slow.
            if time.monotonic() >= deadline:
                found: list[Outcome] = ["timeout"]
            else:
                found = self._next(program, tests[len(outcomes) :], deadline)
            outcomes += found
            if "compile_error" in found:  # it would be the same with every test
                return outcomes + found[-1:] * (len(tests) - len(outcomes))
            if self._rules.stop_at_failure and outcomes[-1] != "passed":
                break
        return outcomes

    def _next(self, program: str, tests: Sequence[Test], deadline: float) -> list[Outcome]:
        """Outcomes of one or more tests from the first on: as many as one start of the program serves."""
        # A start of the interpreter takes far longer than most tests, so tests of one kind share it.
        kind = type(tests[0])
        alike: list[Test] = []
        for test in tests:
            if type(test) is not kind:
                break
            alike.append(test)
        if kind is StdinTest:
            return [self._stdin(program, alike[0], deadline)]  # type: ignore[arg-type]
        if kind is CallTest:
            return self._calls(program, alike, deadline)  # type: ignore[arg-type]
        return self._sources(program, alike, deadline)  # type: ignore[arg-type]

    def _clock(self, deadline: float) -> Clock:
        return Clock(min(time.monotonic() + self._rules.wall_s, deadline))

    def _stdin(self, program: str, test: StdinTest, deadline: float) -> Outcome:
        job = Job("program.py", {_PROGRAM: program}, self._rules.limits, stdin=test.stdin)
        (ending,) = supervise([Box(job, self._sandbox)], self._clock(deadline))
        if failure := how_failed(ending, compiled=b"compiled" in ending.replies):
            self._note(ending.stderr)
            return failure
        right = same_output(ending.stdout.decode(errors="replace"), test.stdout, self._rules.tolerance)
        return "passed" if right else "wrong_answer"

    def _calls(self, program: str, tests: Sequence[CallTest], deadline: float) -> list[Outcome]:
        requests = "\n".join(request_of(test) for test in tests) + "\n"
        job = Job("serve.py", {_PROGRAM: program, "requests": requests}, self._rules.limits)
        outcomes: list[Outcome] = []
        problems: list[Outcome] = []
        clock = self._clock(deadline)
        loaded: list[bool] = []

        def on_line(box: Box, line: bytes) -> None:
            self._note(message_of(line))
            if not loaded:
                loaded.append(True)
                problems.extend(load_problem(line))
            elif len(outcomes) < len(tests):
                outcomes.append(judge_reply(line, tests[len(outcomes)], self._rules.tolerance))
            if problems or self._is_complete(outcomes, len(tests)):
                # Nothing more is wanted of it; its own exit might take until the limit.
                box.kill("done")
            clock.deadline = min(time.monotonic() + self._rules.wall_s, deadline)

        (ending,) = supervise([Box(job, self._sandbox)], clock, on_line)
        if problems:
            return problems * len(tests)
        if self._is_complete(outcomes, len(tests)):
            return outcomes
        self._note(ending.stderr)
        return [*outcomes, how_failed(ending) or "runtime_error"]

    def _note(self, said: bytes) -> None:
        """Keep the first failure's last line, which is where Python names the exception."""
        self.reason = self.reason or last_line(said)

    def _is_complete(self, outcomes: Sequence[Outcome], count: int) -> bool:
        failed = bool(outcomes) and outcomes[-1] != "passed"
        return len(outcomes) == count or (failed and self._rules.stop_at_failure)

    def _sources(self, program: str, tests: Sequence[SourceTest], deadline: float) -> list[Outcome]:
        """Two sandboxes: the program answers in one, the tests ask in the other."""
        files = {f"test_{number}.py": test.text for number, test in enumerate(tests)}
        job = {"count": len(tests), "entry_point": tests[0].entry_point, "in_place": self._rules.in_place}
        files["job.json"] = json.dumps(job)
        limits = self._rules.limits
        # Two pipes between the sandboxes, so that neither sees more of the other than requests and replies.
        request_read, request_write = os.pipe()
        reply_read, reply_write = os.pipe()
        boxes: list[Box] = []
        clock, verdicts = self._clock(deadline), _Verdicts(len(tests), self._rules.stop_at_failure)
        try:
            program_job = Job(
                "serve.py", {_PROGRAM: program}, limits, descriptors=[request_read], replies=reply_write
            )
            boxes.append(Box(program_job, self._sandbox))
            boxes.append(
                Box(Job("check.py", files, limits, descriptors=[reply_read, request_write]), self._sandbox)
            )
        except BaseException:
            for box in boxes:
                box.discard()
            raise
        finally:
            # Open here, an end would keep the other side waiting after its partner has ended.
            for descriptor in (request_read, request_write, reply_read, reply_write):
                os.close(descriptor)

        def on_line(box: Box, line: bytes) -> None:
            verdicts.take(line)
            self._note(message_of(line))
            clock.deadline = min(time.monotonic() + self._rules.wall_s, deadline)
            if verdicts.is_complete():
                clock.deadline = min(time.monotonic() + _END_S, deadline)
                for each in boxes[1:] if verdicts.may_have_ended() else boxes:
                    each.kill("done")

        program_ending, _ = supervise(boxes, clock, on_line)
        self._note(program_ending.stderr)
        return verdicts.outcomes(program_ending)


class _Verdicts:
    """What the checker has said, a line for the loading of the program and one for each test."""

    def __init__(self, count: int, stop_at_failure: bool) -> None:
        self._count, self._stops = count, stop_at_failure
        self._loaded = False
        self._problem: list[Outcome] = []
        self._found: list[Outcome] = []
        self._broken = ""

    def take(self, line: bytes) -> None:
        """Read one line of the checker."""
        verdict = json.loads(line)
        if not self._loaded:
            self._loaded = True
            self._problem = load_problem(line)
        elif verdict["outcome"] == "broken":
            self._broken = str(verdict["why"])
        else:
            self._found.append(
                "passed" if verdict["outcome"] == "passed" else as_failure(verdict.get("kind"))
            )

    def may_have_ended(self) -> bool:
        """Whether the last verdict may be that the program is gone: the checker cannot tell how it ended."""
        return bool(self._found) and self._found[-1] == "runtime_error"

    def is_complete(self) -> bool:
        """Whether no more lines matter."""
        failed = bool(self._found) and self._found[-1] != "passed"
        return (
            bool(self._problem or self._broken) or len(self._found) == self._count or (failed and self._stops)
        )

    def outcomes(self, ending: Ending) -> list[Outcome]:
        """As many outcomes as there are; one more, a failure, if the program ended what was going on.

        Raises:
            BrokenTestError: the checker says so of a test.
        """
        if self._problem:
            return self._problem * self._count
        if self._broken:
            raise BrokenTestError(self._broken)
        if self.may_have_ended():
            ended = ending.killed != "timeout"  # else it was still there
            return [*self._found[:-1], (ended and how_failed(ending)) or "runtime_error"]
        if self.is_complete():
            return self._found
        return [*self._found, how_failed(ending) or "runtime_error"]


def request_of(test: CallTest) -> str:
    """The line that asks `rewards.code.inside.serve` for a call.

    Raises:
        BrokenTestError: an argument is not plain data.
    """
    try:
        args = [wire.pack(each) for each in test.args]
        words = {key: wire.pack(each) for key, each in test.words.items()}
    except wire.NotPlainError as error:
        raise BrokenTestError(f"an argument of {test.function} cannot be sent: {error}") from None
    return json.dumps({"action": "call", "target": test.function, "args": args, "words": words})


def judge_reply(line: bytes, test: CallTest, tolerance: float) -> Outcome:
    """Whether one reply of the program has the expected result."""
    try:
        reply = json.loads(line)
        if "error" in reply:
            return as_failure(reply["error"][2])
        got = wire.unpack(reply["ok"])
    except (wire.NotPlainError, ValueError, LookupError, TypeError, RecursionError):
        return "wrong_answer"
    return (
        "passed" if same_value(got, test.expected, loose=test.loose, tolerance=tolerance) else "wrong_answer"
    )


def message_of(line: bytes) -> bytes:
    """The exception that a reply of `rewards.code.inside` tells of, or b""."""
    try:
        reply = json.loads(line)
        said = reply["error"][1] if "error" in reply else reply.get("message") or reply.get("why")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return b""
    return said.encode(errors="replace") if isinstance(said, str) else b""


def last_line(said: bytes) -> str:
    """The last line that is not blank, in printable characters and without addresses, which vary."""
    lines = said.decode(errors="replace").strip().splitlines()
    shown = "".join(each if each.isprintable() else "\ufffd" for each in lines[-1].strip()) if lines else ""
    return _ADDRESS.sub("0x...", shown)[:_REASON_CHARS]


def load_problem(line: bytes) -> list[Outcome]:
    """[why the program could not be loaded], or []."""
    try:
        reply = json.loads(line)
        return [] if reply["loaded"] is True else [as_failure(reply["problem"])]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ["runtime_error"]


def as_failure(kind: object) -> Outcome:
    """A failure that the sandbox names; one that is not known is a ``runtime_error``."""
    return kind if isinstance(kind, str) and kind in FAILURES else "runtime_error"  # type: ignore[return-value]


def how_failed(ending: Ending, *, compiled: bool = True) -> Outcome | None:
    """The failure that a program's end means; None if it ended by itself with status 0."""
    if ending.killed == "done":
        return None
    if ending.killed:
        return ending.killed
    assert ending.status is not None
    if ending.status == 0:
        return None
    number = (
        os.WTERMSIG(ending.status) if os.WIFSIGNALED(ending.status) else os.WEXITSTATUS(ending.status) - 128
    )
    if number in (signal.SIGXCPU, signal.SIGKILL):
        return "timeout"  # the limit of CPU seconds
    if ending.stderr.rstrip().endswith(b"MemoryError"):
        return "memory"
    return "runtime_error" if compiled else "compile_error"
