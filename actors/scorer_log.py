"""The log of a scorer: what its function prints, and why scores are missing. Limited in size.

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
"""Failures of one kind that are logged; the metrics count all of them."""
MAX_KINDS: Final = 50
MAX_OUTPUT_BYTES: Final = 4 << 20
"""Limit for all output of a function, over the lifetime of its scorer."""
MAX_LINE_CHARS: Final = 2000
_READ_BYTES: Final = 1 << 16
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

logger = logging.getLogger(__name__)


class ScorerLog:
    """The log of one scorer. `name`, its function, begins every line. `mask` removes secrets from a line.

    Safe to use from several threads.
    """

    def __init__(self, name: str, mask: Callable[[str], str] = str) -> None:
        self.name, self._mask = name, mask
        self._lock = threading.Lock()
        self._count: Counter[str] = Counter()
        self._output_bytes = 0

    def failure(self, status: str, detail: str, sample_id: str, full: str = "") -> None:
        """Log why a sample has no score, for the first `MAX_PER_KIND` failures of a kind.

        The first three words of `detail` are the kind: "compute_score returned str", "my_rewards.py:12 in
        compute_score". `full` is a traceback.
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

    def judgement(self, judgement: Judgement, sample_id: str, full: str = "") -> None:
        """Log a judgement without a score; does nothing for one with a score."""
        if judgement.status != "ok":
            self.failure(judgement.status, judgement.detail, sample_id, full)

    def output(self, line: bytes) -> None:
        """Log a line that the function printed, up to `MAX_OUTPUT_BYTES` in all."""
        with self._lock:
            before = self._output_bytes
            self._output_bytes += len(line) + 1
        if before >= MAX_OUTPUT_BYTES:
            return
        if before + len(line) >= MAX_OUTPUT_BYTES:
            self._write(f"has printed {MAX_OUTPUT_BYTES >> 20} MiB; its further output is not logged")
            return
        self._write(line.decode(errors="replace"))

    def follow(self, descriptor: int) -> threading.Thread:
        """Log what a process prints, on a thread, until the last writer has closed the pipe."""
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
                line += rest[: MAX_LINE_CHARS * 4]  # bounds the memory of a line that never ends
                line = line[: MAX_LINE_CHARS * 4]
        if line:
            self.output(line)

    def _write(self, text: str) -> None:
        line = _CONTROL.sub("\ufffd", self._mask(text))  # escape sequences would act on the reader's terminal
        line = line if len(line) <= MAX_LINE_CHARS else f"{line[:MAX_LINE_CHARS]}..."
        logger.warning("[%s] %s", self.name, line)
