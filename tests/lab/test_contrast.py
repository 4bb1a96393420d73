"""The table of a comparison, from made-up results whose numbers can be worked out in the head."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compare_results import prompt, result

from configs.load import load_config
from lab.arms import Arm
from lab.compare_page import Comparison, markdown
from lab.contrast import Row, check_paired, contrast
from lab.results import read_result, write_result

BOTH = {"code": 2, "prose": 2}


def _row(rows: tuple[Row, ...], metric: str, arm: str) -> Row:
    return next(row for row in rows if row.metric.name == metric and row.arm == arm)


def test_every_metric_by_hand() -> None:
    """One seed, two prompts of 4 samples. Control: 1 and 3 right. Arm: 2 and 4 right.

    reward and pass@1: 4/8 and 6/8. pass@2: 1 - C(3,2)/C(4,2) = 1/2 and 1 (C(1,2) = 0), so 3/4; arm: 1 - 1/6
    and 1, so 11/12. Formats: control 4 and 4: log 2, share 1/2; arm 8 and 0: entropy 0, share 1. Answers:
    (0.5 + 0.1) / 2 of control, of the arm nothing was told."""
    control = result("control", 0, [prompt("a", 1, BOTH), prompt("b", 3, BOTH, answer_entropy=0.1)])
    arm = result(
        "arm",
        0,
        [prompt("a", 2, {"code": 4}, answer_entropy=None), prompt("b", 4, {"code": 4}, answer_entropy=None)],
        entropy=0.3,
        kl=0.05,
    )
    rows = contrast([control, arm], ["control", "arm"], [2])
    values = {
        row.metric.name: (row.value, _row(rows, row.metric.name, "arm").value)
        for row in rows
        if row.arm == "control"
    }
    assert values["reward"] == values["pass@1"] == (0.5, 0.75)
    assert values["pass@2"] == pytest.approx((3 / 4, 11 / 12))
    assert values["format entropy"] == pytest.approx((math.log(2), 0.0))
    assert values["leading format share"] == (0.5, 1.0)
    assert values["answer entropy"][0] == pytest.approx(0.3) and math.isnan(values["answer entropy"][1])
    assert values["token entropy"] == (0.1, 0.3) and values["KL to base"] == (0.02, 0.05)
    assert all(math.isnan(value) for value in values["strategy entropy"])
    better = _row(rows, "reward", "arm")
    assert better.difference == pytest.approx(0.25) and better.shared_seeds == (0,)
    # one more of four is right at both prompts: whichever are drawn, the difference is the same
    assert better.bootstrap is not None and better.bootstrap.low == better.bootstrap.high == 0.25
    assert better.t is None, "one seed has no spread"
    entropy = _row(rows, "token entropy", "arm")
    assert entropy.difference == pytest.approx(0.2) and entropy.bootstrap is None and entropy.interval is None
    for name in ("answer entropy", "strategy entropy"):
        missing = _row(rows, name, "arm")
        assert math.isnan(missing.difference) and missing.bootstrap is missing.t is missing.interval is None
    itself = _row(rows, "reward", "control")
    assert math.isnan(itself.difference) and itself.shared_seeds == ()


def test_metrics_of_a_step_and_different_answers() -> None:
    """Those that some result has, by name; the difference needs them in both runs. (2 + 3) / 2 answers."""
    control = result("control", 0, [prompt("a", 1, BOTH, num_answers=2), prompt("b", 3, BOTH, num_answers=3)])
    arm = result("arm", 0, [prompt("a", 1, BOTH, num_answers=4), prompt("b", 3, BOTH, num_answers=4)])
    both = [
        replace(each, last={**each.last, "grad/norm": 2.0 + at}) for at, each in enumerate((control, arm))
    ]
    rows = contrast(both, ["control", "arm"], [1])
    answers, norm = _row(rows, "different answers", "arm"), _row(rows, "grad/norm", "arm")
    assert (answers.value, answers.difference) == (4.0, 1.5)
    assert (norm.value, norm.difference) == (3.0, 1.0)
    alone = _row(contrast([control, both[1]], ["control", "arm"], [1]), "grad/norm", "arm")
    assert alone.value == 3.0 and math.isnan(alone.difference)


def test_a_metric_that_no_run_has_is_said() -> None:
    """A name with a typing error must not be a row of dashes without a word; one that a seed lacks may be."""
    config = load_config("debug", [])
    arms = (Arm(name="control", file="", configs=(config,), changes={}),)
    made = [result("control", seed, [prompt("a", 1, BOTH)]) for seed in (0, 1)]
    results = [
        replace(each, last={**each.last, "grad/nrom": math.nan, "grad/norm": norm})
        for each, norm in zip(made, (2.0, math.nan), strict=True)
    ]
    comparison = Comparison(command=[], arms=arms, num_seeds=2, pass_at=[1], results=results, failures={})
    text = markdown(comparison, comparison.rows())
    assert "Not recorded by any run: grad/nrom. metrics.jsonl" in text


def test_differences_are_over_the_seeds_that_both_have() -> None:
    """Control has seeds 0 and 1, the arm 1 and 2. Rewards by seed: control 0 and 1/2, arm 1 and 0: the arm's
    mean is 1/2, its difference that of seed 1 alone, 1/2. A third arm has no seed in common and none."""

    def one(arm: str, seed: int, right: int) -> object:
        return result(arm, seed, [prompt("a", right, BOTH)])

    results = [
        one("control", 0, 0),
        one("control", 1, 2),
        one("arm", 1, 4),
        one("arm", 2, 0),
        one("late", 5, 1),
    ]
    rows = contrast(results, ["control", "arm", "late", "never"], [1])  # type: ignore[arg-type]
    arm, late = _row(rows, "reward", "arm"), _row(rows, "reward", "late")
    assert arm.value == 0.5 and arm.seeds == (1, 2) and arm.shared_seeds == (1,) and arm.difference == 0.5
    assert late.value == 0.25 and late.shared_seeds == () and math.isnan(late.difference)
    assert not [row for row in rows if row.arm == "never"]


def test_paired_t_over_seeds() -> None:
    """Token entropies of control 0.1, 0.2 and of the arm 0.3, 0.5: differences 0.2 and 0.3, mean 0.25, and
    t(1): 0.25 +- 12.7062 x 0.05 = 0.6353."""
    results = [
        result(arm, seed, [prompt("a", 1, BOTH)], entropy=value)
        for arm, values in (("control", (0.1, 0.2)), ("arm", (0.3, 0.5)))
        for seed, value in enumerate(values)
    ]
    row = _row(contrast(results, ["control", "arm"], [1]), "token entropy", "arm")
    assert row.difference == pytest.approx(0.25)
    assert row.t is not None and row.t.high == pytest.approx(0.25 + 0.6353, abs=1e-4)
    assert row.bootstrap is not None
    assert (row.bootstrap.low, row.bootstrap.high) == pytest.approx((0.2, 0.3))


def test_strategies_and_untagged_samples_are_counted() -> None:
    """Strategies 1 and 3 of 4: entropy 0.5623. An arm that lacks the tag has none, and no difference."""
    with_tag = result("control", 0, [prompt("a", 1, {"code": 3, "untagged": 1}, {"guess": 1, "work": 3})])
    without = result("arm", 0, [prompt("a", 1, BOTH)])
    rows = contrast([with_tag, without], ["control", "arm"], [1])
    assert _row(rows, "strategy entropy", "control").value == pytest.approx(0.562335)
    assert math.isnan(_row(rows, "strategy entropy", "arm").value)
    assert _row(rows, "leading format share", "control").value == 0.75


def test_another_reward_has_no_difference() -> None:
    """An arm with other scorers: its reward is shown and not subtracted; pass@1 is."""
    results = [result(arm, 0, [prompt("a", 1, BOTH)]) for arm in ("control", "arm")]
    rows = contrast(results, ["control", "arm"], [1], ["arm"])
    assert _row(rows, "reward", "arm").value == 0.25 and math.isnan(_row(rows, "reward", "arm").difference)
    assert _row(rows, "pass@1", "arm").difference == 0.0


def test_results_of_other_prompts_are_refused() -> None:
    """They pair with nothing."""
    first, other = (result("control", seed, [prompt(name, 1, BOTH)]) for seed, name in ((0, "a"), (1, "b")))
    with pytest.raises(ValueError, match="control seed 1 than in control seed 0"):
        contrast([first, other], ["control"], [1])
    with pytest.raises(ValueError, match="one set of training prompts"):
        contrast([first, replace(first, seed=1, source_sha256="else")], ["control"], [1])


def test_seeds_of_an_arm_have_the_same_demonstrations() -> None:
    """Arms may differ in them; a result of before, which does not know, is taken as it is."""
    known: dict[str, Any] = {"demonstrations_sha256": "x"}
    first, arm = (result(name, 0, [prompt("a", 1, BOTH)]) for name in ("control", "arm"))
    unknown = replace(arm, seed=2, demonstrations_sha256=None)
    check_paired([first, replace(arm, **known), replace(arm, seed=1, **known), unknown])
    with pytest.raises(ValueError, match="results of arm must be of one set of demonstrations"):
        check_paired([first, replace(arm, **known), replace(arm, seed=1, demonstrations_sha256="y")])


def test_seeds_of_an_arm_have_the_same_code() -> None:
    """A reward function that was edited between two seeds makes them another arm; arms may differ."""
    first, arm = (result(name, 0, [prompt("a", 1, BOTH)]) for name in ("control", "arm"))
    known: dict[str, Any] = {"code_sha256": "x"}
    unknown = replace(arm, seed=2, code_sha256=None)
    check_paired([first, replace(arm, **known), replace(arm, seed=1, **known), unknown])
    with pytest.raises(ValueError, match="results of arm must be of the same code of your own"):
        check_paired([first, replace(arm, **known), replace(arm, seed=1, code_sha256="y")])


def test_a_result_on_disk(tmp_path: Path) -> None:
    """All of it comes back; a file of an earlier version lacks the number of answers."""
    path, before = (
        tmp_path / "control_seed0.json",
        result("control", 0, [prompt("a", 1, BOTH, num_answers=2)]),
    )
    write_result(path, before)
    assert read_result(path) == before
    record = json.loads(path.read_text())
    record["prompts"] = [fields[:8] for fields in record["prompts"]]
    path.write_text(json.dumps(record))
    assert read_result(path).prompts == (prompt("a", 1, BOTH),)
