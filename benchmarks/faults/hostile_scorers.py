"""Reward functions that fail as real ones do. They run only in killable processes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from rollouts.records import Completion, Judgement, Prompt


def catastrophic_regex(data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping) -> float:
    """2^64 ways to fail to match, inside C, with the interpreter lock held."""
    return float(bool(re.fullmatch(r"(a+)+b", "a" * 64)))


def ignores_sigterm(data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping) -> float:
    """Sleeps for ever and ignores SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(60.0)


def leaves_children(data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping) -> float:
    """Starts one child in its own process group and one outside of it, then hangs."""
    sleeper = [sys.executable, "-c", "import time; time.sleep(3600)", "polyphony-hostile-child"]
    subprocess.Popen(sleeper)
    subprocess.Popen(sleeper, start_new_session=True)
    time.sleep(3600.0)
    return 1.0


def not_a_number(data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping) -> float:
    """Returns a mapping that looks like a reward and has no valid score."""
    return float("nan")


def wrong_length(prompt: Prompt, completions: Sequence[Completion], options: object) -> list[Judgement]:
    """One judgement too few."""
    return [Judgement(score=1.0) for _ in completions[1:]]
