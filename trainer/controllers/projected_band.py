"""AEnt's controller: a setting rises while a metric is below its band, falls above it, is constant inside."""

from __future__ import annotations

import math
from collections.abc import Mapping

from configs.kinds.controllers import ProjectedBandOptions
from rollouts.files import Json


class ProjectedBand:
    """x <- Proj[x - rate min(m - floor, 0) + rate min(ceiling - m, 0)] onto [low, high], m the metric of the
    step before.

    AEnt, arXiv 2509.03493. Unlike a controller with a fixed increment, the change is proportional to the
    distance from the band. A step without the metric changes nothing.
    """

    def __init__(self, options: ProjectedBandOptions) -> None:
        self._options = options
        self._value = options.initial
        self._reason = ""

    def settings(self) -> Mapping[str, float]:
        return {self._options.setting: self._value}

    def observe(self, metrics: Mapping[str, float]) -> None:
        options = self._options
        value = metrics.get(options.metric, math.nan)
        if not math.isfinite(value):
            return
        below, above = min(value - options.floor, 0.0), min(options.ceiling - value, 0.0)
        moved = self._value - options.rate * below + options.rate * above
        self._value = min(max(moved, options.low), options.high)
        side = "below" if below else "above" if above else "inside"
        self._reason = f"{options.metric} is {value:.4g}, {side} {options.floor:g} to {options.ceiling:g}"

    def reasons(self) -> Mapping[str, str]:
        return {self._options.setting: self._reason}

    def state(self) -> Mapping[str, Json]:
        return {"value": self._value}

    def restore(self, state: Mapping[str, Json]) -> None:
        self._value = float(state.get("value", self._options.initial))  # type: ignore[arg-type]
