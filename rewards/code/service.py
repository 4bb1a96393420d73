"""Run programs by a service with the interface of Sandbox Fusion instead of a sandbox of this machine.

In: the service's address. Out: an outcome per test, as `rewards.code.runs` gives. The service gets programs
and inputs; outputs and results are compared here. Tests written as source need a second sandbox beside the
program's, and the interface has none: only asserts of a call against a literal can be run.
https://bytedance.github.io/SandboxFusion
"""

from __future__ import annotations

import base64
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, Final

from rewards.code.box import SandboxBrokenError
from rewards.code.cases import CallTest, SourceTest, StdinTest, Test
from rewards.code.compare import same_output
from rewards.code.inside_files import HARNESS
from rewards.code.runs import (
    BrokenTestError,
    Outcome,
    Rules,
    judge_reply,
    last_line,
    load_problem,
    message_of,
    request_of,
)

_WAITS_S: Final = (0.0, 1.0, 4.0)
"""Seconds before each attempt."""
_ANSWER_S = 10.0
"""Seconds that the service may take on top of the program's own."""
_MAX_ANSWER_BYTES = 1 << 24
_TOO_LONG: Final = "TooLong"
"""The status of an answer that is too long to be read: only a program's output can make it so."""
_MIB = 1 << 20
_CALLS = """
import os, runpy, sys
os.dup2(1, 3)
os.dup2(2, 1)
here = os.getcwd()
sys.argv[:] = [os.path.join(here, "serve.py"), here, {limits!r}]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class ServiceRunner:
    """Runs programs through ``POST <url>/run_code``."""

    def __init__(self, url: str, rules: Rules) -> None:
        self._url, self._rules = url.rstrip("/") + "/run_code", rules
        self.reason = ""
        """The last line that the last program wrote to standard error."""

    def run(self, program: str, tests: Sequence[Test]) -> list[Outcome]:
        """The outcome of each test in order, at most up to the first failure if the rules say so.

        Raises:
            SandboxBrokenError: the service did not answer, or says that it has failed.
            BrokenTestError: a test needs a sandbox of this machine.
        """
        deadline = time.monotonic() + self._rules.total_s
        self.reason = ""
        outcomes: list[Outcome] = []
        while len(outcomes) < len(tests):
            rest = tests[len(outcomes) :]
            if time.monotonic() >= deadline:
                found: list[Outcome] = ["timeout"]
            elif isinstance(rest[0], StdinTest):
                found = [self._stdin(program, rest[0])]
            else:
                found = self._calls(program, rest)
            outcomes += found
            if self._rules.stop_at_failure and outcomes[-1] != "passed":
                break
        return outcomes

    def _stdin(self, program: str, test: StdinTest) -> Outcome:
        result = self._post({"code": program, "stdin": test.stdin})
        if failure := _how_failed(result, self._rules.limits.output_bytes):
            self.reason = last_line(str(result.get("stderr") or "").encode(errors="replace"))
            return failure
        right = same_output(str(result.get("stdout") or ""), test.stdout, self._rules.tolerance)
        return "passed" if right else "wrong_answer"

    def _calls(self, program: str, tests: Sequence[Test]) -> list[Outcome]:
        """Every call from the first on, in one run of the program."""
        calls: list[CallTest] = []
        for test in tests:
            if isinstance(test, SourceTest):
                raise BrokenTestError("a test that is source needs isolation on this machine, not a `url`")
            if not isinstance(test, CallTest):
                break
            calls.append(test)
        limits = self._rules.limits
        words = f"{limits.cpu_s * len(calls)},{limits.memory_bytes},{limits.processes},{limits.file_bytes}"
        requests = "\n".join(map(request_of, calls)) + "\n"
        texts = {
            name: (HARNESS / name).read_text(encoding="utf-8")
            for name in ("serve.py", "wire.py", "limits.py")
        }
        texts |= {"main.py": program, "requests": requests}
        result = self._post({"code": _CALLS.format(limits=words), "files": _encoded(texts)}, len(calls))
        lines = [
            line.encode() for line in str(result.get("stdout") or "").splitlines() if line.startswith("{")
        ]
        said = (message_of(line) for line in lines)
        self.reason = last_line(next(filter(None, said), b""))
        if not lines:
            return [_how_failed(result, limits.output_bytes) or "runtime_error"]
        if problem := load_problem(lines[0]):
            return problem * len(calls)
        outcomes = [
            judge_reply(line, call, self._rules.tolerance)
            for line, call in zip(lines[1:], calls, strict=False)
        ]
        # The program ended in this call; those after it were not reached.
        if len(outcomes) < len(calls):
            outcomes.append(_how_failed(result, limits.output_bytes) or "runtime_error")
        return outcomes

    def _post(self, body: dict[str, Any], num_runs: int = 1) -> dict[str, Any]:
        """The service's `run_result`.

        Raises:
            SandboxBrokenError: no usable answer after every attempt.
        """
        seconds = min(self._rules.wall_s * num_runs, self._rules.total_s)
        memory = self._rules.limits.memory_bytes // _MIB
        fields = {
            "language": "python",
            "run_timeout": seconds,
            "compile_timeout": seconds,
            "memory_limit_MB": memory,
        }
        data = json.dumps({**fields, **body}).encode("utf-8", errors="replace")
        problem = ""
        for wait_s in _WAITS_S:
            time.sleep(wait_s)
            request = urllib.request.Request(self._url, data, {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=seconds + _ANSWER_S) as response:
                    answer = response.read(_MAX_ANSWER_BYTES + 1)
                # Cut off, it would be no JSON, and a program that prints without end would have no score.
                if len(answer) > _MAX_ANSWER_BYTES:
                    return {"status": _TOO_LONG}
                return _run_result(json.loads(answer))
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}"
                # The request itself was refused, and would be again.
                if error.code < 500 and error.code != 429:
                    break
            except (OSError, ValueError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
        raise SandboxBrokenError(f"{self._url} gave no result: {problem}")


def _encoded(texts: dict[str, str]) -> dict[str, str]:
    return {
        name: base64.b64encode(text.encode("utf-8", errors="replace")).decode()
        for name, text in texts.items()
    }


def _run_result(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict) or answer.get("status") not in ("Success", "Failed"):
        raise ValueError(f"the service says {str(answer)[:200]!r}")
    result = answer.get("run_result")
    if not isinstance(result, dict):
        raise ValueError("an answer without run_result")
    return result


def _how_failed(result: dict[str, Any], output_bytes: int) -> Outcome | None:
    if result.get("status") == "TimeLimitExceeded":
        return "timeout"
    if result.get("status") == _TOO_LONG or len(str(result.get("stdout") or "")) > output_bytes:
        return "output_limit"
    if result.get("status") == "Finished" and result.get("return_code") == 0:
        return None
    last = str(result.get("stderr") or "").rstrip().rpartition("\n")[2]
    # The service has one status for every failure, so the last line of the traceback decides.
    if last.startswith(("SyntaxError", "IndentationError", "TabError")):
        return "compile_error"
    return "memory" if last.startswith("MemoryError") else "runtime_error"
