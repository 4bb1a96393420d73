"""The reward against a held-out scorer: by hand, false alarms over 1,000 seeds, power, and a resumed run."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pytest

from configs.errors import ConfigError
from configs.load import load_config
from rollouts.events import describe_event
from trainer.held_out import FALLS, RISES, HeldOutWatch, change, group_correlation, trend
from trainer.step_records import Batch, BatchPlan

RUNS, STEPS, WINDOW = 1000, 200, 40


def batch(rewards: list[float], scores: list[float | None], groups: list[int] | None = None) -> Batch:
    """Policy rows with these rewards (NaN for null) and scores of the scorer `strict`."""
    index = pa.table(
        {
            "scores": pa.array([[("strict", each)] for each in scores], pa.map_(pa.string(), pa.float64())),
            "origin": ["policy"] * len(rewards),
        }
    )
    return Batch(
        index=index,
        plan=BatchPlan(microbatches=()),
        group_N=np.array(groups or [0] * len(rewards)),
        update_N=np.zeros(len(rewards), np.int64),
        reward_N=np.array(rewards, np.float64),
    )


def fluctuating(correlation: float, seed: int = 0) -> np.ndarray:
    """[RUNS, STEPS] with mean 0, deviation 1 and this correlation from step to step."""
    fresh = np.random.default_rng(seed).standard_normal((RUNS, STEPS))
    values = fresh.copy()
    for step in range(1, STEPS):
        values[:, step] = correlation * values[:, step - 1] + np.sqrt(1 - correlation**2) * fresh[:, step]
    return values


def trends(values: np.ndarray, window: int) -> np.ndarray:
    """`trend` of every window of every run, [RUNS, STEPS - window + 1], in one go."""
    y = np.lib.stride_tricks.sliding_window_view(values, window, axis=1)
    x = np.arange(window) - (window - 1) / 2
    slope = (y @ x) / (x @ x)
    residuals = y - y.mean(-1, keepdims=True) - slope[..., None] * x
    squares = (residuals**2).sum(-1)
    r = np.clip((residuals[..., 1:] * residuals[..., :-1]).sum(-1) / squares, 0.0, 0.9)
    return slope / np.sqrt(squares / (window - 2) / (x @ x) * (1 + r) / (1 - r))


def alarms(reward: np.ndarray, score: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """By run: in which step the first alarm comes, 0 for none."""
    found = (trends(reward, window) >= RISES) & (trends(score, window) <= -FALLS)
    return np.where(found.any(1), found.argmax(1) + window, 0)


def test_the_fast_trend_is_the_trend() -> None:
    values = fluctuating(0.5, seed=3)
    assert trends(values[:3], 20)[2, 100] == pytest.approx(trend(values[2, 100:120]))


def test_trend_by_hand() -> None:
    """1 2 4: slope 3/2, residuals 1/6 -1/3 1/6, squares 1/6, one degree of freedom: t = 1.5 / sqrt(1/12).

    Their lag-1 correlation is negative and does not count. For 0 0 1 1 5: mean 1.4, slope 1.1.
    """
    assert trend([1.0, 2.0, 4.0]) == pytest.approx(1.5 / np.sqrt(1 / 12))
    y = np.array([0.0, 0.0, 1.0, 1.0, 2.0, 2.0])
    x = np.arange(6) - 2.5
    slope = 8.0 / 17.5
    left = y - 1.0 - slope * x
    r = max(0.0, float(left[1:] @ left[:-1] / (left @ left)))
    wanted = slope / np.sqrt(left @ left / 4 / 17.5 * (1 + r) / (1 - r))
    assert trend(y) == pytest.approx(wanted) and trend(-y) == pytest.approx(-wanted)
    assert trend([0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2]) == 0.0
    assert trend(np.arange(10)) == 1e3 and trend(-np.arange(10)) == -1e3


def test_change_by_hand() -> None:
    """0 0 2 2: 2 over a deviation of 1; the middle of an odd number is in neither half."""
    assert change(np.array([0.0, 0.0, 2.0, 2.0])) == 2.0
    assert change(np.array([0.0, 3.0, 0.0])) == 0.0 and change(np.full(4, 0.1)) == 0.0


def test_group_correlation_by_hand() -> None:
    """Group 0: 1, group 1: -1, group 2: the reward does not vary; group 3: the score does not."""
    reward = np.array([0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    score = np.array([2.0, 3.0, 9.0, 1.0, 0.0, 1.0, 0.1 + 0.2, 0.3])
    group = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    assert group_correlation(reward, score, group) == pytest.approx(0.0)
    assert group_correlation(reward[:2], score[:2], group[:2]) == pytest.approx(1.0)
    assert group_correlation(reward[4:], score[4:], group[4:]) is None


@pytest.mark.parametrize(
    ("correlation", "most"),
    [(0.0, 0.005), (0.3, 0.025), (0.5, 0.06)],
)
def test_false_alarms_while_the_reward_rises(correlation: float, most: float) -> None:
    """The hard case: the reward rises in every run, the held-out score only fluctuates. docs/scorers.md."""
    rising = fluctuating(0.3, seed=1) + 0.2 * np.arange(STEPS)
    share = float((alarms(rising, fluctuating(correlation)) > 0).mean())
    print(f"correlation {correlation}: {share:.3f}")
    assert share <= most


def test_no_false_alarm_where_nothing_moves_or_both_rise() -> None:
    """Noise in both: none in 1,000 runs, at correlation 0.3 too; nor where both rise with shared noise."""
    for correlation in (0.0, 0.3):
        assert not alarms(fluctuating(correlation, 5), fluctuating(correlation, 6)).any()
    shared = fluctuating(0.3, 7) + 0.05 * np.arange(STEPS)
    assert not alarms(shared, shared + 0.5 * fluctuating(0.0, 8)).any()


def test_a_score_that_falls_is_found() -> None:
    """By 0.1 deviations a step from step 50 on: in nearly all runs, within about a window."""
    rising = fluctuating(0.3, seed=1) + 0.2 * np.arange(STEPS)
    falling = fluctuating(0.3, seed=2) - 0.1 * np.maximum(np.arange(STEPS) - 50, 0)
    found = alarms(rising, falling)
    delay = float(np.median(found[found > 0])) - 50
    print(
        f"found {float((found > 0).mean()):.3f}, after {delay}; window 20: "
        f"{float((alarms(rising, fluctuating(0.0), 20) > 0).mean()):.3f}"
    )
    assert (found > 0).mean() >= 0.99 and 20 <= delay <= 45


def watched(window: int = 10) -> tuple[HeldOutWatch, list[tuple[str, Mapping[str, object]]]]:
    events: list[tuple[str, Mapping[str, object]]] = []
    return HeldOutWatch({"strict": window}, lambda kind, **told: events.append((kind, told))), events


def feed(
    watch: HeldOutWatch, rewards: list[float], scores: list[float], first: int = 1
) -> list[dict[str, float]]:
    """One group of two rows per step, around these means."""
    steps = zip(rewards, scores, strict=True)
    return [
        watch.observe(batch([r - 0.1, r + 0.1], [s + 0.1, s - 0.1]), first + number)
        for number, (r, s) in enumerate(steps)
    ]


RISING = [0.01 * step + 0.002 * (step % 3) for step in range(30)]
FALLING = [0.5 - 0.01 * step + 0.002 * (step % 2) for step in range(30)]


def test_a_divergence_is_one_event() -> None:
    """When it begins; again only after a recovery. The sentence names what parts."""
    watch, events = watched()
    metrics = feed(watch, RISING, FALLING)
    assert [len(each) for each in metrics] == [1] * 9 + [4] * 21
    assert metrics[0] == {"held_out/strict/correlation": pytest.approx(-1.0)}
    ((kind, told),) = events
    assert kind == "reward_divergence" and (told["step"], told["scorer"], told["steps"]) == (10, "strict", 10)
    said = describe_event(kind, told)  # type: ignore[arg-type]
    assert said.startswith("step 10: over 10 steps the reward rises (t = ") and "scorer strict falls" in said
    feed(watch, [0.5, 0.5 + 1e-3] * 6, [0.2, 0.2 + 1e-3] * 6, first=31)
    assert len(events) == 1
    feed(watch, RISING, FALLING, first=43)
    assert len(events) == 2
    assert metrics[-1]["held_out/strict/gap"] > 3


def test_only_rows_with_both_count() -> None:
    """A null score or reward leaves its row out; a step without any row adds nothing."""
    watch, _ = watched()
    nan = float("nan")
    assert watch.observe(batch([1.0, nan, 0.0], [None, 0.5, None]), 1) == {}
    watch.observe(batch([1.0, 0.0, nan, 0.5], [0.25, 0.75, 9.0, None]), 2)
    assert watch.state() == {"strict": {"steps": [[0.5, 0.5]], "diverged": False}}


def test_a_resumed_run_says_the_same() -> None:
    straight, first = watched()
    whole = feed(straight, RISING, FALLING)
    begun, _ = watched()
    feed(begun, RISING[:17], FALLING[:17])
    resumed, later = watched()
    resumed.restore(json.loads(json.dumps(begun.state())))
    assert feed(resumed, RISING[17:], FALLING[17:], first=18) == whole[17:]
    assert len(first) == 1 and later == []
    resumed.restore({})
    assert resumed.state() == {"strict": {"steps": [], "diverged": False}}


@pytest.mark.parametrize(
    ("scorer", "rule"),
    [
        ("{kind: constant, weight: 1.0, watch_steps: 20}", "must be 0 for a scorer that enters the reward"),
        ("{kind: constant, combine: gate, watch_steps: 20}", "must be 0 for a scorer that enters the reward"),
        ("{kind: constant, watch_steps: 5}", "must be 0 or at least 10"),
    ],
)
def test_what_cannot_be_watched_is_refused(scorer: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        load_config("debug", [f"scorers.s={scorer}"])
