"""A language model behind an OpenAI-compatible endpoint, as a `Model`. In: chats. Out: replies, or why not.

Deadlines and retries of its calls are here, limits in `rewards.call_limits`. Only 429, 5xx, broken
connections and broken replies are tried again. Used by `rewards.judge`. The `openai` package, which vLLM
brings, is imported when a model is made.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

from rewards.call_limits import CallLimits
from rewards.model_calls import (
    ClassifyReply,
    EmbedReply,
    GenerateReply,
    GenerateRequest,
    ModelCallError,
    OverLong,
    TextOrPair,
)

CHARS_PER_TOKEN: Final = 3.0
"""For the limit of tokens a minute, before a call has shown how many it takes."""
MAX_BACKOFF_S: Final = 20.0
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_MAX_MESSAGE: Final = 300
_MAX_WAIT_S: Final = 86_400.0
_MAX_TOKENS: Final = 1_000_000_000


class RefusedError(ModelCallError):
    """The model or its server declined to answer: a refusal, a content filter, an empty reply."""


class EndpointError(ModelCallError):
    """The server does not accept the call at all, as with a wrong key, model or address."""


class _TryAgainError(Exception):
    """A failure that may pass; `after_s` is how long the server asked to wait."""

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.after_s = after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointConfig:
    """Where a model is served, and how it is called. Times are in seconds, prices per million tokens."""

    url: str
    model: str
    api_key: str = field(default="", repr=False)
    call_timeout_s: float = 30.0
    deadline_s: float = 50.0
    """Of one request with all its retries and waits."""
    max_retries: int = 4
    backoff_s: float = 1.0
    """Before the first retry; doubled for each further one, times a random number from 0.5 to 1."""
    price_in: float = 0.0
    price_out: float = 0.0
    send_seed: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of each request's body."""


@dataclass(slots=True)
class CallCounts:
    """What was really sent and paid, retries and failures included, since `take`."""

    sums: dict[str, float] = field(default_factory=dict)
    slowest_s: float = 0.0
    total_cost: float = 0.0
    """Since the start of the process; `take` leaves it."""

    def add(self, name: str, amount: float = 1.0) -> None:
        if name == "cost":
            self.total_cost += amount
        self.sums[name] = self.sums.get(name, 0.0) + amount

    def call(self, seconds: float) -> None:
        """Count a call that took so long."""
        self.add("calls")
        self.add("call_s", seconds)
        self.slowest_s = max(self.slowest_s, seconds)

    def take(self) -> tuple[dict[str, float], float]:
        """(sums, slowest call) so far, which begin again at 0."""
        taken = (self.sums, self.slowest_s)
        self.sums, self.slowest_s = {}, 0.0
        return taken


class EndpointModel:
    """A `Model` of task generate. Beside `ModelCallError` it raises TimeoutError, at its own deadline."""

    def __init__(self, config: EndpointConfig, limits: CallLimits, counts: CallCounts) -> None:
        try:
            import openai
        except ModuleNotFoundError as error:
            raise ValueError(
                "a model behind an endpoint needs the package openai, which the extras [cpu] and [gpu] have"
            ) from error
        self._openai, self._config, self._limits, self._counts = openai, config, limits, counts
        self._random = random.Random()  # only for the waits between retries, which decide no score
        # A proxy of the environment cannot reach this machine's own ports.
        is_local = (urlsplit(config.url).hostname or "") in _LOOPBACK
        self._client = openai.AsyncOpenAI(
            base_url=config.url,
            # Never the OPENAI_API_KEY of the environment, which was not meant for this endpoint.
            api_key=config.api_key or "none",
            max_retries=0,
            timeout=config.call_timeout_s,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=not is_local, follow_redirects=False),
        )

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[GenerateReply]:
        """One reply per request, each with a deadline of its own.

        Raises:
            TimeoutError: a deadline has passed, or would before the limits leave room.
            RefusedError: the model declined to answer.
            EndpointError: the server does not accept such calls.
            ModelCallError: the calls failed in another way.
        """
        return list(await asyncio.gather(*(self._patiently(request) for request in requests)))

    async def classify(
        self, inputs: Sequence[TextOrPair], over_long: OverLong = "cut_left"
    ) -> list[ClassifyReply]:
        raise ValueError("a model behind an endpoint generates text; it cannot classify")

    async def embed(self, inputs: Sequence[str], over_long: OverLong = "cut_right") -> list[EmbedReply]:
        raise ValueError("a model behind an endpoint generates text; it cannot embed")

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def _patiently(self, request: GenerateRequest) -> GenerateReply:
        """The reply after up to `max_retries` further tries, within the deadline."""
        config, deadline = self._config, time.monotonic() + self._config.deadline_s
        for attempt in range(config.max_retries + 1):
            try:
                return await self._limited(request, deadline)
            except _TryAgainError as error:
                if attempt == config.max_retries:
                    raise ModelCallError(f"{error} ({attempt + 1} tries)") from error
                backoff_s = min(config.backoff_s * 2**attempt, MAX_BACKOFF_S) * self._random.uniform(0.5, 1)
                wait_s = max(backoff_s, error.after_s)
                if time.monotonic() + wait_s >= deadline:
                    raise TimeoutError(f"{error}; a retry in {wait_s:.0f} s would be too late") from error
                self._counts.add("retries")
                await asyncio.sleep(wait_s)
        raise AssertionError("the last try returns or raises")

    async def _limited(self, request: GenerateRequest, deadline: float) -> GenerateReply:
        body = self._body(request)
        estimated = int(len(json.dumps(body)) / CHARS_PER_TOKEN) + request.max_tokens
        async with self._limits.place(estimated, deadline):
            limit_s = min(self._config.call_timeout_s, deadline - time.monotonic())
            began, payload = time.monotonic(), None
            try:
                async with asyncio.timeout(limit_s):
                    payload = await self._send(body)
            except TimeoutError as error:
                raise _TryAgainError(f"no reply within {limit_s:.3g} s") from error
            finally:
                self._counts.call(time.monotonic() - began)
                used = _usage(payload)
                self._limits.correct(estimated, sum(used) if payload is not None else estimated)
            return self._read(payload, used)

    def _body(self, request: GenerateRequest) -> dict[str, Any]:
        if not all(isinstance(each, tuple) for each in request.prompt):
            raise ValueError("the prompt of an endpoint must be a chat, got token ids")
        messages = [{"role": role, "content": content} for role, content in request.prompt]  # type: ignore[misc]
        body: dict[str, Any] = {
            "model": self._config.model,
            "messages": messages,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
        }
        if self._config.send_seed:
            body["seed"] = request.seed
        if request.json_schema:
            body["response_format"] = _response_format(request.json_schema)
        body |= self._config.extra
        return {name: value for name, value in body.items() if value is not None}

    async def _send(self, body: dict[str, Any]) -> object:
        """The body of the server's reply, as JSON."""
        openai, own = self._openai, {"model": body["model"], "messages": body["messages"]}
        rest = {name: value for name, value in body.items() if name not in own}
        try:
            reply = await self._client.chat.completions.with_raw_response.create(**own, extra_body=rest)
            return json.loads(reply.http_response.content)
        except openai.APITimeoutError as error:
            raise _TryAgainError(f"no reply within {self._config.call_timeout_s:g} s") from error
        except openai.APIStatusError as error:
            raise self._status_error(error) from error
        except openai.APIConnectionError as error:
            raise _TryAgainError(f"{self._config.url} cannot be reached: {_cause(error)}") from error
        except (ValueError, RecursionError) as error:  # JSON that ends early, or is none
            raise _TryAgainError(f"the server's reply is not JSON: {_short(str(error))}") from error

    def _status_error(self, error: Any) -> Exception:
        status, reason = int(error.status_code), _status_reason(error)
        after_s = _retry_after(error.response.headers)
        if status == 429:
            self._counts.add("rate_limited")
            self._limits.pause(after_s)
            return _TryAgainError(reason, after_s)
        if status >= 500 or status in (408, 409):
            return _TryAgainError(reason, after_s)
        return EndpointError(f"{self._config.url} refused the call with {reason}")

    def _read(self, payload: object, used: tuple[int, int]) -> GenerateReply:
        """The reply in a server's answer. The tokens of one without a usable reply are paid, too."""
        num_prompt, num_completion = used
        config = self._config
        cost = (num_prompt * config.price_in + num_completion * config.price_out) / 1e6
        for name, amount in (("prompt_tokens", num_prompt), ("completion_tokens", num_completion)):
            self._counts.add(name, amount)
        self._counts.add("cost", cost)
        try:
            choice = payload["choices"][0]  # type: ignore[index]
            message, finish = choice["message"], choice.get("finish_reason")
            content, refusal = message.get("content"), message.get("refusal")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise _TryAgainError(f"the server's reply has no message: {_short(str(payload))}") from error
        if refusal or finish == "content_filter":
            raise RefusedError(f"refused: {_short(str(refusal or 'by a content filter'))}")
        if not isinstance(content, str) or not content.strip():
            raise RefusedError("the reply is empty")
        return GenerateReply(
            text=content,
            finish_reason="length" if finish == "length" else "stop" if finish == "stop" else str(finish),
            num_prompt_tokens=num_prompt,
            num_completion_tokens=num_completion,
            cost=cost,
        )


def _status_reason(error: Any) -> str:
    """ "status 429 Too Many Requests: slow down": the number, its meaning, and what the server says."""
    code, said = int(error.status_code), error.body
    phrase = HTTPStatus(code).phrase if code in set(HTTPStatus) else ""
    meaning = f"status {code} {phrase}".rstrip()
    if isinstance(said, Mapping):
        said = said.get("message") or dict(said)
    text = _short(str(said or ""))
    # Some servers only repeat the status.
    return meaning if text.casefold() in meaning.casefold() else f"{meaning}: {text}"


class EndpointClient:
    """An `EndpointModel` that can be sent to other processes: it connects at the first call.

    `label` begins its messages; `key_variable` is the environment variable, of the process that calls, with
    the key. Used on one event loop.

    Raises:
        ModelCallError: (from every method) no result could be had within the deadline of the config.
    """

    def __init__(self, label: str, config: EndpointConfig, key_variable: str, max_concurrent: int) -> None:
        self._label, self._config = label, config
        self._key_variable, self._max_concurrent = key_variable, max_concurrent
        self._model: EndpointModel | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Connections belong to a process; a copy begins without them, and without the key.
        return EndpointClient, (self._label, self._config, self._key_variable, self._max_concurrent)

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[GenerateReply]:
        """One reply per request."""
        try:
            return await self._connected().generate(requests)
        except TimeoutError as error:
            raise ModelCallError(f"{self._label}: {error}") from error

    async def classify(
        self, inputs: Sequence[TextOrPair], over_long: OverLong = "cut_left"
    ) -> list[ClassifyReply]:
        return await self._connected().classify(inputs, over_long)

    async def embed(self, inputs: Sequence[str], over_long: OverLong = "cut_right") -> list[EmbedReply]:
        return await self._connected().embed(inputs, over_long)

    def _connected(self) -> EndpointModel:
        if self._model is None:
            key = os.environ.get(self._key_variable, "") if self._key_variable else ""
            limits = CallLimits(self._max_concurrent, 0.0, 0.0)
            self._model = EndpointModel(replace(self._config, api_key=key), limits, CallCounts())
        return self._model


def _response_format(json_schema: str) -> dict[str, Any]:
    """The schema as OpenAI, vLLM and others take it."""
    return {
        "type": "json_schema",
        "json_schema": {"name": "reply", "strict": True, "schema": json.loads(json_schema)},
    }


def _usage(payload: object) -> tuple[int, int]:
    """(prompt tokens, completion tokens) by the server's count; 0 for what it does not say."""
    usage = payload.get("usage") if isinstance(payload, dict) else None
    counts = usage if isinstance(usage, dict) else {}
    given = [counts.get(name) for name in ("prompt_tokens", "completion_tokens")]
    # More than any model reads is no count, and would make a wrong sum of the cost.
    first, second = (each if type(each) is int and 0 <= each <= _MAX_TOKENS else 0 for each in given)
    return first, second


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait: a number or a date. 0 if it does not say."""
    given = headers.get("retry-after", "")
    try:
        seconds = float(given)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(given).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    return min(seconds, _MAX_WAIT_S) if seconds > 0 else 0.0


def _cause(error: BaseException) -> str:
    """The innermost reason of a connection error, which says more than the outer ones."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return _short(str(error) or type(error).__name__)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_MESSAGE else line[: _MAX_MESSAGE - 3] + "..."
