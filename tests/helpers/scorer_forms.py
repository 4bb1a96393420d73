"""Scorers of each form, as a user would write them; imported by the actor or by its sandbox's children."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from configs.kinds.base import OwnOptions
from rewards.target_forms import Item, batched
from rollouts.records import Completion, Judgement, Prompt

in_flight = 0
most = 0
batches: list[int] = []
closed: list[str] = []


def _length(completion: Completion) -> Judgement:
    return Judgement(score=float(len(completion.text)))


async def plain(prompt: Prompt, completions: Sequence[Completion], options: object) -> list[Judgement]:
    """The lengths of the texts, after a short wait; the text may say how to misbehave."""
    global in_flight, most
    word = completions[0].text
    if word == "raise":
        raise KeyError("no such thing")
    if word == "exit":
        sys.exit(3)
    if word == "cancel":
        raise asyncio.CancelledError
    if word == "too late":
        raise TimeoutError("the server did not answer")
    if word == "wait":
        await asyncio.Event().wait()
    if word == "ignore":
        while True:
            try:
                await asyncio.sleep(60.0)
            except asyncio.CancelledError:
                continue
    if word == "block":
        time.sleep(2.0)
    in_flight += 1
    most = max(most, in_flight)
    await asyncio.sleep(0.05)
    in_flight -= 1
    return [_length(completion) for completion in completions]


class Client:
    """A scorer that holds something: made and used on one event loop, closed at the end."""

    def __init__(self, options: OwnOptions) -> None:
        self.loop = asyncio.get_running_loop()
        self.bonus = float(options.options["bonus"])
        if self.bonus < 0:
            raise ValueError(f"bonus must not be negative, got {os.environ.get('JUDGE_API_KEY', self.bonus)}")

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        assert self.loop is asyncio.get_running_loop()
        return [Judgement(score=self.bonus + len(completion.text)) for completion in completions]

    async def close(self) -> None:
        closed.append("client")


class Threaded:
    """A class with plain methods: each call on a thread."""

    def __init__(self, options: object) -> None:
        self.together = threading.Barrier(2)

    def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        if completions[0].text == "sleep":
            time.sleep(3600.0)
        self.together.wait(10.0)  # passes only if two calls are in flight
        return [_length(completion) for completion in completions]

    def close(self) -> None:
        closed.append("threaded")


@batched
class Model:
    """The stand-in of a reward model: scores a batch in one call, which the text may hinder."""

    def __init__(self, options: OwnOptions) -> None:
        self.options = options

    def score(self, items: Sequence[Item]) -> list[Judgement]:
        batches.append(len(items))
        texts = [completion.text for _, completion in items]
        if "raise" in texts:
            raise KeyError("no such thing")
        if "sleep" in texts:
            time.sleep(3600.0)
        return [_length(completion) for _, completion in items]


@batched
async def served(items: Sequence[Item], options: object) -> list[Judgement]:
    """A second batched scorer: a coroutine function."""
    batches.append(len(items))
    await asyncio.sleep(0)
    return [Judgement(score=float(prompt.prompt_id == "p1") + len(c.text)) for prompt, c in items]


class NoScorer:
    """Lacks the method."""

    def __init__(self, options: object) -> None: ...


KEY_AT_IMPORT = os.environ.get("JUDGE_API_KEY", "")


def tells_secret(prompt: Prompt, completions: Sequence[Completion], options: object) -> list[Judgement]:
    """Runs in the sandbox: prints, raises and answers with its secret, or says which variables it has."""
    return _tell(completions)


async def tells_secret_async(
    prompt: Prompt, completions: Sequence[Completion], options: object
) -> list[Judgement]:
    """The same in the actor."""
    return _tell(completions)


def _tell(completions: Sequence[Completion]) -> list[Judgement]:
    key = os.environ.get("JUDGE_API_KEY", "none")
    print(f"out: {key}")
    print(f"err: {key}", file=sys.stderr)
    if completions[0].text == "raise":
        raise ValueError(f"401 for key {key}")
    has = {name: str(name in os.environ) for name in ("JUDGE_API_KEY", "OTHER_API_KEY")}
    return [Judgement(score=float(len(key)), answer=f"<{key}>", tags=has) for _ in completions]


async def tells_other(prompt: Prompt, completions: Sequence[Completion], options: object) -> list[Judgement]:
    """1 where it has a secret that is another scorer's."""
    return [Judgement(score=float("JUDGE_API_KEY" in os.environ)) for _ in completions]


class Exhausted:
    """Its method raises StopIteration."""

    def __init__(self, options: object) -> None:
        self.nothing: Iterator[Judgement] = iter(())

    def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        return [next(self.nothing)]
