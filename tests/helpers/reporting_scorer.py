"""A scorer class with `start` and `take_report`, as a user would write it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from configs.kinds.base import OwnOptions
from rewards.scorer_reports import ScorerEvent, ScorerReport
from rollouts.records import Completion, Judgement, Prompt


class Reporting:
    """Counts its groups. Its options may say why it cannot start."""

    def __init__(self, options: OwnOptions) -> None:
        self.problem = str(options.options.get("problem", ""))
        self.calls, self.started = 0, False
        self.report = str(options.options.get("report", ""))

    async def start(self) -> None:
        if self.problem:
            raise ValueError(self.problem)
        self.started = True

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        assert self.started
        self.calls += 1
        return [Judgement(score=1.0) for _ in completions]

    def take_report(self) -> ScorerReport:
        match self.report:
            case "raises":
                raise KeyError("no such count")
            case "text":
                return "all is well"  # type: ignore[return-value]
            case "nan":
                return ScorerReport(sums={"calls": float("nan")})
            case "name":
                return ScorerReport(events=(ScorerEvent(kind="noted", fields={"scorer": "me"}),))
            case "value":
                return ScorerReport(events=(ScorerEvent(kind="noted", fields={"n": float("inf")}),))
        calls, self.calls = self.calls, 0
        event = ScorerEvent(kind="noted", fields={"key": os.environ.get("JUDGE_API_KEY", "none"), "n": 1.0})
        return ScorerReport(sums={"calls": float(calls)}, maxima={"slowest_s": 0.5}, events=(event,))
