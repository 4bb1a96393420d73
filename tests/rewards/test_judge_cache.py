"""The cache of replies: whole or missing, with several writers at the same time and after a kill."""

from __future__ import annotations

import multiprocessing
import signal
import time
from pathlib import Path

from rewards.judge_cache import ReplyCache
from rewards.model_calls import GenerateReply

KEYS = [f"{number:02x}" * 32 for number in range(4)]


def reply_of(key: str, writer: int = 0) -> GenerateReply:
    """A long reply, so that a write that is not atomic would be seen half."""
    text = f"{key} {writer} \u00e9\U0001f600 " * 5000
    return GenerateReply(text=text, finish_reason="stop", num_prompt_tokens=writer, num_completion_tokens=2)


def write_for_ever(folder: str, writer: int) -> None:
    cache = ReplyCache(folder)
    while True:
        for key in KEYS:
            cache.write(key, reply_of(key, writer))


def test_a_reply_comes_back_as_it_was(tmp_path: Path) -> None:
    cache = ReplyCache(str(tmp_path / "a" / "b"))
    assert cache.read(KEYS[0]) is None
    cache.write(KEYS[0], reply_of(KEYS[0]))
    assert cache.read(KEYS[0]) == reply_of(KEYS[0]) and cache.read(KEYS[1]) is None
    assert ReplyCache(str(tmp_path / "a" / "b")).read(KEYS[0]) == reply_of(KEYS[0])
    nothing = ReplyCache("")
    nothing.write(KEYS[0], reply_of(KEYS[0]))
    assert nothing.read(KEYS[0]) is None


def test_an_entry_under_another_name_is_missing(tmp_path: Path) -> None:
    """Renamed by hand, or of a folder that was put together wrongly."""
    cache = ReplyCache(str(tmp_path))
    cache.write(KEYS[0], reply_of(KEYS[0]))
    other = tmp_path / KEYS[1][:2] / f"{KEYS[1]}.json"
    other.parent.mkdir()
    (tmp_path / KEYS[0][:2] / f"{KEYS[0]}.json").rename(other)
    assert cache.read(KEYS[1]) is None and cache.read(KEYS[0]) is None


def test_writers_that_are_killed_leave_whole_replies(tmp_path: Path) -> None:
    """Three processes write the same entries until SIGKILL; a read is None or the whole reply of one."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_for_ever, args=(str(tmp_path), number)) for number in (1, 2, 3)]
    for writer in writers:
        writer.start()
    cache, seen = ReplyCache(str(tmp_path)), set[int]()
    deadline = time.monotonic() + 60
    try:
        while (len(seen) < 3 or len(list(tmp_path.rglob("*.json"))) < 4) and time.monotonic() < deadline:
            for key in KEYS:
                found = cache.read(key)
                assert found is None or found == reply_of(key, found.num_prompt_tokens)
                seen |= {found.num_prompt_tokens} if found else set()
    finally:
        for writer in writers:
            writer.kill()
            writer.join()
    assert seen == {1, 2, 3} and {writer.exitcode for writer in writers} == {-signal.SIGKILL}
    for key in KEYS:
        found = cache.read(key)
        assert found is not None and found == reply_of(key, found.num_prompt_tokens)
