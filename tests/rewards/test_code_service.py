"""The scorer `code` with a service instead of this machine: a stand-in for Sandbox Fusion, and failures."""

from __future__ import annotations

import base64
import http.client
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from code_cases import ADD, ASSERTS, CALLS, CHECK, STDIN, SUM, judge

from rewards.code import service

Answer = tuple[int, bytes]


def run_code(body: dict[str, Any]) -> dict[str, Any]:
    """What Sandbox Fusion's ``run_code`` answers, for the harmless programs of these tests."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in body.get("files", {}).items():
            Path(folder, name).write_bytes(base64.b64decode(content))
        Path(folder, "code.py").write_text(body["code"], encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, "code.py"],
                cwd=folder,
                input=body.get("stdin", ""),
                capture_output=True,
                text=True,
                timeout=body["run_timeout"],
            )
        except subprocess.TimeoutExpired:
            return {"status": "Failed", "run_result": {"status": "TimeLimitExceeded"}}
    result = {
        "status": "Finished",
        "return_code": done.returncode,
        "stdout": done.stdout,
        "stderr": done.stderr,
    }
    return {"status": "Success" if done.returncode == 0 else "Failed", "run_result": result}


class Service:
    """A server whose answers come from `script`, and from `run_code` when it is used up."""

    def __init__(self) -> None:
        self.script: list[Answer] = []
        self.bodies: list[dict[str, Any]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/run_code"
                owner.bodies.append(body)
                code, data = (
                    owner.script.pop(0) if owner.script else (200, json.dumps(run_code(body)).encode())
                )
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_WAITS_S", (0.0, 0.01, 0.01))


@pytest.fixture
def served(short_waits: None) -> Iterator[Service]:
    found = Service()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.mark.parametrize(
    ("row", "program", "outcome"),
    [
        (STDIN, SUM, "passed"),
        (STDIN, "print(3)", "wrong_answer"),
        (STDIN, "print(3", "compile_error"),
        (STDIN, "1/0", "runtime_error"),
        (STDIN, "raise MemoryError", "memory"),
        (STDIN, "while True: pass", "timeout"),
        (CALLS, ADD, "passed"),
        (CALLS, "def add(a, b): return 3", "wrong_answer"),
        (CALLS, "def add(a, b", "compile_error"),
        (CALLS, "def add(a, b):\n    print('{\"ok\": 3}')\n    return 4", "wrong_answer"),
        (CALLS, "import os\ndef add(a, b): os._exit(0)", "runtime_error"),
        (ASSERTS, ADD, "passed"),
    ],
)
def test_outcomes(served: Service, row: Any, program: str, outcome: str) -> None:
    # All but the endless program get what a start needs on a busy machine.
    wall_s = 1.0 if outcome == "timeout" else 5.0
    judgement = judge(row, program, url=served.url, isolation="auto", wall_s=wall_s, total_s=20.0, cpu_s=60.0)
    assert judgement.tags == {"code": outcome}, judgement.detail
    assert judgement.score == float(outcome == "passed")


def test_expected_results_are_not_sent(served: Service) -> None:
    for row in (STDIN, CALLS):
        judge(row, SUM if row is STDIN else ADD, url=served.url)
    sent = json.dumps([{**body, "files": _texts(body)} for body in served.bodies])
    assert '"outputs"' not in sent and "7" not in json.dumps([body.get("stdin") for body in served.bodies])


def _texts(body: dict[str, Any]) -> dict[str, str]:
    return {name: base64.b64decode(text).decode() for name, text in body.get("files", {}).items()}


def test_tests_that_are_source_have_no_score(served: Service) -> None:
    judgement = judge(CHECK, ADD, url=served.url)
    assert judgement.score is None and "needs isolation on this machine" in judgement.detail
    assert not served.bodies


SANDBOX_ERROR = json.dumps({"status": "SandboxError", "message": "no worker"}).encode()


@pytest.mark.parametrize(
    "answer", [(500, b""), (429, b""), (200, SANDBOX_ERROR), (200, b"{"), (200, b"[]"), (200, b"")]
)
def test_a_failure_that_passes_is_tried_again(served: Service, answer: Answer) -> None:
    served.script = [answer, answer]
    assert judge(STDIN, SUM, url=served.url).score == 1.0


@pytest.mark.parametrize("answer", [(500, b""), (200, SANDBOX_ERROR), (200, b'{"status": "Success"}')])
def test_a_failure_that_stays_is_no_score(served: Service, answer: Answer) -> None:
    served.script = [answer] * 20
    judgement = judge(STDIN, SUM, url=served.url)
    assert judgement.score is None and judgement.status == "error" and served.url in judgement.detail
    assert len(served.bodies) == 3


def test_output_that_is_too_long_to_be_read_is_the_programs_fault(served: Service) -> None:
    """Cut off it is no JSON, and the program would have no score."""
    served.script = [(200, b'{"status": "Success", "run_result": "' + b"x" * service._MAX_ANSWER_BYTES)] * 2
    for row in (STDIN, CALLS):
        judgement = judge(row, SUM, url=served.url, wall_s=5.0, total_s=20.0)
        assert judgement.score == 0.0 and judgement.tags == {"code": "output_limit"}


def test_an_answer_that_is_no_http_is_tried_again(served: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def broken(*_: object, **__: object) -> None:
        asked.append(1)
        raise http.client.BadStatusLine("nonsense")

    monkeypatch.setattr(service.urllib.request, "urlopen", broken)
    judgement = judge(STDIN, SUM, url=served.url)
    assert judgement.score is None and "nonsense" in judgement.detail and len(asked) == 3


def test_a_refusal_is_not_repeated(served: Service) -> None:
    served.script = [(404, b"")] * 20
    assert judge(STDIN, SUM, url=served.url).score is None
    assert len(served.bodies) == 1


def test_nobody_listens(short_waits: None) -> None:
    judgement = judge(STDIN, SUM, url="http://127.0.0.1:9")
    assert judgement.score is None and judgement.status == "error"
