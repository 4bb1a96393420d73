"""The report of the overlap benchmark, on invented run times; the benchmark itself is not run here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest

from benchmarks.overlap import ARMS, BASELINE, OVERLAP, Figures, read_figures, table


def _run(folder: Path, steps: list[dict[str, float]]) -> Path:
    folder.mkdir()
    lines = [json.dumps({"step": number + 1, **step}) for number, step in enumerate(steps)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _step(
    whole: float, generate: float, score: float, update: float, share: float | None
) -> dict[str, float]:
    times = {"step": whole, "generate": generate, "learn_score": score, "learn_update": update}
    metrics = {f"time/{name}_s": seconds for name, seconds in times.items()}
    metrics["throughput/tokens_per_s"] = 600 / whole
    return metrics if share is None else metrics | {"overlap/generating_share": share}


def test_figures_are_of_later_steps_and_shares_weigh_by_time(tmp_path: Path) -> None:
    """Three warm-up steps are left out; 1 s at 100 % and 3 s at 20 % of generation give 40 %."""
    cold = [_step(90.0, 9.0, 9.0, 9.0, 0.0)] * 3
    warm = [_step(2.0, 0.5, 0.25, 0.75, 1.0), _step(4.0, 1.5, 1.0, 2.0, 0.2)]
    assert read_figures(_run(tmp_path / "run", cold + warm)) == Figures(
        step_s=3.0,
        generate_s=1.0,
        learn_s=2.0,
        tokens=cast(float, pytest.approx(600)),
        generating_share=cast(float, pytest.approx(0.4)),
    )


def test_a_run_that_never_overlaps_has_no_share(tmp_path: Path) -> None:
    """Without a recorded share the report has none."""
    steps = [_step(2.0, 0.5, 0.25, 0.75, None)] * 5
    assert read_figures(_run(tmp_path / "run", steps)).generating_share == 0.0


def test_too_short_a_run_is_refused(tmp_path: Path) -> None:
    """A run of warm-up steps alone is an error."""
    with pytest.raises(ValueError, match="more than 3 steps with time/step_s, got 3"):
        read_figures(_run(tmp_path / "run", [_step(2.0, 0.5, 0.25, 0.75, None)] * 3))


def _figures(step_s: float, share: float) -> Figures:
    return Figures(step_s=step_s, generate_s=0.9, learn_s=1.0, tokens=600.0, generating_share=share)


def test_the_table_compares_within_a_repetition() -> None:
    """The machine was twice as slow in the second of three repetitions; the ratios do not change."""
    slowness = (1.0, 2.0, 1.5)
    speeds = dict(zip(ARMS, (1.0, 0.6, 0.9, 0.8), strict=True))
    results = {
        arm: [_figures(2 * slow * speed, 0.9 if arm == OVERLAP else 0.0) for slow in slowness]
        for arm, speed in speeds.items()
    }
    lines = table(results).splitlines()
    assert lines[2] == f"| {BASELINE} | 3.000 (2.000 to 4.000) | 1.00 (1.00 to 1.00) | 0% (0% to 0%) |"
    assert lines[3] == f"| {OVERLAP} | 1.800 (1.200 to 2.400) | 0.60 (0.60 to 0.60) | 90% (90% to 90%) |"
    assert "0.90 (0.90 to 0.90), met; 600 tokens per step" in lines[7]
    assert "90% of learning (goal 70%: met), 0.60 of the baseline's step (goal 0.85: met)" in lines[8]
    assert lines[9] == f"Fastest: {OVERLAP}."


def test_a_missed_goal_is_said() -> None:
    """Too little overlap, too slow, and unbalanced work are reported."""
    results = {
        arm: [Figures(step_s=1.0, generate_s=0.2, learn_s=1.0, tokens=1.0, generating_share=0.3)]
        for arm in ARMS
    }
    assert table(results).count("NOT met") == 3
