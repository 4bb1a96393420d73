"""AEnt's controller: a coefficient that rises below a band of a metric, falls above it and rests inside."""

from __future__ import annotations

import math
from collections.abc import Mapping

from configs.kinds.controllers import ProjectedBandOptions
from rollouts.files import Json


class ProjectedBand:
    """x <- Proj[x - rate min(m - floor, 0) + rate min(ceiling - m, 0)] onto [low, high], m the metric of the
    step before.

    AEnt, arXiv 2509.03493: in proportion to how far entropy is outside the band, which no fixed step is. A
    step without the metric changes nothing.
    """

    def __init__(self, options: ProjectedBandOptions) -> None:
        self._options = options
        self._value = options.initial
        self._reason = ""

    def settings(self) -> Mapping[str, float]:
        return {self._options.setting: self._value}

    def observe(self, metrics: Mapping[str, float]) -> None:
        options = self._options
        found = metrics.get(options.metric, math.nan)
        if not math.isfinite(found):
            return
        below, above = min(found - options.floor, 0.0), min(options.ceiling - found, 0.0)
        moved = self._value - options.rate * below + options.rate * above
        self._value = min(max(moved, options.low), options.high)
        side = "below" if below else "above" if above else "inside"
        self._reason = f"{options.metric} is {found:.4g}, {side} {options.floor:g} to {options.ceiling:g}"

    def reasons(self) -> Mapping[str, str]:
        return {self._options.setting: self._reason}

    def state(self) -> Mapping[str, Json]:
        return {"value": self._value}

    def restore(self, state: Mapping[str, Json]) -> None:
        self._value = float(state.get("value", self._options.initial))  # type: ignore[arg-type]
