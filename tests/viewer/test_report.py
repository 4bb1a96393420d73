"""The run report: it must survive any run directory, show what is there, say what is not, and run nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from html_page import HOSTILE, Page
from hypothesis import given
from hypothesis import strategies as st

from viewer.report import write_report
from viewer.run_data import read_run
from viewer.svg import (
    BOTTOM,
    MAX_POINTS,
    TOP,
    Axis,
    Chart,
    Line,
    area_chart,
    line_chart,
    log_ticks,
    nice_ticks,
    spread,
    thin,
)


def make_run(folder: Path, records: Sequence[Mapping[str, float]], config: str = "name: x\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def add_rollouts(run: Path, step: int, texts: Sequence[str], tag: str | None = "code") -> None:
    folder = run / "rollouts" / f"step={step:06d}"
    folder.mkdir(parents=True)
    rows = len(texts)
    columns = {
        "step": pa.array([step] * rows, pa.int64()),
        "prompt_id": pa.array([f"p{index // 2}" for index in range(rows)]),
        "text": pa.array(list(texts)),
        "format_tag": pa.array([tag] * rows, pa.string()),
        "reward": pa.array([None, *[0.5] * (rows - 1)], pa.float64()),
        "entropy_mean": pa.array([0.25] * rows),
        "answer_ok": pa.array([True] * rows),
    }
    pq.write_table(pa.table(columns), folder / "part-0.parquet")


def add_eval(run: Path, step: int, metrics: Mapping[str, float]) -> None:
    folder = run / "eval" / f"step={step:06d}"
    folder.mkdir(parents=True)
    (folder / "step.json").write_text(json.dumps({"step": step, "metrics": metrics}))


def narrowing(step: int) -> dict[str, float]:
    """Metrics of a run of 20 steps whose code share goes 0.40, 0.42, ... 0.78."""
    code = 0.40 + 0.02 * (step - 1)
    return {
        "step": step,
        "reward/mean": step / 20,
        "score/correct": step / 40,
        "entropy/token_mean": 0.1,
        "entropy/format": 1.0,
        "format/share/code": code,
        "format/share/prose": 0.9 - code,
        "format/share/symbolic": 0.1,
        "kl/k3_policy_vs_base": 0.01 * step,
        "sync/probe_gap": 0.0,
        "sync/probe_power": 0.004,
        "time/step_s": 3.0,
        "time/generate_s": 1.0,
        "time/learn_update_s": 1.5,
    }


def report(run: Path) -> tuple[str, Page]:
    text = write_report(run).read_text(encoding="utf-8")
    return text, Page(text)


def bands(svg: str) -> dict[str, list[tuple[float, float]]]:
    """Name -> the points of its area path: the upper edge left to right, then the lower edge back."""
    found = re.findall(r'class="band [^"]*" data-name="([^"]*)" d="M([^"]*)Z"', svg)
    return {
        name: [(float(x), float(y)) for x, y in (pair.split() for pair in path.split("L"))]
        for name, path in found
    }


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ([1.0, 1.0], "No completion of this run has a reward."),
        ([1.0], "No completion of this run has a reward."),
        ([0.5, 1.0, 1.0], "No completion of step 2, 3 has a reward."),
        ([0.5, 0.0], ""),
    ],
)
def test_steps_without_a_reward_are_reported(tmp_path: Path, shares: list[float], told: str) -> None:
    """Nothing was learned from them, which no curve shows."""
    records = [{"step": step, "reward/null_share": share} for step, share in enumerate(shares, 1)]
    _, page = report(make_run(tmp_path / "demo", records))
    assert (told in page.text) if told else "No completion of" not in page.text
    assert ("The scorers' logs in logs/ have the reasons." in page.text) == bool(told)


def test_whole_run(tmp_path: Path) -> None:
    """A run with everything gives one page with the headline numbers, charts, completions and config."""
    run = make_run(tmp_path / "demo", [narrowing(step) for step in range(1, 21)], "model: {dtype: fp32}\n")
    add_rollouts(run, 1, ["first a", "second a", "first b"])
    add_rollouts(run, 20, ["late a", "late a2", "late b"])
    add_eval(run, 0, {"eval/pass@1": 0.5, "eval/pass@16": 0.9, "eval/pass@4": 0.8})
    add_eval(run, 20, {"eval/pass@1": 0.7, "eval/pass@16": 0.8, "eval/pass@4": 0.8})
    text, page = report(run)
    assert "20 steps (1 to 20). Numbers: mean of the first 5 steps and the last 5." in page.text
    assert "0.150 \u2192 0.900" in page.text  # reward: mean of 1..5 and of 16..20, over 20
    assert "leading format: code44% \u2192 74%" in page.text
    assert "first a" in page.text and "first b" in page.text and "late b" in page.text
    assert "second a" not in page.text  # one completion per prompt
    assert "Step 1: the first completion of each of the first 2 prompts, out of 3 completions" in page.text
    assert "tolerance 0.00100" in page.text
    assert text.index(">pass@1<") < text.index(">pass@4<") < text.index(">pass@16<")
    assert "Not recorded in the metrics of this run: length/mean_tokens." in page.text
    assert "dtype: fp32" in page.text


def test_page_needs_no_other_file(tmp_path: Path) -> None:
    """No script, no fetch: nothing in the page names another resource, and the policy forbids it besides."""
    run = make_run(tmp_path / "demo", [narrowing(step) for step in range(1, 4)])
    add_rollouts(run, 1, ["plain"])
    text, page = report(run)
    assert (
        "http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\""
        in text
    )
    assert not page.names() & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "a",
        "use",
    }
    assert not attrs_that_act({name for _, attrs in page.tags for name in attrs})
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    assert "prefers-color-scheme: dark" in text


def attrs_that_act(names: set[str]) -> set[str]:
    return {
        name for name in names if name in {"src", "href", "srcset", "xlink:href"} or name.startswith("on")
    }


def test_hostile_text_is_shown_not_run(tmp_path: Path) -> None:
    """Completions, prompt ids, format tags, scorer names, the run's name and its config may hold markup."""
    records = [
        {"step": s, f"format/share/{HOSTILE}": 1.0, f"score/{HOSTILE}": s, "reward/mean": 1.0} for s in (1, 2)
    ]
    run = make_run(tmp_path / "a<b>&'\"", records, f"name: '{HOSTILE}")
    add_rollouts(run, 1, [HOSTILE, HOSTILE], tag=HOSTILE)
    text, page = report(run)
    assert not page.names() & {"script", "img"}
    assert not attrs_that_act({name for _, attrs in page.tags for name in attrs})
    assert '</pre><script>alert("x")</script><img src="http://evil/x.png" onerror=a> [/] red' in page.text
    assert "a<b>&'\"" in page.text
    assert "\x1b" not in text and "\x00" not in text
    assert "config.yaml is not valid YAML" in page.text


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_tag_leaves_the_markup_whole(tag: str) -> None:
    """Names enter attributes, labels and tooltips of a chart: the elements must be the same for any name."""
    shares = Line(tag, (0.4, 0.6), 0)
    plain = Line("x", (0.4, 0.6), 0)
    drawn, expected = (
        Page(area_chart(Chart(title=line.name, steps=(1, 2), lines=(line,)))).tags for line in (shares, plain)
    )
    assert [name for name, _ in drawn] == [name for name, _ in expected]


def test_one_step(tmp_path: Path) -> None:
    """A run of one step has no before and after, and its bands have no width unless drawn as a bar."""
    run = make_run(tmp_path / "one", [narrowing(7)])
    text, page = report(run)
    assert "1 step (step 7): there is nothing to compare it with yet" in page.text
    assert "\u2192" not in page.text
    code = bands(text)["code"]
    assert max(x for x, _ in code) - min(x for x, _ in code) == pytest.approx(12.0)
    assert "No completions could be read from rollouts/." in page.text
    assert "Not recorded in eval/ of this run: eval/pass@*." in page.text


def test_no_metrics(tmp_path: Path) -> None:
    """A run that died before its first step: a page that says so."""
    (tmp_path / "config.yaml").write_text("name: x\n")
    _, page = report(tmp_path)
    assert "No step of this run has metrics yet." in page.text
    assert "metrics.jsonl is absent or has no steps, and there are no step.json files" in page.text
    assert "svg" not in page.names()


def test_steps_without_any_known_metric(tmp_path: Path) -> None:
    """Every required chart names what it lacks."""
    _, page = report(make_run(tmp_path / "bare", [{"step": 1}, {"step": 2}]))
    for name in (
        "reward/mean",
        "format/share/*",
        "entropy/token_mean",
        "kl/k3_policy_vs_base",
        "sync/probe_gap",
    ):
        assert re.search(rf"Not recorded in the metrics of this run: [^.]*{re.escape(name)}", page.text), name


def test_not_a_run(tmp_path: Path) -> None:
    """The wrong folder is refused by name, with what a run folder holds; nothing is written there."""
    with pytest.raises(
        ValueError, match=f"config.yaml or metrics.jsonl, got {re.escape(str(tmp_path))} with neither"
    ):
        write_report(tmp_path)
    with pytest.raises(ValueError, match=r"got .*nowhere: no folder"):
        write_report(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_damage_is_reported_and_the_rest_is_shown(tmp_path: Path) -> None:
    """A crash cuts the last line, a NaN loss is not a number, a part is garbage: each is one sentence."""
    run = make_run(
        tmp_path / "hurt", [{"step": 1, "reward/mean": 0.25}, {"step": 2, "reward/mean": math.nan}]
    )
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "reward/mean": 0.75, "nonfinite": ["grad/norm"]}\n[1]\n{"step": 4, "rew')
    add_rollouts(run, 1, ["kept"])
    (run / "rollouts" / "step=000003").mkdir()
    (run / "rollouts" / "step=000003" / "part-0.parquet").write_bytes(b"PAR1 nonsense")
    add_eval(run, 2, {"eval/pass@1": 1.0})
    (run / "eval" / "step=000003").mkdir()
    _, page = report(run)
    assert "metrics.jsonl line 4 is not" in page.text and "metrics.jsonl line 5 is not" in page.text
    assert "reward/mean is not a finite number at 1 of 3 steps" in page.text
    assert "grad/norm is not a finite number at 1 of 3 steps" in page.text
    assert "rollouts/step=000003 could not be read" in page.text
    assert "eval/step=000003/step.json has no metrics" in page.text
    assert "kept" in page.text and "0.250 \u2192 0.750" in page.text


def test_metrics_from_step_files(tmp_path: Path) -> None:
    """metrics.jsonl is made from the step.json files; without it they still hold everything."""
    (tmp_path / "config.yaml").write_text("sync: {tolerance: 1e-2}\n")
    for step, reward in ((9, 0.5), (10, 1.0)):
        folder = tmp_path / "rollouts" / f"step={step:06d}"
        folder.mkdir(parents=True)
        (folder / "step.json").write_text(json.dumps({"metrics": {"reward/mean": reward}}))
    run = read_run(tmp_path)
    assert run.steps == (9, 10)
    assert run.curve("reward/mean") == (0.5, 1.0)
    assert run.probe_tolerance == 0.01


@given(st.binary(max_size=200), st.binary(max_size=100))
def test_any_bytes_make_a_page(
    tmp_path_factory: pytest.TempPathFactory, metrics: bytes, config: bytes
) -> None:
    """What a disk may leave behind never stops the report."""
    run = tmp_path_factory.mktemp("run")
    (run / "metrics.jsonl").write_bytes(metrics)
    (run / "config.yaml").write_bytes(config)
    report(run)


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(sorted(narrowing(1))),
            st.one_of(
                st.none(), st.booleans(), st.floats(), st.integers(-(10**40), 10**40), st.text(max_size=3)
            ),
        ),
        max_size=6,
    )
)
def test_any_values_make_a_page(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]]
) -> None:
    """Null, NaN, huge, negative, flat: every chart finds an axis, and no coordinate is nan or inf."""
    run = tmp_path_factory.mktemp("run")
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    text, _ = report(run)
    for path in re.findall(r' (?:d|x|y|x1|y1|cx|cy|width|height)="([^"]*)"', text):
        assert "nan" not in path and "inf" not in path


def test_shares_fill_the_chart() -> None:
    """Bands of shares that sum to 1 touch and reach from the 0% line to the 100% line at every step."""
    lines = (Line("code", (0.5, 0.75), 0), Line("prose", (0.3, 0.25), 1), Line("rest", (0.2, math.nan), 2))
    svg = area_chart(Chart(title="t", steps=(1, 2), lines=lines, floor=0.0, ceiling=1.0, percent=True))
    drawn = bands(svg)
    height = BOTTOM - TOP
    tops = [[point[1] for point in drawn[name][:2]] for name in ("code", "prose", "rest")]
    floors = [[point[1] for point in reversed(drawn[name][2:])] for name in ("code", "prose", "rest")]
    assert floors[0] == [BOTTOM, BOTTOM]
    assert floors[1] == tops[0] == pytest.approx([BOTTOM - 0.5 * height, BOTTOM - 0.75 * height], abs=0.01)
    assert floors[2] == tops[1]
    assert tops[2] == pytest.approx([TOP, TOP], abs=0.01)


def test_report_shares_sum_to_one(tmp_path: Path) -> None:
    """In the page of a long run, averaged to fewer points, the top of the stack is still the 100% line."""
    text, page = report(
        make_run(tmp_path / "long", [narrowing(1 + step % 20) | {"step": step} for step in range(1000)])
    )
    drawn = bands(text)
    names = ["code", "prose", "symbolic"]
    assert "Each point is the mean of 5 steps." in page.text
    width = len(drawn["code"]) // 2
    assert width <= MAX_POINTS
    tops = [min(drawn[name][at][1] for name in names) for at in range(width)]
    assert tops == pytest.approx([TOP] * width, abs=0.02)


def test_untagged_completions_are_a_band_of_their_own(tmp_path: Path) -> None:
    """Shares that lack a tenth must not look like a whole: the tenth is drawn as other."""
    records = [{"step": s, "format/share/code": 0.6, "format/share/prose": 0.3} for s in (1, 2)]
    text, _ = report(make_run(tmp_path / "untagged", records))
    other = bands(text)["other"]
    height = BOTTOM - TOP
    assert [y for _, y in other] == pytest.approx(
        [TOP, TOP, TOP + 0.1 * height, TOP + 0.1 * height], abs=0.02
    )


def test_many_formats_fold_into_other(tmp_path: Path) -> None:
    """Seven colours are all that can be told apart: the smallest formats share a band, named below."""
    shares = [0.2, 0.2, 0.15, 0.15, 0.1, 0.1, 0.05, 0.03, 0.02]
    record = {"step": 1} | {f"format/share/f{index}": share for index, share in enumerate(shares)}
    text, page = report(make_run(tmp_path / "many", [record, record | {"step": 2}]))
    drawn = bands(text)
    assert set(drawn) == {"other", *(f"f{index}" for index in range(7))}
    assert "Under other: f7, f8." in page.text
    assert drawn["other"][-1][1] - drawn["other"][0][1] == pytest.approx(0.05 * (BOTTOM - TOP), abs=0.02)


def test_a_format_keeps_its_colour_across_charts(tmp_path: Path) -> None:
    """A format that has no reward (none was sampled) must not hand its colour to the next one."""
    shares = {"format/share/code": 0.5, "format/share/prose": 0.0, "format/share/symbolic": 0.5}
    rewards = {"format/reward/code": 0.5, "format/reward/symbolic": 0.25}
    run = make_run(tmp_path / "colours", [{"step": 1, **shares, **rewards}])
    text, _ = report(run)
    colours = re.findall(r'<rect class="fill(\d)" x="474"[^>]*/><text[^>]*>symbolic<', text)
    assert colours == ["2", "2"]


def test_gap_breaks_a_line() -> None:
    """A missing value is a gap, not a straight line across it; a lone value is a dot."""
    chart = Chart(
        title="t", steps=(1, 2, 3, 4, 5), lines=(Line("a", (1.0, 2.0, math.nan, 3.0, math.nan), 0),)
    )
    svg = line_chart(chart)
    path = re.search(r'<path class="line stroke0" d="([^"]*)"', svg)
    assert path is not None
    assert re.sub(r"[\d. -]", "", path.group(1)) == "MLM"
    assert svg.count("<circle") == 1


def test_zero_on_a_log_axis_lies_on_the_lower_edge() -> None:
    """An exact zero gap is the best there is: it must be drawn, under every positive value."""
    svg = line_chart(
        Chart(title="t", steps=(1, 2), lines=(Line("gap", (0.0, 1e-4), 0),), log=True, rule=("t", 1e-2))
    )
    path = re.search(r'<path class="line stroke0" d="M\S+ (\S+)L\S+ (\S+)"', svg)
    assert path is not None
    assert float(path.group(1)) == BOTTOM
    assert float(path.group(2)) == pytest.approx(BOTTOM - (BOTTOM - TOP) / 3, abs=0.1)  # 1e-5 .. 1e-2


def test_ticks_by_hand() -> None:
    """Multiples of 1, 2 or 5 that enclose the values; whole decades on a log axis."""
    assert nice_ticks(0.0, 1.0) == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert nice_ticks(0.13, 0.78) == (0.0, 0.2, 0.4, 0.6, 0.8)
    assert nice_ticks(-3.0, 22.0) == (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
    assert log_ticks(2e-7, 3e-3) == pytest.approx((1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2))
    assert log_ticks(1.0, 1.0) == (1.0, 10.0)
    assert Axis(1.0, 100.0, 200.0, 0.0, log=True).at(10.0) == pytest.approx(100.0)


@given(st.floats(-1e30, 1e30), st.floats(1e-12, 1e30))
def test_ticks_enclose_and_rise(low: float, size: float) -> None:
    """Every value lies between the first and the last tick, and there are few enough to read."""
    high = low + size
    if high - low <= 1e-5 * max(abs(low), abs(high)):
        return  # the chart widens such a range first
    ticks = nice_ticks(low, high)
    slack = 1e-6 * (high - low)
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 9
    assert all(first < second for first, second in pairwise(ticks))


def test_labels_do_not_collide() -> None:
    """Three lines that end together: labels 15 apart, in order, inside the plot."""
    assert spread([100.0, 101.0, 50.0], 15.0, 0.0, 200.0) == [100.0, 115.0, 50.0]
    assert spread([199.0, 200.0], 15.0, 0.0, 200.0) == [185.0, 200.0]


def test_thinning_averages_buckets() -> None:
    """481 steps become 161 buckets of 3, the last one short; missing values do not enter a mean."""
    steps = tuple(range(481))
    curve = (math.nan, 1.0, 3.0, *[5.0] * 478)
    kept, (means,), size = thin(steps, [curve])
    assert (size, len(kept), len(means)) == (3, 161, 161)
    assert (kept[0], kept[-1]) == (1, 480)
    assert means[:2] == (2.0, 5.0)


@pytest.mark.parametrize("value", [5e-324, -5e-324, 1e-300])
def test_a_curve_of_almost_nothing_is_drawn_as_a_flat_one(value: float) -> None:
    """Between such a number and 0 there is no room for ticks."""
    for floor in (0.0, math.nan):
        chart = Chart(title="t", steps=(1, 2), lines=(Line("a", (0.0, value), 0),), floor=floor)
        assert "<path" in line_chart(chart) or "<polyline" in line_chart(chart)
