"""The comparison: what is kept and skipped, what fails, and its pages."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from compare_results import prompt, result
from html_page import HOSTILE, Page

import lab.compare
from cluster.series import Listener
from configs.experiment import config_hash
from configs.schema import RunConfig
from lab.arms import Arm, load_arms
from lab.compare import Request, compare
from lab.compare_page import Comparison, markdown, page
from lab.results import RunResult, prompt_results, read_result, result_path, write_result
from polyphony.cli import main
from viewer.svg import Chart, Line, line_chart
from viewer.terminal import StepReporter

ROOT = Path(__file__).resolve().parents[2]
BOTH = {"code": 2, "prose": 2}


def _request(folder: Path, *overrides: str) -> Request:
    (folder / "anchor.yaml").write_text("kl: {coef: 0.3}\n")
    return Request(
        config="debug",
        files=[str(folder / "anchor.yaml")],
        num_seeds=2,
        folder=folder / "out",
        overrides=["num_steps=2", *overrides],
    )


def _replace_runs(
    monkeypatch: pytest.MonkeyPatch, failing: Sequence[str] = (), after: Callable[[str], None] | None = None
) -> list[str]:
    """Runs that finish at once, but for those that fail; the list of names grows as they are asked for."""
    ran: list[str] = []

    def train_all(configs: Sequence[RunConfig], listener: Listener, reporter: object, sources: object) -> int:
        for index, config in enumerate(configs):
            listener.begins(index)
            ran.append(config.name)
            if config.name in failing:
                listener.failed(index, "the disk is full <b>")
            else:
                listener.finished(index, Path(config.runs_dir) / config.name)
            if after is not None:
                after(config.name)
        return 0

    def gather(
        run_dir: Path, arm: str, config: RunConfig, wall_s: float, metrics: Sequence[str]
    ) -> RunResult:
        made = result(arm, config.seed, [prompt("a", 1 + config.seed, BOTH)])
        return replace(made, config_hash=config_hash(config, with_evaluation=True))

    monkeypatch.setattr(lab.compare, "train_all", train_all)
    monkeypatch.setattr(lab.compare, "gather", gather)
    return ran


def test_what_has_finished_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds first; after an interruption only what is missing; at the end nothing. The pages grow."""
    pages: list[int] = []

    def interrupt(name: str) -> None:
        pages.append((tmp_path / "out" / "compare.md").read_text().count("reward | "))
        if name == "control-seed1":
            raise KeyboardInterrupt

    ran = _replace_runs(monkeypatch, after=interrupt)
    with pytest.raises(KeyboardInterrupt):
        compare(_request(tmp_path), io.StringIO())
    assert ran == ["control-seed0", "anchor-seed0", "control-seed1"] and pages == [1, 2, 2]
    assert "Still missing: anchor seed 1." in (tmp_path / "out" / "compare.md").read_text()
    ran = _replace_runs(monkeypatch)
    stream = io.StringIO()
    assert compare(_request(tmp_path), stream) == 0
    assert ran == ["anchor-seed1"] and "3 of 4 runs have finished before" in stream.getvalue()
    assert "run 1 of 1, arm 2 of 2: anchor, seed 1" in stream.getvalue()
    ran = _replace_runs(monkeypatch)
    assert compare(_request(tmp_path), io.StringIO()) == 0 and ran == []
    assert sorted(path.name for path in (tmp_path / "out" / "results").iterdir()) == [
        "anchor_seed0.json",
        "anchor_seed1.json",
        "control_seed0.json",
        "control_seed1.json",
    ]


def test_a_failure_is_reported_and_stops_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, the reason in both pages, the other runs finished; the next call does it again."""
    ran = _replace_runs(monkeypatch, failing=["anchor-seed0"])
    assert compare(_request(tmp_path), io.StringIO()) == 1
    assert len(ran) == 4 and len(list((tmp_path / "out" / "results").iterdir())) == 3
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "Failed: anchor seed 0: the disk is full &lt;b>" in text and "3 of 4 runs have finished" in text
    assert "the disk is full <b>" in Page((tmp_path / "out" / "compare.html").read_text()).text
    ran = _replace_runs(monkeypatch)
    assert compare(_request(tmp_path), io.StringIO()) == 0 and ran == ["anchor-seed0"]


def test_data_that_changed_meanwhile_spoil_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of other data is a failure: its result is not kept, so the folder can still be completed."""
    _replace_runs(monkeypatch, failing=["anchor-seed1"])
    assert compare(_request(tmp_path), io.StringIO()) == 1
    monkeypatch.setattr(
        lab.compare, "train_all", lambda configs, listener, *rest: listener.finished(0, tmp_path)
    )
    made = lab.compare.gather
    monkeypatch.setattr(lab.compare, "gather", lambda *given: replace(made(*given), source_sha256="else"))
    with pytest.raises(ValueError, match="changed between the runs"):
        compare(_request(tmp_path), io.StringIO())
    assert len(list((tmp_path / "out" / "results").iterdir())) == 3
    _replace_runs(monkeypatch)
    assert compare(_request(tmp_path), io.StringIO()) == 0


def test_a_result_of_other_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything starts, with what to do. More steps are other results, too; a damaged one is none."""
    _replace_runs(monkeypatch)
    assert compare(_request(tmp_path), io.StringIO()) == 0
    ran = _replace_runs(monkeypatch)
    with pytest.raises(
        ValueError,
        match=r"control_seed0.json: must be a result of these settings, .* choose another --out",
    ):
        compare(_request(tmp_path, "learner.lr=0.1"), io.StringIO())
    with pytest.raises(ValueError, match="got 2 steps, not 3"):
        compare(_request(tmp_path, "num_steps=3"), io.StringIO())
    result_path(tmp_path / "out", "anchor", 1).write_text("{")
    with pytest.raises(ValueError, match=r"anchor_seed1.json: .*damaged.*delete it"):
        compare(_request(tmp_path), io.StringIO())
    assert ran == []


def test_secrets_do_not_reach_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An override is shown with its key and, where that is called like a secret, without its value."""
    _replace_runs(monkeypatch)
    hidden = "scorers.mine={kind: 'mine:score', api_key: sesame-42}"
    request = _request(tmp_path, "allow=[mine]", hidden, "scorers.mine.password=sesame-43")
    assert "sesame-43" not in " ".join(request.command())
    assert "scorers.mine.password=***" in request.command() and "num_steps=2" in request.command()


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    """Without the value at a step: NaN in memory, null on disk."""
    one = result("arm", 3, [prompt("a", 1, BOTH, {"guess": 4}), prompt("b", 0, {}, answer_entropy=None)])
    one = replace(one, curves={**one.curves, "KL to base": (float("nan"), 0.5)})
    path = result_path(tmp_path, "arm", 3)
    write_result(path, one)
    found = read_result(path)
    assert found.curves["KL to base"][1] == 0.5 and found.curves["KL to base"][0] != 0
    assert replace(found, curves=one.curves) == one
    assert json.loads(path.read_text())["curves"]["KL to base"] == [None, 0.5]


def test_an_evaluation_prompt_by_prompt() -> None:
    """Two prompts of two samples, out of order. The judge's word goes before the reward, a null reward counts
    as wrong and is not added; answers 7, 8 have entropy log 2; beside tags, none is "untagged"."""

    def row(index: int, reward: float | None, ok: bool | None, answer: str | None, tag: str | None) -> dict:  # type: ignore[type-arg]
        tags = [("strategy", "work")] if answer == "7" else []
        return {
            "submission_index": index,
            "prompt_id": f"p{index}",
            "reward": reward,
            "answer": answer,
            "answer_ok": ok,
            "format_tag": tag,
            "tags": tags,
        }

    rows = [row(1, 1.0, None, None, None), row(0, 0.0, True, "7", "code")]
    rows += [row(1, None, None, None, None), row(0, 1.5, False, "8", None)]
    schema = pa.schema(
        [
            ("submission_index", pa.int64()),
            ("prompt_id", pa.string()),
            ("reward", pa.float64()),
            ("answer", pa.string()),
            ("answer_ok", pa.bool_()),
            ("format_tag", pa.string()),
            ("tags", pa.map_(pa.string(), pa.string())),
        ]
    )
    first, second = prompt_results(pa.Table.from_pylist(rows, schema=schema))
    assert (first.prompt_id, first.num_correct, first.num_rewarded, first.reward_sum) == ("p0", 1, 2, 1.5)
    assert first.formats == {"code": 1, "untagged": 1} and first.strategies == {"untagged": 1, "work": 1}
    assert first.answer_entropy == pytest.approx(0.693147)
    assert (second.num_correct, second.num_rewarded, second.reward_sum) == (1, 1, 1.0)
    assert second.formats == {} and second.answer_entropy is None


def _comparison(results: Sequence[RunResult], arms: Sequence[Arm]) -> Comparison:
    return Comparison(
        command=["polyphony", "compare", HOSTILE],
        arms=arms,
        num_seeds=2,
        pass_at=[1, 4],
        results=results,
        failures={("anchor", 1): HOSTILE},
    )


def test_the_page_is_well_formed_and_runs_nothing(tmp_path: Path) -> None:
    """Hostile names of formats, prompts and reasons are text. A table row per metric and arm, five curves
    with a band, both colour schemes; also with nothing finished yet."""
    request = _request(tmp_path)
    arms = load_arms(request.config, request.files, request.overrides, 2, request.folder)
    arms = (arms[0], replace(arms[1], changes={HOSTILE: (1, HOSTILE)}))
    results = [
        result(arm, seed, [prompt(HOSTILE, 1, {HOSTILE: 3, "code": 1})], entropy=0.1 + seed / 10)
        for arm, seed in (("control", 0), ("anchor", 0), ("control", 1))
    ]
    comparison = _comparison(results, arms)
    text = page(comparison, comparison.rows())
    found = Page(text)
    assert not found.names() & {"script", "img", "link", "iframe"}
    assert "http" not in text.replace("http-equiv", "").replace("http://evil", "")
    assert "prefers-color-scheme: dark" in text and text.count("<svg") == 5
    assert text.count('class="spread fill0"') == 5, "control has two seeds, so its band is drawn in each"
    rows = [tag for tag, _ in found.tags].count("tr")
    assert rows == 1 + 1 + 1 + 2 * 8, "two headings, a setting, and the eight metrics that an arm has, of two"
    assert "strategy entropy" not in text and "format entropy" in text
    assert "With so few seeds the bootstrap interval is too narrow" in found.text
    written = markdown(comparison, comparison.rows())
    prose = [line for line in written.splitlines() if not line.startswith("    ")]
    assert "<script" not in "\n".join(prose) and "| anchor | " in written
    assert len(prose) == len(written.splitlines()) - 1, "the command, as code, takes one line"
    empty = _comparison([], arms)
    assert "0 of 4 runs have finished" in Page(page(empty, empty.rows())).text
    assert "Still missing: control seed 0" in markdown(empty, empty.rows())


def test_bad_input_is_one_message(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """From the command line: exit code 2, no folder."""
    (tmp_path / "arm.yaml").write_text("klx: {coef: 1}\n")
    words = ["compare", "debug", "--arms", str(tmp_path / "arm.yaml"), "num_steps=3", "--seeds", "2"]
    assert main([*words, "--out", str(tmp_path / "out"), "learner.lr=1e-4"]) == 2
    printed = capfd.readouterr()
    (line,) = printed.err.strip().splitlines()
    assert printed.out == "" and "arm.yaml: klx.coef = 1: unknown key" in line
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_is_missing_and_writes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each arm's changes, and of two arms and two seeds the runs that have no result; nothing in --out."""
    (tmp_path / "arm.yaml").write_text("kl: {coef: 0.3}\n")
    words = ["compare", "debug", "--arms", str(tmp_path / "arm.yaml"), "--seeds", "2", "--dry-run"]
    assert main([*words, "--out", str(tmp_path / "out"), "num_steps=3"]) == 0
    printed = capfd.readouterr().out
    assert "arm: kl.coef: 0.3 (control: 0.0)" in printed
    assert "2 arms, seeds 0 to 1: 4 of 4 runs to make, of 3 steps each" in printed
    assert not (tmp_path / "out").exists()
    (tmp_path / "arm.yaml").write_text("model: {path: nowhere}\n")
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "model" in capfd.readouterr().err


def test_a_band_has_a_path_per_stretch_that_it_knows() -> None:
    """Between 0.2 and 0.4 at steps 1, 2 and 4, 5: two areas; the axis reaches what the band does."""
    nan = float("nan")
    line = Line(
        "a", (0.3, 0.3, 0.3, 0.3, 0.3), 2, low=(0.2, 0.2, nan, 0.2, 0.2), high=(0.4, 0.4, 0.4, 0.4, 9.0)
    )
    drawn = line_chart(Chart(title="t", steps=(1, 2, 3, 4, 5), lines=(line,), floor=0.0))
    assert drawn.count('class="spread fill2"') == 2 and ">10<" in drawn
    assert "spread" not in line_chart(Chart(title="t", steps=(1, 2), lines=(Line("a", (0.1, 0.2), 0),)))


def test_a_step_line_says_whose_it_is() -> None:
    """Arm and seed in front of every line, however many lines a note has."""
    stream = io.StringIO()
    reporter = StepReporter(2, stream, "arm seed 1: ")
    reporter.note("one\ntwo")
    reporter.step({"reward/mean": 0.5})
    assert [line[:17] for line in stream.getvalue().splitlines()] == [
        "arm seed 1: one",
        "arm seed 1: two",
        "arm seed 1: step ",
    ]
