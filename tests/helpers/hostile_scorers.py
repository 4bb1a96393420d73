"""Scoring code at its worst, imported by the children of test_sandbox.py; light, to start fast."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from rollouts.records import Completion, Judgement, Prompt, Span


def compute_score(
    data_source: str, solution_str: str, ground_truth: object, extra_info: Mapping[str, object]
) -> object:
    """verl's signature; the text says how to misbehave."""
    word, _, rest = solution_str.partition(" ")
    if word == "catastrophic":
        return float(
            bool(re.fullmatch(r"(a+)+b", "a" * 64))
        )  # 2^64 ways, inside C, the interpreter lock held
    if word == "sleep":
        time.sleep(60.0)
    if word == "spawn":
        _spawn(rest)
        time.sleep(60.0)
    if word == "exit":
        os._exit(3)
    if word == "quit":
        sys.exit(0)
    if word == "segfault":
        ctypes.string_at(0)
    if word == "real_time_signal":
        os.kill(os.getpid(), 40)
    if word == "raise":
        raise KeyError("no such thing")
    if word == "raise_deep":
        _look_up({}, rest)
    if word == "print":
        print("seen", rest)
        print("to stderr", file=sys.stderr)
        os.write(1, b"\x1b[31mno newline")
        os._exit(3)
    if word == "flood":
        print("y" * 1_000_000)
        for _ in range(6):
            print(("x" * 999 + "\n") * 1000, end="")
    if word == "memory":
        return float(len(bytearray(64 << 30)))
    if word == "noise":
        print("x" * 100_000)
    results: dict[str, object] = {
        "nan": float("nan"),
        "infinity": float("inf"),
        "huge": 10**400,
        "text": "1.0",
        "none": None,
        "list": [1.0],
        "no_score": {"accuracy": 1.0},
        "bool": True,
        "types": {"score": 1.0, "pred": repr((data_source, ground_truth, dict(extra_info)))},
        "dict": {"score": 0.25, "pred": 7, "acc": True},
        "echo": float(data_source == "arithmetic" and ground_truth == "7" and extra_info == {"level": "2"}),
        "length": float(len(solution_str)),
        "memory_limit": float(resource.getrlimit(resource.RLIMIT_AS)[0] >> 30),
        "secrets": float(sum(name.endswith(("_TOKEN", "_KEY")) for name in os.environ)),
        "gpus": float(os.environ.get("CUDA_VISIBLE_DEVICES") or -1),
        "heavy": float(sum(name in sys.modules for name in ("torch", "ray", "vllm", "deepspeed"))),
    }
    return results.get(word, 0.5)


def _look_up(table: Mapping[str, str], key: str) -> str:
    return table[key]


def _spawn(pid_file: str) -> None:
    """A child in this process group, and one that left it; both would outlive a kill of one process."""
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    near = subprocess.Popen(sleeper)
    far = subprocess.Popen(sleeper, start_new_session=True)
    with open(pid_file, "w", encoding="utf-8") as pids:
        pids.write(f"{near.pid} {far.pid}")


def slow_import_only(options: object) -> None:
    """A warm-up longer than the limit of its test."""
    time.sleep(0.6)


def refuse_warm_up(options: object) -> None:
    raise RuntimeError("no licence")


def rank_by_length(
    prompt: Prompt, completions: Sequence[Completion], options: Mapping[str, object]
) -> list[Judgement]:
    """A user's own kind that needs its siblings: 1 for the longest text; misbehaves on demand."""
    texts = [completion.text for completion in completions]
    if "sleep" in texts:
        time.sleep(60.0)
    longest = max(len(text) for text in texts)
    return [
        Judgement(
            score=float(len(text) == longest),
            tags={"rank": "long" if len(text) == longest else "short"},
            spans=(Span(label="all", start=0, end=len(completion.token_ids)),),
            answer=f"{prompt.messages[0][1]}|{completion.versions[1][0]}|{options['unit']}",
            answer_ok=True,
        )
        for completion, text in zip(completions, texts, strict=True)
    ]


def too_few(prompt: Prompt, completions: Sequence[Completion], options: object) -> list[Judgement]:
    return [Judgement(score=1.0)]


def forge_reply(prompt: Prompt, completions: Sequence[Completion], options: object) -> list[Judgement]:
    """Writes replies of its own to every open descriptor before it answers."""
    forged = b'{"id": 99, "judgements": [{"status": "ok", "score": 1.0, "spans": [], "tags": {}}]}'
    if completions[0].text == "forge":
        message = len(forged).to_bytes(4, "big") + forged
    else:
        message = b"\xff\xff\xff\xff"  # announces 4 GiB
    for descriptor in range(3, 1024):
        try:
            os.write(descriptor, message)
        except OSError:
            continue
    return [Judgement(score=1.0)]


def not_even_judgements(prompt: Prompt, completions: Sequence[Completion], options: object) -> list[object]:
    return ["1.0", Judgement(score=float("nan")), Judgement(score=0.5)][: len(completions)]
