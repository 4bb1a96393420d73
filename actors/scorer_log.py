"""What a person finds in a scorer's log: what its function prints, and why scores are missing. Bounded.

Used by `actors.sandbox`, whose processes run the function, and by `actors.scorer` for code in its own
process. Lines go to this module's logger, whose output is the log file of the scorer's process.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Callable
from typing import Final

from rollouts.records import Judgement

MAX_PER_KIND: Final = 3
"""Failures of one kind that are described; the metrics count all of them."""
MAX_KINDS: Final = 50
MAX_OUTPUT_BYTES: Final = 4 << 20
"""Of what a function prints, for as long as its scorer lives."""
MAX_LINE_CHARS: Final = 2000
_READ_BYTES: Final = 1 << 16
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

logger = logging.getLogger(__name__)


class ScorerLog:
    """The log of one scorer. `name` is its function, which marks every line. Many threads may use it.

    `mask` takes secrets out of a line.
    """

    def __init__(self, name: str, mask: Callable[[str], str] = str) -> None:
        self.name, self._mask = name, mask
        self._lock = threading.Lock()
        self._count: Counter[str] = Counter()
        self._output_bytes = 0

    def failure(self, status: str, detail: str, sample_id: str, full: str = "") -> None:
        """Describe why a sample has no score, if few of its kind were described before.

        `detail` begins with what makes the kind, in three words: "compute_score returned str",
        "my_rewards.py:12 in compute_score". `full` is a traceback.
        """
        kind = " ".join([status, *detail.split()[:3]])
        with self._lock:
            if kind not in self._count and len(self._count) >= MAX_KINDS:
                return
            self._count[kind] += 1
            number = self._count[kind]
        if number > MAX_PER_KIND:
            return
        rest = " (further ones of this kind are only counted)" if number == MAX_PER_KIND else ""
        self._write(f"sample {sample_id}: {status}: {detail}{rest}")
        for line in full.splitlines():
            self._write(f"  {line}")

    def judgement(self, judgement: Judgement, sample_id: str) -> None:
        """Describe a judgement that is no score; nothing for one that is."""
        if judgement.status != "ok":
            self.failure(judgement.status, judgement.detail, sample_id)

    def output(self, line: bytes) -> None:
        """A line that the function printed; past `MAX_OUTPUT_BYTES` nothing any more."""
        with self._lock:
            before = self._output_bytes
            self._output_bytes += len(line) + 1
        if before >= MAX_OUTPUT_BYTES:
            return
        if before + len(line) >= MAX_OUTPUT_BYTES:
            self._write(f"has printed {MAX_OUTPUT_BYTES >> 20} MiB; what it prints from here on is left out")
            return
        self._write(line.decode(errors="replace"))

    def follow(self, descriptor: int) -> threading.Thread:
        """Read what a process prints until all its writers are gone, and close `descriptor` then."""
        thread = threading.Thread(target=self._follow, args=(descriptor,), daemon=True, name="scorer-log")
        thread.start()
        return thread

    def _follow(self, descriptor: int) -> None:
        line = b""
        with open(descriptor, "rb", buffering=0) as output:
            while data := os.read(output.fileno(), _READ_BYTES):
                *whole, rest = data.split(b"\n")
                for each in whole:
                    self.output(line + each)
                    line = b""
                line += rest[: MAX_LINE_CHARS * 4]  # of a line without end only the beginning is kept
                line = line[: MAX_LINE_CHARS * 4]
        if line:
            self.output(line)

    def _write(self, text: str) -> None:
        shown = _CONTROL.sub("\ufffd", self._mask(text))  # a terminal that shows the log must not obey it
        shown = shown if len(shown) <= MAX_LINE_CHARS else f"{shown[:MAX_LINE_CHARS]}..."
        logger.warning("[%s] %s", self.name, shown)
