"""A stub of an OpenAI-compatible endpoint on loopback, which answers as a test wants it to.

`Stub` runs on the event loop of the test. Each request is answered by the next entry of `plan` (the last one
is repeated): a function from the request's body to a reply, or a `Fault`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from aiohttp import web

Body: TypeAlias = dict[str, Any]
TAG = re.compile(r'its "tag" is "([0-9a-f]+)"')
PROMPT_TOKENS, COMPLETION_TOKENS = 100, 20


@dataclass(frozen=True, slots=True)
class Fault:
    """A status with headers; or a body as it is, slow or cut off, with a kept or dropped connection."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    drop_after: int = -1
    """Bytes of the body after which the connection is closed, though more were announced; -1 sends all."""


def tag_of(body: Body) -> str:
    """The tag that a request asks for."""
    found = TAG.search(body["messages"][-1]["content"])
    assert found is not None, "every request says its tag at its end"
    return found[1]


def completion(content: object, finish: str = "stop", **message: object) -> Body:
    """A server's reply with this content."""
    return {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": content, **message},
            }
        ],
        "usage": {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS},
    }


def says(verdicts: object, explanation: str = "because") -> Callable[[Body], Body]:
    """Replies with these verdicts under the request's tag."""

    def reply(body: Body) -> Body:
        verdict = {"tag": tag_of(body), "explanation": explanation, "verdicts": verdicts}
        return completion(json.dumps(verdict))

    return reply


Answer: TypeAlias = Callable[[Body], Body] | Fault


class Stub:
    """The endpoint: ``async with Stub([...]) as stub`` listens on a free port; `url` is its base URL."""

    def __init__(self, plan: Sequence[Answer]) -> None:
        self.plan = list(plan)
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.most_in_flight = 0
        self.url = ""

    async def __aenter__(self) -> Stub:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}/v1"
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        answer = self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if isinstance(answer, Fault):
                return await self._fault(request, answer)
            return web.json_response(answer(body))
        finally:
            self.in_flight -= 1

    async def _fault(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        await asyncio.sleep(fault.wait_s)
        if fault.drop_after < 0:
            return web.Response(
                status=fault.status,
                body=fault.body,
                headers=fault.headers,
                content_type="application/json",
            )
        response = web.StreamResponse(status=fault.status, headers={"Content-Length": str(len(fault.body))})
        await response.prepare(request)
        await response.write(fault.body[: fault.drop_after])
        assert request.transport is not None
        request.transport.abort()
        return response
