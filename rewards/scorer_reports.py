"""What a scorer reports of itself, beside its judgements: counts, events, a reason to stop the run.

A scorer class may have a method ``take_report() -> ScorerReport``, which the driver calls after the start and
after each step. Numbers that depend on timing (latency, retries, what a cache saved) belong here and not in
rows, which a resumed run must repeat to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerEvent:
    """Something worth a line in events.jsonl and on the terminal: its kind there, and its fields."""

    kind: str
    fields: Mapping[str, str | float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerReport:
    """What has happened since the last report. Reports of replicas are combined by `combined`."""

    sums: Mapping[str, float] = field(default_factory=dict)
    """Counts and totals."""
    maxima: Mapping[str, float] = field(default_factory=dict)
    events: tuple[ScorerEvent, ...] = ()
    stop: str = ""
    """Why the run must not go on; empty if it may."""


NO_REPORT = ScorerReport()
REPORT_FAILED = "report_failed"
"""Kind of the event of a scorer whose own report cannot be used."""
_TAKEN = frozenset({"at", "attempt", "kind", "scorer"})
"""Fields that a line of events.jsonl has anyway."""


def checked(report: object) -> ScorerReport:
    """What a scorer's `take_report` has returned, if it can be stored.

    Raises:
        ValueError: it is no report, a number is not finite, or an event's field cannot be stored.
    """
    if not isinstance(report, ScorerReport):
        raise ValueError(f"take_report must return a ScorerReport, got {type(report).__name__}")
    for name, value in (*report.sums.items(), *report.maxima.items()):
        if not _is_finite(value):
            raise ValueError(f"number {name!r} of a report must be finite, got {value!r}")
    for event in report.events:
        for name, field_value in event.fields.items():
            if name in _TAKEN:
                raise ValueError(f"event {event.kind}: a field must not be named {name!r}")
            if not isinstance(field_value, str) and not _is_finite(field_value):
                raise ValueError(
                    f"event {event.kind}: {name} must be text or a finite number, got {field_value!r}"
                )
    return report


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def masked(report: ScorerReport, mask: Callable[[str], str]) -> ScorerReport:
    """The report with `mask` applied to all texts in it."""
    events = tuple(
        replace(
            event,
            fields={
                name: mask(value) if isinstance(value, str) else value for name, value in event.fields.items()
            },
        )
        for event in report.events
    )
    return replace(report, events=events, stop=mask(report.stop))


def combined(reports: Sequence[ScorerReport]) -> ScorerReport:
    """The report of a scorer from those of its replicas."""
    sums: dict[str, float] = {}
    maxima: dict[str, float] = {}
    for report in reports:
        for name, value in report.sums.items():
            sums[name] = sums.get(name, 0.0) + value
        for name, value in report.maxima.items():
            maxima[name] = max(maxima.get(name, value), value)
    return ScorerReport(
        sums=sums,
        maxima=maxima,
        events=tuple(event for report in reports for event in report.events),
        stop=next((report.stop for report in reports if report.stop), ""),
    )
