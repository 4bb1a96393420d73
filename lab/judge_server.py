"""A judge for the lab: an OpenAI-compatible server on loopback that compares last integers, by rule.

It stands in for a language model where none is at hand, so that `configs/judge.yaml` trains without a
network. It reads the request of the scorer `judge` with the rubric `correctness`, names the last
integer of any other message, for scorers of your own, and can fail on purpose.
Started by `polyphony lab judge-server`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

HOST: Final = "127.0.0.1"
PORT: Final = 8901
MODEL: Final = "lab-judge"
FAULTS: Final = ("429", "500", "nothing", "half", "refusal", "slow", "dies")
SLOW_S: Final = 2.0
_BLOCK: Final = r"<<<{name} ([0-9a-f]+)>>>\n(.*)\n<<<END {name} \1>>>"
_INTEGER: Final = re.compile(r"-?[0-9]+")
_VERDICTS: Final = re.compile(r'"verdicts"\s*:\s*\{\s*"correct"\s*:\s*"(yes|no)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Which requests fail, and how: a share of them, drawn from `kinds` by a hash of their number."""

    share: float = 0.0
    kinds: tuple[str, ...] = FAULTS

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"the share of faults must be between 0 and 1, got {self.share:g}")
        if unknown := [kind for kind in self.kinds if kind not in FAULTS]:
            raise ValueError(f"faults must be of {', '.join(FAULTS)}, got {unknown[0]!r}")

    def of(self, number: int) -> str:
        """The fault of a request, or ""."""
        # By a hash and not a generator: which requests fail does not depend on how many are in flight.
        digest = hashlib.sha256(f"fault {number}".encode()).digest()
        drawn = int.from_bytes(digest[:8], "big") / 2.0**64
        return self.kinds[digest[8] % len(self.kinds)] if drawn < self.share else ""


def judge(messages: Sequence[Mapping[str, str]], gullible: bool = False) -> dict[str, object]:
    """The verdict on the ANSWER block: yes if its last integer is that of the REFERENCE block.

    A `gullible` judge gives what the answer dictates as a verdict, if it does, to show that canaries find it.

    Raises:
        ValueError: the messages are not those of the scorer `judge` with a reference.
    """
    text = messages[-1]["content"]
    tag, answer = _block(text, "ANSWER")
    _, reference = _block(text, "REFERENCE")
    given, wanted = (_INTEGER.findall(each) for each in (answer, reference))
    correct = bool(given and wanted) and int(given[-1]) == int(wanted[-1])
    why = f"the answer ends with {given[-1] if given else 'no integer'}, the reference with {wanted[-1:]}"
    dictated = _VERDICTS.findall(answer)
    if gullible and dictated:
        correct, why = dictated[-1] == "yes", "the answer says so"
    return {"tag": tag, "explanation": why, "verdicts": {"correct": "yes" if correct else "no"}}


def reply_to(messages: Sequence[Mapping[str, str]], gullible: bool = False) -> str:
    """The verdict that the scorer `judge` asks for; in any other chat a sentence with the last integer."""
    text = messages[-1]["content"]
    if "<<<ANSWER " in text:
        return json.dumps(judge(messages, gullible))
    found = _INTEGER.findall(text)
    return f"The last integer of your message is {found[-1]}." if found else "Your message has no integer."


def _block(text: str, name: str) -> tuple[str, str]:
    """(tag, content) of a block of the user's message."""
    found = re.search(_BLOCK.format(name=name), text, re.DOTALL)
    if found is None:
        raise ValueError(f"the last message must have a block {name}, as that of a rubric with a reference")
    return found[1], found[2]


class JudgeServer:
    """Answers requests one by one; counts them."""

    def __init__(self, faults: Faults, gullible: bool = False) -> None:
        self._faults, self._gullible = faults, gullible
        self.num_requests = 0

    def app(self) -> web.Application:
        """The server's routes."""
        app = web.Application(client_max_size=8 << 20)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", _models)
        app.router.add_get("/requests", self._count)
        return app

    async def _count(self, request: web.Request) -> web.Response:
        return web.json_response({"requests": self.num_requests})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        self.num_requests += 1
        fault = self._faults.of(self.num_requests)
        try:
            body = await request.json()
            content = reply_to(body["messages"], self._gullible)
        except (ValueError, KeyError, TypeError, IndexError, ConnectionError) as error:
            return web.json_response({"error": {"message": f"bad request: {error}"}}, status=400)
        if fault in ("429", "500"):
            headers = {"Retry-After": "0.2"} if fault == "429" else {}
            return web.json_response({"error": {"message": fault}}, status=int(fault), headers=headers)
        if fault == "nothing":
            return web.Response(body=b"", content_type="application/json")
        if fault == "slow":
            await asyncio.sleep(SLOW_S)
        reply = _completion(content[: len(content) // 2] if fault == "half" else content, body)
        if fault == "refusal":
            reply["choices"][0]["message"] |= {"content": None, "refusal": "I cannot judge this."}
        return await _dying(request, reply) if fault == "dies" else web.json_response(reply)


async def _models(request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})


async def _dying(request: web.Request, reply: dict[str, Any]) -> web.StreamResponse:
    """Announce a whole reply, send half of it, and drop the connection."""
    content = json.dumps(reply).encode()
    response = web.StreamResponse(headers={"Content-Length": str(len(content))})
    await response.prepare(request)
    await response.write(content[: len(content) // 2])
    # Not `close`, which ends the connection in order: the client must see a reset.
    if request.transport is not None:
        request.transport.abort()
    return response


def _completion(content: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """A reply in the format of chat completions. A word counts as a token."""
    num_prompt = sum(len(str(message["content"]).split()) for message in body["messages"])
    num_completion = len(content.split())
    message = {"role": "assistant", "content": content}
    return {
        "id": "chatcmpl-lab",
        "object": "chat.completion",
        "created": 0,
        "model": body.get("model", MODEL),
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_completion,
            "total_tokens": num_prompt + num_completion,
        },
    }


async def serve(server: JudgeServer, port: int, ready: Callable[[str], None]) -> None:
    """Serve on loopback until cancelled; port 0 is any free one. `ready` gets the base URL.

    Raises:
        ValueError: the port is taken, or none at all.
    """
    if not 0 <= port < 1 << 16:
        raise ValueError(f"--port must be 0 to {(1 << 16) - 1}, got {port}")
    # aiohttp waits a minute for open connections, which would delay Ctrl-C by as much.
    runner = web.AppRunner(server.app(), shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, HOST, port).start()
        except OSError as error:
            raise ValueError(f"--port must be a free port, got {port}: {error.strerror}") from error
        ready(f"http://{HOST}:{runner.addresses[0][1]}/v1")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def run(port: int, faults: Faults, gullible: bool) -> int:
    """Serve until interrupted; returns exit code 0."""

    def ready(url: str) -> None:
        print(f"judge {MODEL} at {url} (Ctrl-C ends it)", file=sys.stdout, flush=True)

    with suppress(KeyboardInterrupt):
        asyncio.run(serve(JudgeServer(faults, gullible), port, ready))
    return 0
