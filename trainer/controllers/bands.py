"""The controller `entropy_bands`: keeps several metrics inside bands with several actuators.

Our own method. Published controllers keep one metric in place with one setting
(`trainer.controllers.setting_controllers`). Token entropy and format entropy can move in different
directions, and an actuator that raises one may not raise the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, cast

from configs.kinds.bands import Actuator, EntropyBandsOptions, read_plan
from rollouts.files import Json

_AT_REST: Final = 1e-3
"""An actuator closer to its rest value than this share of (high - low) is set to that value."""


@dataclass
class _Level:
    """Initial values and moving average of a band's metric, in the metric's units."""

    seen: list[float] = field(default_factory=list)
    """The values of the first `baseline_steps` steps."""
    average: float = math.nan


class EntropyBands:
    """e = low + margin - m below a band, high - margin - m above it, else 0; I += gain s e; u = I + push s e

    m is the metric's moving average divided by its initial value. s is the actuator's high - low, negative if
    the actuator lowers its metrics. I and u are clamped to [low, high]. While e is 0, I returns to rest:
    I += release (rest - I). If an actuator has several bands, it uses the largest e when a metric is too low,
    else the smallest. Our own method (no arXiv id).
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
            if self._track(level, metrics.get(self._plan.bands[name].metric, math.nan)):
                errors[name] = self._error(name, level)
        # The proportional part is computed anew each step: it must end together with its error.
        self._values = dict(self._held)
        self._reasons = {}
        for name, actuator in self._plan.actuators.items():
            known = [errors[band] for band in actuator.bands if band in errors]
            if known:
                self._move(name, actuator, *_worst(known))

    def _track(self, level: _Level, value: float) -> bool:
        """Add a step's value to `level`; whether the baseline is complete, so that the band can act."""
        if not math.isfinite(value):  # the step has no such metric
            return False
        if len(level.seen) < self._options.baseline_steps:
            level.seen.append(value)
            level.average = sum(level.seen) / len(level.seen)
            return False
        past = self._options.smoothing
        # Smoothed, because one step's entropy is noisy and an actuator should not follow the noise.
        level.average = past * level.average + (1 - past) * value
        return _initial(level) > 0

    def _error(self, name: str, level: _Level) -> tuple[float, str]:
        """The change that brings the metric inside its band (positive: it must rise), and the reason."""
        # The settings computed now are used by the next step, so that step's band applies.
        band = self._plan.band_at(name, self._num_steps + 1)
        relative = level.average / _initial(level)
        reason = f"{band.metric} is at {relative:.3f} of its initial value"
        if band.low and relative < band.low + band.margin:
            return band.low + band.margin - relative, f"{reason}, to be above {band.low + band.margin:g}"
        if band.high and relative > band.high - band.margin:
            return band.high - band.margin - relative, f"{reason}, to be below {band.high - band.margin:g}"
        return 0.0, f"{reason}, inside its band"

    def _move(self, name: str, actuator: Actuator, error: float, reason: str) -> None:
        """Update I and u of an actuator by the error; see the class."""
        options, held = self._options, self._held[name]
        span = (actuator.high - actuator.low) * (1.0 if actuator.raises else -1.0)
        if error:
            held += options.gain * span * error
        else:
            held += options.release * (actuator.rest - held)
            # The geometric approach would never end; exact rest lets a setting of 0 switch its term off.
            if abs(held - actuator.rest) < _AT_REST * abs(span):
                held = actuator.rest
        self._held[name] = _within(held, actuator)  # clamped before it is stored: no integral wind-up
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
        for name, saved in levels.items():
            seen = [float(value) for value in cast(list[float], saved["seen"])]
            self._levels[name] = _Level(seen=seen, average=float(cast(float, saved["average"])))
        self._held |= cast(Mapping[str, float], state.get("held", {}))
        self._values |= cast(Mapping[str, float], state.get("values", {}))


def _initial(level: _Level) -> float:
    return sum(level.seen) / len(level.seen) if level.seen else 0.0


def _worst(errors: list[tuple[float, str]]) -> tuple[float, str]:
    """The error to act on: the largest one if any metric is too low, else the most negative one."""
    lowest, highest = min(errors, key=lambda each: each[0]), max(errors, key=lambda each: each[0])
    return highest if highest[0] > 0 else lowest


def _within(value: float, actuator: Actuator) -> float:
    return min(max(value, actuator.low), actuator.high)
