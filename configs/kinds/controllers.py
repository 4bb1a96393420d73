"""Controllers by name. A target is a class, made as ``Controller(options)``; see `setting_controllers`.

Options say which settings the controller moves (`moves`), by dotted config key, within which bounds, and
which metrics it names (`watches`), by option.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from configs.errors import Broken
from configs.fields import NOT_NEGATIVE, POSITIVE, option
from configs.kinds.bands import EntropyBandsOptions
from configs.kinds.base import ControllerOptions, Kind, OwnOptions


class _WithinBounds(ControllerOptions):
    """Options with `low`, `high` and an `initial` value between them."""

    BOUNDS: ClassVar[tuple[str, ...]] = ("low", "high")
    low: float
    high: float
    initial: float

    def check(self) -> Iterator[Broken]:
        if not self.low <= self.initial <= self.high:
            yield "initial", f"must be within low and high ({self.low:g} to {self.high:g})"

    def _check_room(self) -> Iterator[Broken]:
        if self.low == self.high:
            yield "high", f"must be above low ({self.low:g}): the setting could not move"


@dataclass
class AdaptiveEntropyOptions(_WithinBounds):
    """The entropy bonus of Skywork-OR1 (arXiv 2505.22312): it grows while entropy is too low."""

    target: float = 0.2
    """Token entropy in nats (entropy/token_mean) below which the bonus acts."""
    delta: float = option(1.0e-4, NOT_NEGATIVE)
    """Added to the coefficient after a step below the target, subtracted after one above."""
    low: float = 0.0
    """Lowest value of entropy.coef."""
    high: float = 5.0e-3
    """Highest value of entropy.coef."""
    initial: float = 0.0
    """Value of entropy.coef in the first step."""

    def moves(self) -> Mapping[str, tuple[float, float]]:
        return {"entropy.coef": (self.low, self.high)}


@dataclass
class ProjectedBandOptions(_WithinBounds):
    """AEnt's projected controller, arXiv 2509.03493. Band, rate and bounds are ours; none is published."""

    SETTING: ClassVar[str] = "setting"
    setting: str = "entropy.coef"
    """As in adaptive_setting."""
    metric: str = "entropy/token_mean"
    """AEnt uses the clamped entropy: entropy/clamped_mean, which exists while entropy.clamp is above 0."""
    floor: float = 0.1
    """Below it the setting rises, nats."""
    ceiling: float = 0.5
    """Above it the setting falls."""
    rate: float = option(2.0e-3, POSITIVE)
    """Change per step and per unit of the metric outside the band."""
    initial: float = 2.0e-4
    """The released recipe's coefficient."""
    low: float = 0.0
    """Lowest value of the setting."""
    high: float = 5.0e-3
    """Highest value of the setting."""

    def check(self) -> Iterator[Broken]:
        yield from super().check()
        yield from self._check_room()
        if self.floor > self.ceiling:
            yield "floor", f"must not be above ceiling ({self.ceiling:g})"

    def moves(self) -> Mapping[str, tuple[float, float]]:
        return {self.setting: (self.low, self.high)}

    def watches(self) -> Mapping[str, str]:
        return {"metric": self.metric}


@dataclass
class AdaptiveSettingOptions(_WithinBounds):
    """Any setting, moved by a fixed amount or factor towards a target of any metric."""

    SETTING: ClassVar[str] = "setting"
    setting: str = ""
    """entropy.coef, kl.coef, kl_base.coef, sft.share, tempered.temperature, loss.<origin>.<option>, or
    <section>.<name>.<option> with section token_advantage, reward_shape, bonus or prompt_weight."""
    metric: str = "entropy/token_mean"
    """The metric to watch, by its name in metrics.jsonl."""
    target: float = 0.0
    """A value of the metric, or with `relative` a multiple of its value in the first step."""
    relative: bool = False
    """Whether `target` is a multiple of the metric's first value."""
    raise_below: bool = True
    """Whether the setting goes up (true) or down (false) while the metric is below the target."""
    delta: float = option(0.0, NOT_NEGATIVE)
    """Added or subtracted after each step; 0 uses `factor`."""
    factor: float = 2.0
    """Multiplied or divided by after each step (REPO-R's controller doubles and halves, arXiv 2603.11682)."""
    initial: float = 0.0
    """Value of the setting in the first step."""
    low: float = 0.0
    """Lowest value of the setting."""
    high: float = 0.0
    """Highest value of the setting."""

    def check(self) -> Iterator[Broken]:
        yield from super().check()
        yield from self._check_room()
        if self.delta:
            return
        if self.factor <= 0 or self.factor == 1:
            yield "factor", "must be above 0 and not 1, or give delta: the setting could not move"
        # A multiple of 0 is 0, and a larger multiple of a negative number is lower.
        if self.initial <= 0 or self.low < 0:
            name = "initial" if self.initial <= 0 else "low"
            rule = "must be above 0" if name == "initial" else "must not be negative"
            yield name, f"{rule} with a factor: give delta, or another {name}"

    def moves(self) -> Mapping[str, tuple[float, float]]:
        return {self.setting: (self.low, self.high)}

    def watches(self) -> Mapping[str, str]:
        return {"metric": self.metric}


@dataclass
class ThresholdOptions(ControllerOptions):
    """A setting that has one value while a metric is on one side of a target, and another value else.

    The defaults are the SFT refresh that begins when format entropy has fallen to 0.8 of its first value.
    """

    SETTING: ClassVar[str] = "setting"
    setting: str = "sft.share"
    """As in adaptive_setting."""
    metric: str = "entropy/format"
    """As in adaptive_setting."""
    target: float = 0.8
    """A value of the metric, or with `relative` a multiple of its value in the first step."""
    relative: bool = True
    """Whether `target` is a multiple of the metric's first value."""
    below: bool = True
    """Which side acts: below the target (true) or above it (false)."""
    value: float = 0.125
    """Of the setting, in the step after one whose metric was on that side."""
    otherwise: float = 0.0
    """Value of the setting in all other steps."""
    BOUNDS: ClassVar[tuple[str, ...]] = ("value", "otherwise")

    def check(self) -> Iterator[Broken]:
        # It would be on and off with the same effect.
        if self.value == self.otherwise:
            yield "value", "must be another value than otherwise"

    def moves(self) -> Mapping[str, tuple[float, float]]:
        return {self.setting: (min(self.value, self.otherwise), max(self.value, self.otherwise))}

    def watches(self) -> Mapping[str, str]:
        return {"metric": self.metric}


@dataclass
class OwnControllerOptions(OwnOptions, ControllerOptions):
    """A user's own controller says what it moves in `options: {settings: {<key>: [<low>, <high>]}}`."""

    def check(self) -> Iterator[Broken]:
        bounds = self.options.get("settings")
        if not bounds or not isinstance(bounds, Mapping) or not all(map(_is_pair, bounds.values())):
            yield "options", "must say under settings what it moves, as {key: [low, high]}"

    def moves(self) -> Mapping[str, tuple[float, float]]:
        if any(self.check()):
            return {}
        return {str(key): (float(low), float(high)) for key, (low, high) in self.options["settings"].items()}


def _is_pair(bounds: Any) -> bool:
    return (
        isinstance(bounds, list | tuple)
        and len(bounds) == 2
        and all(isinstance(bound, int | float) for bound in bounds)
    )


CONTROLLERS: dict[str, Kind] = {
    "adaptive_entropy": Kind(
        AdaptiveEntropyOptions, "trainer.controllers.setting_controllers:AdaptiveEntropy"
    ),
    "projected_band": Kind(ProjectedBandOptions, "trainer.controllers.projected_band:ProjectedBand"),
    "adaptive_setting": Kind(
        AdaptiveSettingOptions, "trainer.controllers.setting_controllers:AdaptiveSetting"
    ),
    "entropy_bands": Kind(EntropyBandsOptions, "trainer.controllers.bands:EntropyBands"),
    "threshold": Kind(ThresholdOptions, "trainer.controllers.setting_controllers:Threshold"),
}
