"""Watches the scorers of a run: their own reports, and how many of their recent scores are missing.

In: reports and scored groups. Out: metrics health/<scorer>/*, events, and the end of a run whose scorer must
not be trusted or cannot be reached. Used by the loop, `trainer.collect` and the producer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, Protocol, runtime_checkable

from rewards.scorer_reports import NO_REPORT, ScorerReport, combined
from rollouts.records import Group
from trainer.roles import Scorer

WINDOW: Final = 64
"""Recent completions of which a scorer's missing scores are counted."""


class ScorerStoppedError(RuntimeError):
    """A scorer fails too often, or says itself that the run must stop."""


@runtime_checkable
class ReportingScorer(Protocol):
    """A scorer that reports of itself."""

    async def take_report(self) -> ScorerReport:
        """The combined report of its replicas since the last call."""
        ...


class ScorerReports:
    """Takes the reports of all scorers that have them; `event` receives their events."""

    def __init__(self, scorers: Mapping[str, Scorer], event: Callable[..., None]) -> None:
        self._scorers = {name: each for name, each in scorers.items() if isinstance(each, ReportingScorer)}
        self._event = event
        self._held: dict[str, ScorerReport] = {}
        self._stop = ""

    async def look(self) -> None:
        """Pass on events and requests to stop. The numbers are those of the next `take`."""
        reports = await asyncio.gather(*(each.take_report() for each in self._scorers.values()))
        for name, report in zip(self._scorers, reports, strict=True):
            for event in report.events:
                self._event(event.kind, scorer=name, **event.fields)
            if report.stop and not self._stop:
                self._stop = f"scorer {name}: {report.stop}"
            # Kept until the metrics of a step take them: a report empties the counters of the scorer.
            self._held[name] = combined([self._held.get(name, NO_REPORT), replace(report, events=())])

    async def take(self) -> dict[str, float]:
        """The metrics health/<scorer>/<name> since the last call; events are passed on as by `look`."""
        await self.look()
        held, self._held = self._held, {}
        return {
            f"health/{name}/{number}": float(value)
            for name, report in held.items()
            for number, value in {**report.sums, **report.maxima}.items()
        }

    async def finish(self) -> None:
        """Pass on what was called after the last step, by its evaluation, as an event."""
        await self.look()
        for name, report in self._held.items():
            if sums := {number: round(value, 6) for number, value in report.sums.items() if value}:
                self._event("scorer_calls", scorer=name, **sums)

    def check(self) -> None:
        """Check that no scorer has asked to stop.

        Raises:
            ScorerStoppedError: one has.
        """
        if self._stop:
            raise ScorerStoppedError(self._stop)


class FailureWatch:
    """Counts missing scores among the last `WINDOW` completions of each scorer that has a limit below 1.

    It is asked before a group is stored: what is sampled while a scorer cannot be reached is sampled again
    when the run is resumed, apart from the first few groups.
    """

    def __init__(self, limits: Mapping[str, float], log_of: Callable[[str], str]) -> None:
        self._limits = {name: limit for name, limit in limits.items() if limit < 1}
        self._recent: dict[str, deque[str]] = {name: deque(maxlen=WINDOW) for name in self._limits}
        self._log_of = log_of

    def observe(self, group: Group) -> None:
        """Count a scored group.

        Raises:
            ScorerStoppedError: a scorer is beyond its limit.
        """
        for name, recent in self._recent.items():
            recent.extend(sample.score_status.get(name, "ok") for sample in group.samples)
            failed = [status for status in recent if status != "ok"]
            # Of the whole window even while it fills: the first failed group alone must not end a run.
            if len(failed) > self._limits[name] * WINDOW:
                kinds = ", ".join(f"{kind} {failed.count(kind)}" for kind in sorted(set(failed)))
                raise ScorerStoppedError(
                    f"scorer {name}: {len(failed)} of the last {len(recent)} scores are missing ({kinds}), "
                    f"more than max_failure_share = {self._limits[name]:g} of {WINDOW} allows; the reasons "
                    f"are in {self._log_of(name)}. Fix the scorer and run the same command again: groups "
                    "that were not stored are sampled and scored anew"
                )
