"""The controller `entropy_bands`: several actuators hold several metrics in their bands. Called by the loop.

Ours. Every published loop holds one number with one actuator (`trainer.controllers.setting_controllers`);
token entropy and format entropy fall apart, and an actuator that raises one may leave the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, cast

from configs.kinds.bands import Actuator, EntropyBandsOptions, read_plan
from rollouts.files import Json

_AT_REST: Final = 1e-3
"""Nearer to rest than this share of its limits' distance, an actuator is at rest."""


@dataclass
class _Level:
    """What is known of a band's metric: its initial value and its moving average, both in its own units."""

    seen: list[float] = field(default_factory=list)
    """The values of the first `baseline_steps` steps."""
    average: float = math.nan


class EntropyBands:
    """e = low + margin - m below a band, high - margin - m above it, else 0; I += gain s e; u = I + push s e

    m is the metric's moving average over its initial value, s the distance of the actuator's limits (negative
    if the actuator lowers its metrics), and both I and u are held within the limits. Without an error I goes
    back to rest: I += release (rest - I). Of an actuator's bands the largest e counts if one is too low, else
    the smallest. Ours (no arXiv id).
    """

    def __init__(self, options: EntropyBandsOptions) -> None:
        self._options, self._plan = options, read_plan(options)
        self._begin()

    def _begin(self) -> None:
        self._levels = {name: _Level() for name in self._plan.bands}
        self._held = {name: each.rest for name, each in self._plan.actuators.items()}
        self._values = dict(self._held)
        self._reasons: dict[str, str] = {}
        self._num_steps = 0

    def settings(self) -> Mapping[str, float]:
        return {each.setting: self._values[name] for name, each in self._plan.actuators.items()}

    def reasons(self) -> Mapping[str, str]:
        return {self._plan.actuators[name].setting: reason for name, reason in self._reasons.items()}

    def observe(self, metrics: Mapping[str, float]) -> None:
        self._num_steps += 1
        errors: dict[str, tuple[float, str]] = {}
        for name, level in self._levels.items():
            if self._look(level, metrics.get(self._plan.bands[name].metric, math.nan)):
                errors[name] = self._error(name, level)
        self._values = dict(self._held)  # a push lasts as long as the error it answers
        self._reasons = {}
        for name, actuator in self._plan.actuators.items():
            known = [errors[band] for band in actuator.bands if band in errors]
            if known:
                self._move(name, actuator, *_worst(known))

    def _look(self, level: _Level, value: float) -> bool:
        """Take note of a step's value; whether enough is known to act."""
        if not math.isfinite(value):  # a step without the metric says nothing
            return False
        if len(level.seen) < self._options.baseline_steps:
            level.seen.append(value)
            level.average = sum(level.seen) / len(level.seen)
            return False
        past = self._options.smoothing
        level.average = past * level.average + (1 - past) * value
        return _initial(level) > 0

    def _error(self, name: str, level: _Level) -> tuple[float, str]:
        """How far the metric must rise (above 0) or fall to be inside with a margin, and that in words."""
        band = self._plan.band_at(name, self._num_steps + 1)
        at = level.average / _initial(level)
        told = f"{band.metric} is at {at:.3f} of its initial value"
        if band.low and at < band.low + band.margin:
            return band.low + band.margin - at, f"{told}, to be above {band.low + band.margin:g}"
        if band.high and at > band.high - band.margin:
            return band.high - band.margin - at, f"{told}, to be below {band.high - band.margin:g}"
        return 0.0, f"{told}, inside its band"

    def _move(self, name: str, actuator: Actuator, error: float, reason: str) -> None:
        options, held = self._options, self._held[name]
        span = (actuator.high - actuator.low) * (1.0 if actuator.raises else -1.0)
        if error:
            held += options.gain * span * error
        else:
            held += options.release * (actuator.rest - held)
            if abs(held - actuator.rest) < _AT_REST * abs(span):
                held = actuator.rest
        self._held[name] = _within(held, actuator)
        self._values[name] = _within(self._held[name] + options.push * span * error, actuator)
        self._reasons[name] = reason

    def state(self) -> Mapping[str, Json]:
        levels = {
            name: {"seen": [*level.seen], "average": level.average} for name, level in self._levels.items()
        }
        known = {name: level for name, level in levels.items() if level["seen"]}
        return {
            "num_steps": self._num_steps,
            "levels": cast(Json, known),
            "held": cast(Json, dict(self._held)),
            "values": cast(Json, dict(self._values)),
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        self._begin()
        self._num_steps = int(cast(int, state.get("num_steps", 0)))
        levels = cast(Mapping[str, Mapping[str, Json]], state.get("levels", {}))
        for name, found in levels.items():
            seen = [float(value) for value in cast(list[float], found["seen"])]
            self._levels[name] = _Level(seen=seen, average=float(cast(float, found["average"])))
        self._held |= cast(Mapping[str, float], state.get("held", {}))
        self._values |= cast(Mapping[str, float], state.get("values", {}))


def _initial(level: _Level) -> float:
    return sum(level.seen) / len(level.seen) if level.seen else 0.0


def _worst(errors: list[tuple[float, str]]) -> tuple[float, str]:
    """The error to act on: the largest if any metric is too low, else that of the one furthest too high."""
    lowest, highest = min(errors, key=lambda each: each[0]), max(errors, key=lambda each: each[0])
    return highest if highest[0] > 0 else lowest


def _within(value: float, actuator: Actuator) -> float:
    return min(max(value, actuator.low), actuator.high)
