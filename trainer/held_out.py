"""Watches the reward against held-out scorers: an event when the reward rises while such a score falls.

In: the rows of each step. Out: metrics held_out/<scorer>/*, and the event `reward_divergence`. A held-out
scorer is one with `watch_steps` above 0; it does not enter the reward. Used by the loop; its state is in
checkpoints.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from configs.origins import POLICY
from rollouts.files import Json
from trainer.step_records import Batch

RISES: Final = 3.0
"""The reward rises if the t statistic of its trend is at least this."""
FALLS: Final = 5.0
"""A held-out score falls if that of its trend is at most minus this. It is looked at in every step of a run,
so it must be rare: see docs/scorers.md for how often it is reached by chance."""
RECOVERED: Final = 2.0
"""A divergence is over, and the next one is an event again, when either t is less than this far from 0."""
_MAX_T: Final = 1e3
_MAX_AUTOCORRELATION: Final = 0.9


@dataclass(slots=True)
class _Series:
    """The last steps of one scorer: (mean reward, mean score) over the rows that have both."""

    steps: deque[tuple[float, float]]
    diverged: bool = False


class HeldOutWatch:
    """Watches scorers against the reward, each over its own number of steps (`windows`)."""

    def __init__(self, windows: Mapping[str, int], event: Callable[..., None]) -> None:
        self._series = {name: _Series(deque(maxlen=window)) for name, window in windows.items()}
        self._event = event

    def observe(self, batch: Batch, step: int) -> dict[str, float]:
        """The metrics of `step` (from 1); reports a divergence that begins with it.

        held_out/<scorer>/correlation is the mean over groups of the correlation of reward and score, left out
        if in no group both vary. Once the window is full: reward_trend and score_trend are the t statistics
        (`trend`) of both over the window, and gap is by how much more the reward has risen than the score,
        each in its own standard deviations (`change`).
        """
        metrics: dict[str, float] = {}
        own = batch.rows_of(POLICY)
        scores = batch.index.column("scores").to_pylist()
        for name, series in self._series.items():
            found = [dict(scores[row]).get(name) for row in own]
            score_N = np.array([np.nan if each is None else each for each in found], np.float64)
            # Both over the same rows, or a scorer that often fails would be compared with other completions.
            known = np.isfinite(score_N) & np.isfinite(batch.reward_N[own])
            if not known.any():
                continue
            reward, score, group = batch.reward_N[own][known], score_N[known], batch.group_N[own][known]
            if (correlation := group_correlation(reward, score, group)) is not None:
                metrics[f"held_out/{name}/correlation"] = correlation
            series.steps.append((float(reward.mean()), float(score.mean())))
            if len(series.steps) == series.steps.maxlen:
                metrics |= self._compare(name, series, step)
        return metrics

    def _compare(self, name: str, series: _Series, step: int) -> dict[str, float]:
        rewards, scores = (np.array(column) for column in zip(*series.steps, strict=True))
        rise, fall = trend(rewards), trend(scores)
        if rise >= RISES and fall <= -FALLS and not series.diverged:
            series.diverged = True
            window = len(series.steps)
            told = {"reward_trend": round(rise, 2), "score_trend": round(fall, 2), "steps": window}
            self._event("reward_divergence", step=step, scorer=name, **told)
        elif rise < RECOVERED or fall > -RECOVERED:
            series.diverged = False
        values = {"reward_trend": rise, "score_trend": fall, "gap": change(rewards) - change(scores)}
        return {f"held_out/{name}/{metric}": value for metric, value in values.items()}

    def state(self) -> dict[str, Json]:
        """By scorer: its steps, and whether it has diverged."""
        return {
            name: {"steps": [list(pair) for pair in each.steps], "diverged": each.diverged}
            for name, each in self._series.items()
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`; scorers that it does not have begin anew."""
        for name, series in self._series.items():
            known = state.get(name, {})
            series.steps.clear()
            series.steps.extend((reward, score) for reward, score in known.get("steps", ()))
            series.diverged = bool(known.get("diverged", False))


def group_correlation(reward_N: np.ndarray, score_N: np.ndarray, group_N: np.ndarray) -> float | None:
    """The mean over groups of Pearson's correlation of rewards and scores; None if in no group both vary."""
    found = []
    for group in np.unique(group_N):
        pair = np.stack([reward_N[group_N == group], score_N[group_N == group]])
        pair = pair - pair.mean(axis=1, keepdims=True)
        lengths = np.sqrt((pair**2).sum(axis=1))
        if (lengths > 1e-9 * np.maximum(1.0, np.abs([reward_N, score_N]).max(axis=1))).all():
            found.append(float(pair[0] @ pair[1] / (lengths[0] * lengths[1])))
    return float(np.mean(found)) if found else None


def trend(values: Sequence[float] | np.ndarray) -> float:
    """The t statistic of the slope of `values` over steps (at least 3), at most 1,000 in size.

    Of ordinary least squares, with the slope's standard error multiplied by sqrt((1 + r) / (1 - r)), r the
    lag-1 autocorrelation of the residuals between 0 and 0.9: steps that follow each other are alike, and
    would else look like more evidence than they are. 0 if the values are equal up to rounding.
    """
    y = np.asarray(values, np.float64)
    x = np.arange(len(y)) - (len(y) - 1) / 2.0
    if np.ptp(y) <= 1e-9 * max(1.0, float(np.abs(y).max())):
        return 0.0
    spread = float(x @ x)
    slope = float(x @ y) / spread
    residuals = y - y.mean() - slope * x
    squares = float(residuals @ residuals)
    if squares <= 1e-18 * float(y @ y):
        return float(np.copysign(_MAX_T, slope))
    r = min(max(float(residuals[1:] @ residuals[:-1]) / squares, 0.0), _MAX_AUTOCORRELATION)
    error = np.sqrt(squares / (len(y) - 2) / spread * (1.0 + r) / (1.0 - r))
    return float(np.clip(slope / error, -_MAX_T, _MAX_T))


def change(values: np.ndarray) -> float:
    """Mean of the second half less mean of the first, in standard deviations of all; 0 if all are equal."""
    half = len(values) // 2
    deviation = float(values.std())
    if deviation <= 1e-9 * max(1.0, float(np.abs(values).max())):
        return 0.0
    return float(values[-half:].mean() - values[:half].mean()) / deviation
