"""When the KL reference is reset to the current policy: on a schedule or on a plateau. Used by the loop.

Like a controller it depends only on the metrics observed so far, and checkpoints keep its state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from configs.schema import ReferenceConfig
from rollouts.files import Json


class Reference:
    """Counts steps and keeps a metric's values since the last reset. `num_resets` counts the whole run."""

    def __init__(self, config: ReferenceConfig) -> None:
        self._config = config
        self._steps = self.num_resets = 0
        self._seen: list[float] = []

    @property
    def is_used(self) -> bool:
        """Whether the reference is ever reset."""
        return self._config.reset_every > 0 or self._config.plateau_steps > 0

    def observe(self, metrics: Mapping[str, float]) -> bool:
        """Record a step's metrics; True if the reference must be reset now.

        A step without the metric counts for the schedule and is ignored for the plateau.
        """
        config = self._config
        self._steps += 1
        value = metrics.get(config.plateau_metric, math.nan)
        if config.plateau_steps and math.isfinite(value):
            self._seen = [*self._seen, value][-2 * config.plateau_steps :]
        if not (self._steps == config.reset_every or self._is_flat()):
            return False
        # The plateau is judged anew: after a reset the metric first has to settle.
        self._steps, self._seen = 0, []
        self.num_resets += 1
        return True

    def _is_flat(self) -> bool:
        size = self._config.plateau_steps
        if not size or len(self._seen) < 2 * size:
            return False
        # fsum is exact, so equal values in both halves give equal means and count as a plateau.
        before, after = (math.fsum(part) / size for part in (self._seen[:size], self._seen[size:]))
        return after <= before + self._config.plateau_gain

    def state(self) -> dict[str, Json]:
        """The state that a checkpoint stores, as JSON."""
        return {"steps": self._steps, "seen": list(self._seen), "num_resets": self.num_resets}

    def restore(self, state: Mapping[str, Json]) -> None:
        """Continue from the state of a checkpoint; an empty one resets to the start of the run."""
        self._steps = int(state.get("steps", 0))  # type: ignore[arg-type]
        self._seen = [float(value) for value in state.get("seen", ())]  # type: ignore[union-attr, arg-type]
        self.num_resets = int(state.get("num_resets", 0))  # type: ignore[arg-type]
