"""Notes before a run starts: settings that may not be meant, long prompts, missing files."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.actors import note_inline
from cluster.job import load_prompts, local_model
from cluster.setting_notes import note_settings
from cluster.train import dry_run
from configs.bound import bind
from configs.kinds.partition import PartitionOptions
from configs.load import load_config
from configs.schema import RunConfig
from trainer.data.prompts import check_fields, load_dataset
from viewer.terminal import StepReporter

FILE = "data.train={kind: file, path: train.jsonl}"
STILL_LAB = (
    "data.eval is still {kind: lab}: evaluations use the lab's prompts; set data.eval, or eval.every=0"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with three prompts, the second of them long."""
    rows = [{"prompt": text, "answer": "7"} for text in ("3+4", "3+4 " * 100, "5+2")]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def notes_of(config: RunConfig) -> list[str]:
    notes: list[str] = []
    note_settings(bind(config), notes.append)
    return notes


def test_an_evaluation_on_other_data_is_noted() -> None:
    """Unless nothing is evaluated, or the training is the lab's too."""
    assert notes_of(load_config("debug", [FILE])) == [STILL_LAB]
    assert notes_of(load_config("debug", [FILE, "eval.every=0"])) == []
    assert notes_of(load_config("debug", [FILE, "data.eval={kind: file, path: eval.jsonl}"])) == []
    assert notes_of(load_config("debug", [])) == []


def test_a_verdict_that_the_reward_leaves_out_is_noted() -> None:
    """pass@k takes the first scorer that can say whether an answer is right."""
    (note,) = notes_of(
        load_config("debug", ["scorers.correct.weight=0", "scorers.r={kind: random, weight: 1}"])
    )
    assert note.startswith("scorers.correct (lab_answer) has weight 0, but pass@k of evaluations uses its")


def test_scorers_in_this_process_are_noted() -> None:
    """The user's own alone, by their keys."""
    notes: list[str] = []
    own = "scorers.mine={kind: custom, function: 'mine:f', weight: 1.0}"
    note_inline(bind(load_config("debug", [own, "allow=[mine]"])), notes.append)
    assert len(notes) == 1 and notes[0].startswith("cluster.spawn=local: scorers.mine in this process")
    note_inline(bind(load_config("debug", [])), pytest.fail)


def test_long_prompts_are_named(folder: Path) -> None:
    """With the key, the row and what to do; all of them too long is an error."""
    notes: list[str] = []
    run = local_model(bind(load_config("debug", [FILE, "eval.every=0"])))
    load_prompts(run, notes.append)
    limit = run.config.rollout.max_prompt_tokens
    assert notes == [
        f"data.train: 1 of 3 prompts is longer than rollout.max_prompt_tokens = {limit} and was left out "
        "(train.jsonl, line 2); raise it to keep it"
    ]
    short = load_config("debug", [FILE, "eval.every=0", "rollout.max_prompt_tokens=1"])
    with pytest.raises(ValueError, match=r"data\.train: all 3 prompts .* \(train\.jsonl, lines 1, 2, 3\)"):
        load_prompts(local_model(bind(short)), notes.append)


def test_a_missing_file_is_named_with_the_nearest(folder: Path) -> None:
    config = load_config("debug", ["data.train={kind: file, path: trian.jsonl}"])
    with pytest.raises(ValueError) as error:
        load_dataset(bind(config).single["data.train"])
    assert str(error.value) == (
        f"data.train.path = 'trian.jsonl': no such file in {folder} (did you mean train.jsonl?)"
    )


def test_a_missing_model_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the hub's own words where it cannot be reached."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError) as error:
        local_model(bind(load_config("debug", ["model.path=nomodel"])))
    wanted = f"model.path = 'nomodel': no such folder in {folder}, and the hub could not be reached"
    assert str(error.value) == wanted
    with pytest.raises(ValueError, match=r"model\.path = '\./no': no such folder in [^ ]*: give the folder"):
        local_model(bind(load_config("debug", ["model.path=./no"])))
    # What is clearly a path is refused at once: the hub is not asked.
    monkeypatch.setattr(
        "cluster.model_files.snapshot_download", lambda *_, **__: pytest.fail("asked the hub")
    )
    (folder / "mine").mkdir()
    for path, how in {
        "runs/lab-reward-model": "polyphony lab train-reward-model makes it",
        "mine/no": "give the folder of a model",
        "a/b/c": "give the folder of a model",
    }.items():
        with pytest.raises(ValueError, match=f"no such folder in [^ ]*: {how}"):
            local_model(bind(load_config("debug", [f"model.path={path}"])))
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"model\.path = 'empty': the folder has no config\.json"):
        local_model(bind(load_config("debug", ["model.path=empty"])))


def test_a_dry_run_repeats_its_notes_after_the_config(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where they are seen; a cluster that is named is not contacted."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    config = load_config("debug", [FILE, f"runs_dir={folder}/runs"])
    assert dry_run(config, StepReporter(1, sys.stdout)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [number for number, line in enumerate(lines) if line == STILL_LAB][1] > lines.index("seed: 0")
    assert "cluster: RAY_ADDRESS=10.0.0.1:6379, not contacted by --dry-run" in lines


def test_a_dry_run_says_who_shares_a_gpu(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The resources come last, after the config."""
    judge = "scorers.judge={kind: length, weight: 0.1, num_gpus: 0.25}"
    overrides = [FILE, "eval.every=0", "cluster.device=cuda", judge, f"runs_dir={folder}/runs"]
    assert dry_run(load_config("debug", overrides), StepReporter(1, sys.stdout)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "2 training prompts; on cuda the run asks for 1 CPU, 1 GPU; scorers.judge shares GPUs with engines "
        "or learner (1 replica, 0.25 of a GPU each)"
    )


def test_a_code_scorer_without_isolation_is_noted(folder: Path) -> None:
    config = load_config("debug", ["scorers={correct: {kind: code, weight: 1.0, isolation: none}}"])
    assert (
        "scorers.correct: isolation is none: programs of the policy run with your rights, files and network"
        in (notes_of(config))
    )
    isolated = load_config("debug", ["scorers={correct: {kind: code, weight: 1.0}}"])
    assert not [note for note in notes_of(isolated) if "isolation" in note]


def test_gold_injection_without_solutions_is_refused_before_the_start() -> None:
    """The lab's rows have a solution only if asked for; with one the same config passes."""
    gold = ["refiner={kind: gold_injection}", "data.train.limit=8"]
    bound = bind(load_config("critique_grpo", gold))
    with pytest.raises(
        ValueError, match=r"refiner\.field = 'solution': no row of data\.train has it, and each"
    ):
        check_fields(bound.refiner, load_dataset(bound.single["data.train"]))
    bound = bind(load_config("critique_grpo", [*gold, "data.train.solutions=code"]))
    prompts = load_dataset(bound.single["data.train"])
    check_fields(bound.refiner, prompts)
    with pytest.raises(ValueError, match=r"1 of 8 rows have no text"):
        check_fields(bound.refiner, [replace(prompts[0], extra={}), *prompts[1:]])


def test_a_partition_in_which_all_right_answers_are_equal_is_noted() -> None:
    """Equivalence by answer among correct completions; not with another equivalence or over all."""
    assert any("set over=all" in text for text in PartitionOptions(quality="correct").notes())
    for other in (PartitionOptions(over="all"), PartitionOptions(equivalence="ngram")):
        assert not any(other.notes())
