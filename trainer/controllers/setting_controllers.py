"""Controllers: change a setting from step to step by a metric. Called by the loop.

A controller observes a step's metrics and sets values for the next step. It depends only on the metrics
observed so far, so a run that resumes and repeats steps makes the same changes. Checkpoints keep its state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Protocol

from configs.bound import BoundRun
from configs.kinds.controllers import AdaptiveEntropyOptions, AdaptiveSettingOptions, ThresholdOptions
from rollouts.files import Json


class Controller(Protocol):
    """One controller of a run. `observe` is called once per step, in order of steps."""

    def settings(self) -> Mapping[str, float]:
        """Values for the next step, by dotted config key."""
        ...

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a step that used the current `settings`, and compute the next ones."""
        ...

    def reasons(self) -> Mapping[str, str]:
        """Why the last `observe` chose its settings: one sentence by dotted config key."""
        ...

    def state(self) -> Mapping[str, Json]:
        """The state that a checkpoint stores."""
        ...

    def restore(self, state: Mapping[str, Json]) -> None:
        """Continue from the state of a checkpoint; an empty one resets to the start of the run."""
        ...


_METHODS: Final = ("settings", "observe", "reasons", "state", "restore")


class AdaptiveEntropy:
    """c += delta if H < target else c -= delta, within [low, high]; the bonus acts only while H < target.

    Skywork-OR1, arXiv 2505.22312, section 4. c is the coefficient of the entropy bonus and H the mean token
    entropy in nats. The bonus is off whenever H is high enough.
    """

    def __init__(self, options: AdaptiveEntropyOptions) -> None:
        self._options = options
        self._coef = options.initial
        self._acts = False
        self._reason = ""

    def settings(self) -> Mapping[str, float]:
        return {"entropy.coef": self._coef if self._acts else 0.0}

    def observe(self, metrics: Mapping[str, float]) -> None:
        entropy, options = metrics["entropy/token_mean"], self._options
        if not math.isfinite(entropy):  # the step had no loss tokens
            return
        self._acts = entropy < options.target
        side = "below" if self._acts else "not below"
        self._reason = f"entropy/token_mean is {entropy:.4g}, {side} {options.target:g}"
        # It moves also while the bonus is off, as in the paper: the coefficient at the next crossing depends
        # on how long entropy was high.
        moved = self._coef + (options.delta if self._acts else -options.delta)
        self._coef = min(max(moved, options.low), options.high)

    def reasons(self) -> Mapping[str, str]:
        return {"entropy.coef": self._reason}

    def state(self) -> Mapping[str, Json]:
        return {"coef": self._coef, "acts": self._acts}

    def restore(self, state: Mapping[str, Json]) -> None:
        self._coef = float(state.get("coef", self._options.initial))  # type: ignore[arg-type]
        self._acts = bool(state.get("acts", False))


class AdaptiveSetting:
    """x += delta (or x *= factor) on one side of the target, the reverse on the other, within [low, high].

    With delta this is the adaptive weight of arXiv 2511.05993 (lambda +- 0.05). With a factor of 2 it is the
    controller of REPO-R, arXiv 2603.11682 (zeta doubled or halved).
    """

    def __init__(self, options: AdaptiveSettingOptions) -> None:
        self._options = options
        self._value = options.initial
        self._first: float | None = None
        self._reason = ""

    def settings(self) -> Mapping[str, float]:
        return {self._options.setting: self._value}

    def observe(self, metrics: Mapping[str, float]) -> None:
        options = self._options
        value = metrics.get(options.metric, math.nan)
        if not math.isfinite(value):
            return
        if self._first is None:
            self._first = value
        target = options.target * self._first if options.relative else options.target
        side = "below" if value < target else "not below"
        self._reason = f"{options.metric} is {value:.4g}, {side} {target:.4g}"
        # raise_below says on which side the setting rises; on the other side it falls.
        up = (value < target) == options.raise_below
        if options.delta:
            moved = self._value + (options.delta if up else -options.delta)
        else:
            moved = self._value * options.factor if up else self._value / options.factor
        self._value = min(max(moved, options.low), options.high)

    def reasons(self) -> Mapping[str, str]:
        return {self._options.setting: self._reason}

    def state(self) -> Mapping[str, Json]:
        return {"value": self._value, "first": self._first}

    def restore(self, state: Mapping[str, Json]) -> None:
        first = state.get("first")
        self._value = float(state.get("value", self._options.initial))  # type: ignore[arg-type]
        self._first = None if first is None else float(first)  # type: ignore[arg-type]


class Threshold:
    """x = value if m < target else otherwise, m the metric of the step before; m > target if not `below`.

    With `relative` the target is a multiple of the metric's value in the first step that had it. A step
    without the metric changes nothing. The first step uses `otherwise`.
    """

    def __init__(self, options: ThresholdOptions) -> None:
        self._options = options
        self._acts = False
        self._first: float | None = None
        self._reason = ""

    def settings(self) -> Mapping[str, float]:
        options = self._options
        return {options.setting: options.value if self._acts else options.otherwise}

    def observe(self, metrics: Mapping[str, float]) -> None:
        options = self._options
        value = metrics.get(options.metric, math.nan)
        if not math.isfinite(value):
            return
        if self._first is None:
            self._first = value
        target = options.target * self._first if options.relative else options.target
        self._acts = value < target if options.below else value > target
        side = "below" if value < target else "above" if value > target else "at"
        self._reason = f"{options.metric} is {value:.4g}, {side} {target:.4g}"

    def reasons(self) -> Mapping[str, str]:
        return {self._options.setting: self._reason}

    def state(self) -> Mapping[str, Json]:
        return {"acts": self._acts, "first": self._first}

    def restore(self, state: Mapping[str, Json]) -> None:
        first = state.get("first")
        self._acts = bool(state.get("acts", False))
        self._first = None if first is None else float(first)  # type: ignore[arg-type]


def make_controllers(run: BoundRun) -> dict[str, Controller]:
    """The controllers of a run, by name.

    Raises:
        ValueError: a user's own class lacks a method.
    """
    controllers: dict[str, Controller] = {}
    for name, entry in run.controllers.items():
        controllers[name] = entry.function()(entry.options)
        # Checked at the start, because a missing `state` would show only at the first checkpoint.
        missing = [method for method in _METHODS if not callable(getattr(controllers[name], method, None))]
        if missing:
            raise ValueError(f"controllers.{name}.kind: {entry.kind_name} must have {', '.join(missing)}")
    return controllers


def watched_metrics(run: BoundRun) -> dict[str, str]:
    """Every metric that a controller or the reference's plateau watches, by the dotted key that names it."""
    watched = {
        f"{entry.key}.{option}": metric
        for entry in run.controllers.values()
        for option, metric in entry.options.watches().items()
    }
    if run.config.reference.plateau_steps:
        watched["reference.plateau_metric"] = run.config.reference.plateau_metric
    return watched
