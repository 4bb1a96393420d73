"""Controllers by name. A target is a class, made as ``Controller(options)``; see `trainer.controllers`."""

from __future__ import annotations

from dataclasses import dataclass

from configs.kinds.base import Kind


@dataclass
class AdaptiveEntropyOptions:
    """The entropy bonus of Skywork-OR1 (arXiv 2505.22312): it grows while entropy is too low."""

    target: float = 0.2
    """Token entropy in nats (entropy/token_mean) below which the bonus acts."""
    delta: float = 1.0e-4
    """Added to the coefficient after a step below the target, taken off after one above."""
    low: float = 0.0
    high: float = 5.0e-3
    initial: float = 0.0


@dataclass
class AdaptiveSettingOptions:
    """Any setting, moved by a fixed amount or factor towards a target of any metric."""

    setting: str = ""
    """entropy.coef, kl.coef, kl_base.coef, sft.share, tempered.temperature, loss.<origin>.<option> or
    shape.<name>.<option>."""
    metric: str = "entropy/token_mean"
    target: float = 0.0
    """A value of the metric, or with `relative` a multiple of its value in the first step."""
    relative: bool = False
    raise_below: bool = True
    """Whether the setting goes up (true) or down (false) while the metric is below the target."""
    delta: float = 0.0
    """Added or taken off after each step; 0 takes `factor`."""
    factor: float = 2.0
    """Multiplied or divided by after each step (REPO-R's controller doubles and halves, arXiv 2603.11682)."""
    initial: float = 0.0
    low: float = 0.0
    high: float = 0.0


@dataclass
class ThresholdOptions:
    """A setting that has one value while a metric is on one side of a target, and another value else.

    The defaults are the SFT refresh that begins when format entropy has fallen to 0.8 of its first value.
    """

    setting: str = "sft.share"
    """As in adaptive_setting."""
    metric: str = "entropy/format"
    target: float = 0.8
    """A value of the metric, or with `relative` a multiple of its value in the first step."""
    relative: bool = True
    below: bool = True
    """Which side acts: below the target (true) or above it (false)."""
    value: float = 0.125
    """Of the setting, in the step after one whose metric was on that side."""
    otherwise: float = 0.0


CONTROLLERS: dict[str, Kind] = {
    "adaptive_entropy": Kind(AdaptiveEntropyOptions, "trainer.controllers:AdaptiveEntropy"),
    "adaptive_setting": Kind(AdaptiveSettingOptions, "trainer.controllers:AdaptiveSetting"),
    "threshold": Kind(ThresholdOptions, "trainer.controllers:Threshold"),
}
