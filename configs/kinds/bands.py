"""Options of the controller `entropy_bands`, and the typed bands, actuators and changes that they describe.

In: mappings out of a config. Out: dataclasses, or one ValueError that names the key. Called by
`configs.rules` to check them and by `trainer.controllers.bands` to act on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.errors import Broken
from configs.kinds.base import ControllerOptions

_T = TypeVar("_T", "Band", "Actuator", "Change")


@dataclass
class Band:
    """Where a metric is to be, as multiples of its initial value; 0 is no bound."""

    metric: str = ""
    """Name of the metric in metrics.jsonl."""
    low: float = 0.0
    """Lower bound, as a multiple."""
    high: float = 0.0
    """Upper bound, as a multiple."""
    margin: float = 0.05
    """How far inside a bound the loop begins to act."""


@dataclass
class Actuator:
    """A setting that answers for some bands, within limits."""

    setting: str = ""
    """entropy.coef, kl.coef, kl_base.coef, sft.share, loss.<origin>.<option> or
    token_advantage.<name>.<option>."""
    bands: list[str] = field(default_factory=list)
    """Names of bands; where they disagree, one that is too low wins: what is lost is harder to get back."""
    low: float = 0.0
    """Lowest value of the setting."""
    high: float = 0.0
    """Highest value of the setting."""
    rest: float = 0.0
    """Where it starts, and goes back to while nothing is wrong."""
    raises: bool = True
    """Whether a larger value raises the metrics of its bands."""


@dataclass
class Change:
    """From `step` on (the first step is 1) the band has these bounds."""

    step: int = 0
    """The first step with these bounds."""
    band: str = ""
    """Name of the band."""
    low: float = 0.0
    """As in `Band`."""
    high: float = 0.0
    """As in `Band`."""


def _usual_bands() -> dict[str, Any]:
    return {
        "token": {"metric": "entropy/token_mean", "low": 0.5, "high": 1.1},
        "format": {"metric": "entropy/format", "low": 0.8, "margin": 0.1},
    }


def _usual_actuators() -> dict[str, Any]:
    return {
        "anchor": {"setting": "kl.coef", "bands": ["format", "token"], "high": 1.0},
        "bonus": {"setting": "entropy.coef", "bands": ["token"], "low": -0.02, "high": 0.05},
    }


@dataclass
class EntropyBandsOptions(ControllerOptions):
    """Holds bands of token and format entropy with several actuators: ours, a PI loop with a dead band.

    All numbers are ours, set for the lab's models.
    """

    bands: dict[str, Any] = field(default_factory=_usual_bands)
    """name -> {metric, low, high, margin}."""
    actuators: dict[str, Any] = field(default_factory=_usual_actuators)
    """name -> {setting, bands, low, high, rest, raises}."""
    changes: dict[str, Any] = field(default_factory=dict)
    """name -> {step, band, low, high}: bounds that apply from a step on."""
    baseline_steps: int = 3
    """Steps whose mean is a metric's initial value; nothing moves before."""
    smoothing: float = 0.7
    """Weight of the past in the moving average that is held in the band."""
    gain: float = 1.0
    """Share of its limits' distance that an actuator moves in a step per unit of error, and keeps."""
    push: float = 4.0
    """The same, but only while the error lasts."""
    release: float = 0.02
    """Share of its way back to `rest` that an actuator goes in a step without error."""

    def moves(self) -> Mapping[str, tuple[float, float]]:
        """The settings with their limits; none if they cannot be used (`check`)."""
        if any(self.check()):
            return {}
        return {each.setting: (each.low, each.high) for each in read_plan(self).actuators.values()}

    def watches(self) -> Mapping[str, str]:
        return {f"bands.{name}.metric": band.metric for name, band in read_plan(self).bands.items()}

    def check(self) -> Iterator[Broken]:
        try:
            read_plan(self)
        except ValueError as error:
            key, _, rule = str(error).partition(": ")
            option, _, within = key.partition(".")
            yield option, f"{within} {rule}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class BandPlan:
    """What `EntropyBandsOptions` describe, by name."""

    bands: Mapping[str, Band]
    actuators: Mapping[str, Actuator]
    changes: Mapping[str, Change]

    def band_at(self, name: str, step: int) -> Band:
        """The band as it holds in `step` (the first is 1)."""
        due = [each for each in self.changes.values() if each.band == name and each.step <= step]
        band = self.bands[name]
        if not due:
            return band
        # Not the last one in the file: names have no order in time.
        last = max(due, key=lambda change: change.step)
        return replace(band, low=last.low, high=last.high)


def read_plan(options: EntropyBandsOptions) -> BandPlan:
    """The typed plan.

    Raises:
        ValueError: "<key>: <rule>", the key relative to the controller's entry.
    """
    plan = BandPlan(
        bands=_typed(Band, options.bands, "bands"),
        actuators=_typed(Actuator, options.actuators, "actuators"),
        changes=_typed(Change, options.changes, "changes"),
    )
    for name in (*plan.bands, *(each.band for each in plan.changes.values())):
        if name not in plan.bands:
            raise ValueError(f"changes: must name a band ({', '.join(plan.bands)}), got {name!r}")
    if not plan.bands or not plan.actuators:
        raise ValueError(f"{'actuators' if plan.bands else 'bands'}: must not be empty")
    _check_numbers(options)
    settings = [each.setting for each in plan.actuators.values()]
    # Two actuators of one setting would work against each other.
    if len(set(settings)) < len(settings):
        raise ValueError(f"actuators: must move a setting each, got {settings}")
    _check_bounds(plan)
    for name, actuator in plan.actuators.items():
        _check_actuator(f"actuators.{name}", actuator, plan.bands)
    held = {band for actuator in plan.actuators.values() for band in actuator.bands}
    for name in plan.bands:
        if name not in held:
            raise ValueError(f"bands.{name}: must be one that some actuator answers for")
    for name, change in plan.changes.items():
        if change.step < 1:
            raise ValueError(f"changes.{name}.step: must be at least 1, got {change.step}")
    return plan


def _typed(kind: type[_T], entries: Mapping[str, Any], key: str) -> dict[str, _T]:
    found: dict[str, _T] = {}
    for name, entry in entries.items():
        try:
            found[name] = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), entry))  # type: ignore[assignment]
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            keys, why = ", ".join(kind.__dataclass_fields__), str(error).splitlines()[0]
            raise ValueError(f"{key}.{name}: must be a mapping with {keys} ({why})") from error
    return found


def _check_numbers(options: EntropyBandsOptions) -> None:
    if options.baseline_steps < 1:
        raise ValueError("baseline_steps: must be at least 1")
    for name, share in {"smoothing": options.smoothing, "release": options.release}.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name}: must be at least 0 and below 1")
    for name, factor in {"gain": options.gain, "push": options.push}.items():
        if not factor >= 0:
            raise ValueError(f"{name}: must not be negative")
    if not (options.gain or options.push):
        raise ValueError("gain: must be above 0, or push: nothing would move")


def _check_bounds(plan: BandPlan) -> None:
    bounds = {f"bands.{name}": (band.low, band.high, band.margin) for name, band in plan.bands.items()}
    bounds |= {
        f"changes.{name}": (each.low, each.high, plan.bands[each.band].margin)
        for name, each in plan.changes.items()
    }
    for key, (low, high, margin) in bounds.items():
        if not margin >= 0:
            raise ValueError(f"{key}.margin: must not be negative")
        if low < 0 or high < 0 or not (low or high):
            raise ValueError(f"{key}: must have a low or high above 0, got {low:g} and {high:g}")
        if low and high and not high - low > 2 * margin:
            raise ValueError(
                f"{key}: must be wider than two margins ({2 * margin:g}), got {low:g} to {high:g}"
            )
    for name, band in plan.bands.items():
        if not band.metric:
            raise ValueError(f"bands.{name}.metric: must name a metric")


def _check_actuator(key: str, actuator: Actuator, bands: Mapping[str, Band]) -> None:
    if not actuator.bands or any(name not in bands for name in actuator.bands):
        raise ValueError(f"{key}.bands: must name bands ({', '.join(bands)}), got {actuator.bands}")
    if not actuator.low < actuator.high:
        raise ValueError(f"{key}.low: must be below high, got {actuator.low:g} and {actuator.high:g}")
    if not actuator.low <= actuator.rest <= actuator.high:
        raise ValueError(f"{key}.rest: must be within low and high, got {actuator.rest:g}")
