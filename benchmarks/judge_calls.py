"""What the scorer `judge` adds to a call: `python -m benchmarks.judge_calls [OUT.json]`.

The lab's judge answers in a process of its own, so that client and server each have a core. For each number
of calls at the same time: calls a second of the scorer, of the bare HTTP client aiohttp with the same bodies
(the baseline, which parses nothing), and the scorer's milliseconds of CPU for a call. Then the same answers
again, from the cache.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.bare import ROOT
from configs.kinds.judges import JudgeOptions
from lab.judge_server import MODEL
from rewards.judge import Judge
from rewards.judge_request import make_request
from rewards.judge_rubric import load_rubric
from rollouts.records import Completion, Prompt

PROMPT = Prompt(prompt_id="p", messages=(("user", "( 3 + 4 ) * 2 = ?"),), answer="14", domain="arithmetic")


@contextmanager
def lab_judge() -> Iterator[str]:
    """The URL of a lab judge in its own process."""
    command = [sys.executable, "-m", "polyphony", "lab", "judge-server", "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split(" at ")[1].split()[0]
    finally:
        process.terminate()
        process.wait()


def completions(count: int, mark: str) -> list[Completion]:
    """Answers that differ, half of them right."""
    return [
        Completion(
            sample_id=f"g.{k}",
            seed=k,
            token_ids=(1,),
            text=f"{mark} {k} : 3 + 4 = 7 ; 7 * 2 = {14 + k % 2}",
            finish_reason="stop",
            behavior_logprobs=(0.0,),
            versions=((0, 0),),
        )
        for k in range(count)
    ]


async def scored(url: str, at_once: int, count: int, cache: str) -> dict[str, float]:
    """Calls a second and CPU of the scorer; then the same again, from its cache."""
    options = JudgeOptions(
        endpoint=url,
        served_model=MODEL,
        cache=cache,
        canaries="none",
        max_concurrent=at_once,
        deadline_s=600.0,
    )
    judge = Judge(options)
    # Connections are opened here, which a run does once.
    await judge.score(PROMPT, completions(at_once, "warm"))
    answers, found = completions(count, f"a{at_once}"), {}
    for name in ("calls", "cached"):
        began, cpu = time.perf_counter(), time.process_time()
        judgements = await judge.score(PROMPT, answers)
        assert [each.score for each in judgements] == [float(k % 2 == 0) for k in range(count)]
        found[f"{name}_per_s"] = count / (time.perf_counter() - began)
        found[f"{name}_cpu_ms"] = 1000 * (time.process_time() - cpu) / count
    await judge.close()
    return found


async def bare(url: str, at_once: int, count: int) -> float:
    """Calls a second of aiohttp with the same bodies."""
    rubric, places = load_rubric("correctness"), asyncio.Semaphore(at_once)

    async def call(session: aiohttp.ClientSession, answer: str) -> None:
        request = make_request(rubric, PROMPT.messages[0][1], PROMPT.answer, answer, 16_000)
        messages = [{"role": role, "content": content} for role, content in request.messages]
        body: dict[str, Any] = {"model": MODEL, "messages": messages, "max_tokens": 512, "temperature": 0.0}
        async with places, session.post(f"{url}/chat/completions", json=body) as reply:
            await reply.read()

    async with aiohttp.ClientSession() as session:
        await call(session, "warm")
        began = time.perf_counter()
        await asyncio.gather(*(call(session, each.text) for each in completions(count, f"b{at_once}")))
        return count / (time.perf_counter() - began)


def main() -> int:
    """Measure, print a line for each number of calls at the same time, and store them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--count", type=int, default=400)
    given = parser.parse_args()
    rows = []
    with lab_judge() as url, tempfile.TemporaryDirectory() as cache:
        for at_once in (1, 8, 32):
            baseline = asyncio.run(bare(url, at_once, given.count))
            row = {"at_once": at_once, **asyncio.run(scored(url, at_once, given.count, cache))}
            rows.append(row | {"bare_per_s": baseline, "ratio": row["calls_per_s"] / baseline})
            print(json.dumps({name: round(value, 3) for name, value in rows[-1].items()}), flush=True)
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
