"""The preset `judge` on real engines: killed and resumed it repeats itself, and nothing is paid twice."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lab.judge_server import MODEL, Faults, JudgeServer, serve
from rewards.judge_request import JudgeRequest
from rollouts.store import committed_steps, read_step
from trainer.metrics import is_timing

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
SAMPLING: dict[str, Any] = {"max_tokens": 128, "temperature": 0.0, "seed": 0, "extra": {}}
NUM_CANARIES = 8


class RecordingServer(JudgeServer):
    """The lab's judge, which keeps the key of every request that it was sent."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(faults)
        self.keys: list[str] = []

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        messages = tuple((each["role"], each["content"]) for each in (await request.json())["messages"])
        self.keys.append(JudgeRequest(messages=messages, tag="").key(MODEL, SAMPLING))
        return await super()._complete(request)


@contextmanager
def serving(faults: Faults | None = None) -> Iterator[tuple[RecordingServer, str]]:
    """The server on a thread, and its URL."""
    server, urls = RecordingServer(faults or Faults()), list[str]()
    loop = asyncio.new_event_loop()
    work = loop.create_task(serve(server, 0, urls.append))

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(work)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while not urls:
        assert not work.done(), work.exception()
        time.sleep(0.01)
    try:
        yield server, urls[0]
    finally:
        loop.call_soon_threadsafe(work.cancel)
        thread.join(10)


def start(runs: Path, name: str, url: str, *overrides: str) -> subprocess.Popen[str]:
    fixed = [f"name={name}", f"runs_dir={runs}", f"scorers.judge.endpoint={url}", "eval.every=0"]
    cache = f"scorers.judge.cache={runs / name}-cache"
    command = [sys.executable, "-m", "polyphony", "train", "judge", *fixed, cache, *overrides]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    printed, _ = process.communicate(timeout=400)
    assert process.returncode == 0, printed[-3000:]
    return printed


def metrics(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on time or on the cache."""
    lines = lines_of(run / "metrics.jsonl")
    return [{name: line[name] for name in line if not is_timing(name)} for line in lines]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def cached(runs: Path, name: str) -> set[str]:
    return {path.stem for path in (runs / f"{name}-cache").rglob("*.json")}


@pytest.mark.long
def test_a_killed_run_repeats_itself_and_pays_nothing_twice(tmp_path: Path) -> None:
    """SIGKILL in the middle: rows, metrics and the number of judged requests are those of a run in peace."""
    num_steps = 20
    steps = f"num_steps={num_steps}"
    with serving() as (server, url):
        finish(start(tmp_path, "whole", url, steps))
        whole = server.keys
        server.keys = []
        process = start(tmp_path, "killed", url, steps)
        while len(committed_steps(tmp_path / "killed")) < num_steps // 2:
            assert process.poll() is None, process.communicate()[0][-3000:]
            time.sleep(0.02)
        process.kill()
        process.communicate()
        before, server.keys = server.keys, []
        known = cached(tmp_path, "killed")
        finish(start(tmp_path, "killed", url, steps))
    after = server.keys[NUM_CANARIES:]  # the first calls of a driver are canaries, past the cache
    assert len(known) > 10 and after, "the kill must be in the middle"
    assert not known & set(after), "no request that was judged before is sent again"
    assert len(set(after)) == len(after)
    # What was on the way when the driver was killed may have been sent in vain, no more.
    assert set(before[NUM_CANARIES:]) | set(after) == set(whole[NUM_CANARIES:])
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    for step in range(1, num_steps + 1):
        pair = [read_step(tmp_path / name, step).drop_columns(["run_id"]) for name in ("whole", "killed")]
        assert pair[0].equals(pair[1]), f"step {step}"
    last = metrics(tmp_path / "whole")[-1]
    assert last["score/judge"] == pytest.approx(last["score/correct"]), "the lab's judge follows the rule"
    assert last["scorer/judge/prompt_tokens"] > 0


def test_a_faulty_endpoint_gives_no_wrong_score_and_loses_no_group(tmp_path: Path) -> None:
    """A third of the calls fails in every way: all rows are there, those with a score have the right one."""
    with serving(Faults(share=0.33)) as (server, url):
        finish(start(tmp_path, "faulty", url, "num_steps=3", "scorers.judge.call_timeout_s=1"))
    rows = [row for step in (1, 2, 3) for row in read_step(tmp_path / "faulty", step).to_pylist()]
    assert len(rows) == 3 * 8 * 8
    scores = [dict(row["scores"]) for row in rows]
    missing = [each for each in scores if each["judge"] is None]
    assert 0 < len(missing) < len(rows) / 4
    assert all(each["judge"] == each["correct"] for each in scores if each["judge"] is not None)
    assert all((row["reward"] is None) == (dict(row["scores"])["judge"] is None) for row in rows)
    lines = lines_of(tmp_path / "faulty" / "metrics.jsonl")
    # A call that is given up before the server has read it is one of the client's alone.
    calls = sum(line["health/judge/calls"] for line in lines)
    assert server.num_requests <= calls <= 1.1 * server.num_requests
    assert sum(line["health/judge/retries"] for line in lines) > 0


@pytest.mark.long
def test_a_judge_that_fails_too_often_stops_the_run(tmp_path: Path) -> None:
    """Exit code 1 and one message. With a judge that works the same command finishes it, all scores there."""
    broken = Faults(share=1.0, kinds=("half",))
    with serving(broken) as (_, url):
        process = start(tmp_path, "stopped", url, "num_steps=2", "scorers.judge.canaries=none")
        printed, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in printed, printed[-3000:]
    assert "scorer judge: " in printed and "max_failure_share = 0.25" in printed
    with serving() as (_, url):
        finish(start(tmp_path, "stopped", url, "num_steps=2", "scorers.judge.canaries=none"))
    rows = [row for step in (1, 2) for row in read_step(tmp_path / "stopped", step).to_pylist()]
    missing = [row for row in rows if dict(row["scores"])["judge"] is None]
    assert len(rows) == 128 and len(missing) <= 16, "only what was stored before the limit has no score"


@pytest.mark.long
def test_a_judge_that_falls_for_canaries_is_named(tmp_path: Path) -> None:
    """An event, a line and a metric with `warn`; with `stop` the run does not begin."""
    with serving() as (server, url):
        server._gullible = True
        printed = finish(start(tmp_path, "warned", url, "num_steps=1"))
        line = "judge lab-judge gave the canary verdict a score of 1.0, wanted less than 0.5"
        assert line in " ".join(printed.split())
        events = lines_of(tmp_path / "warned" / "events.jsonl")
        fooled = [each for each in events if each["kind"] == "judge_fooled"]
        assert [(each["scorer"], each["canary"]) for each in fooled] == [("judge", "verdict")]
        (first,) = lines_of(tmp_path / "warned" / "metrics.jsonl")
        assert first["health/judge/canaries_failed"] == 1 and first["health/judge/canaries"] == NUM_CANARIES
        process = start(tmp_path, "refused", url, "num_steps=1", "scorers.judge.canaries=stop")
        printed, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "gave the canary 'verdict' a score of 1" in printed
    assert "Traceback" not in printed and not committed_steps(tmp_path / "refused")
