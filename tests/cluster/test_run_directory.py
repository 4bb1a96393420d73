"""Who may work on a run directory: a new run, the same experiment again, and nobody else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from loop_fakes import token_prompts
from rollout_rows import make_demonstrations
from run_files import damage, save_checkpoint, save_step
from safetensors.numpy import save_file

from benchmarks.faults.common import read_events
from cluster import run_directory as module
from cluster.run_directory import (
    check_claimable,
    check_space,
    claim_run,
    count_parameters,
    demonstrations_digest,
    is_finished,
    reading,
    scorer_files_digest,
    source_digest,
    write_config,
)
from cluster.user_code import UserCode
from configs.bound import bind
from configs.experiment import config_hash
from configs.load import dump_yaml, load_config
from configs.schema import CheckpointConfig, EvalConfig, ModelConfig, RunConfig
from rollouts.lock import RunLock
from trainer.data.prompts import TokenPrompt

DIGEST = source_digest(token_prompts(3), Path("no-model"))


def config_in(folder: Path, **changes: object) -> RunConfig:
    """A run `run` below `folder`."""
    return replace(RunConfig(runs_dir=str(folder)), **changes)  # type: ignore[arg-type]


def claimed(config: RunConfig, digest: str = DIGEST, job: str = "train") -> Path:
    """Claim and let go again, as a driver that ends does."""
    claim = claim_run(config, digest, job)
    claim.lock.release()
    return claim.run_dir


def test_another_rubric_is_another_run(tmp_path: Path) -> None:
    """The content of the files that scorers name is part of a run; a run without such files has none."""
    rubric, config = tmp_path / "rubric.yaml", config_in(tmp_path)
    rubric.write_text("one")
    given = ["scorers.judge.rubric=" + str(rubric)]
    run = bind(load_config("judge", given))
    first = scorer_files_digest(run)
    claim_run(config, DIGEST, "train", scorer_files=first).lock.release()
    claim_run(config, DIGEST, "train", scorer_files=scorer_files_digest(run)).lock.release()
    rubric.write_text("two")
    with pytest.raises(ValueError, match=r"got other files that scorers, .*, such as rubrics: restore them"):
        claim_run(config, DIGEST, "train", scorer_files=scorer_files_digest(run))
    assert scorer_files_digest(bind(load_config("debug"))) == ""


@pytest.mark.parametrize(
    "override",
    [
        "token_advantage.plan={{kind: hicra, path: {path}}}",
        "scorers.same={{kind: partition, over: all, equivalence: judge, model: m, prompt_file: {path}}}",
        "scorers.refiner={{kind: partition, over: all, equivalence: cross_encoder, model: c, "
        "calibration: {path}}}",
    ],
)
def test_every_file_that_decides_rows_or_losses_is_part_of_the_run(tmp_path: Path, override: str) -> None:
    """Also under a name that another part of a config has: a scorer called refiner."""
    path = tmp_path / "file"
    models = ["models.m={path: lab/bases/voices}", "models.c={path: lab/bases/voices, task: classify}"]
    run = bind(load_config("debug", [*models, override.format(path=path)]))
    with pytest.raises(ValueError, match="must name files that can be read, got"):
        scorer_files_digest(run)
    digests = []
    for content in ("one", "two"):
        path.write_text(content)
        digests.append(scorer_files_digest(run))
    assert "" != digests[0] != digests[1]


def test_a_new_run_is_named_and_locked(tmp_path: Path) -> None:
    """Its folder holds who it is, the lock and the logs of attempt 1; the parents of it are made."""
    config = config_in(tmp_path / "some" / "runs")
    claim = claim_run(config, DIGEST, "train")
    assert claim.run_dir == tmp_path / "some" / "runs" / "run" and claim.attempt == 1
    assert claim.log_dir.is_dir() and claim.log_dir == claim.run_dir / "logs" / "attempt_1"
    assert (claim.run_dir / "journal").is_dir() and claim.experiment_hash == config_hash(config)
    record = json.loads((claim.run_dir / "run.json").read_text())
    assert record["experiment_hash"] == config_hash(config) and record["source_sha256"] == DIGEST
    assert record["experiment"]["learner.lr"] == 3e-4 and "num_steps" not in record["experiment"]
    write_config(claim.run_dir, config)
    assert (claim.run_dir / "config.yaml").read_text() == dump_yaml(config)
    claim.lock.release()


def test_the_same_experiment_resumes(tmp_path: Path) -> None:
    """More steps, other limits, another placement: attempt 2, under the name it had."""
    first = claimed(config_in(tmp_path))
    save_step(first, 1)
    other = config_in(tmp_path, num_steps=700, checkpoint=CheckpointConfig(every=1))
    other = replace(other, learner=replace(other.learner, num_ranks=4, zero_stage=3))
    claim = claim_run(other, DIGEST, "train")
    assert (claim.run_dir, claim.attempt) == (first, 2)
    claim.lock.release()


def test_another_evaluation_is_the_same_experiment(tmp_path: Path) -> None:
    """More often, with other prompts or samples: what is measured changes nothing of what is trained."""
    first = config_in(tmp_path, eval=EvalConfig(every=2))
    claimed(first)
    other = replace(
        first, eval=EvalConfig(every=1, num_prompts=3, num_samples=2, pass_at=(2,), temperature=0.7)
    )
    other = replace(other, data=replace(other.data, eval={"kind": "lab", "split": "train"}))
    claim = claim_run(other, DIGEST, "train")
    assert claim.attempt == 2 and claim.experiment_hash == config_hash(first) == config_hash(other)
    claim.lock.release()


def test_a_run_of_a_version_that_hashed_other_keys_resumes(tmp_path: Path) -> None:
    """Its keys are compared one by one; its checkpoints bear the hash that they were written with."""
    config = config_in(tmp_path)
    path = claimed(config) / "run.json"
    record = json.loads(path.read_text())
    record["experiment"] |= {"eval.every": 25, "data.eval.kind": "lab", "data.eval.split": "heldout"}
    del record["experiment"]["entropy.clamp"], record["defaults"]  # a key that is newer than the run
    path.write_text(json.dumps(record | {"experiment_hash": "0" * 64}))
    claim = claim_run(config, DIGEST, "train")
    assert claim.experiment_hash == "0" * 64
    claim.lock.release()
    moved = replace(config, entropy=replace(config.entropy, clamp=0.3))
    with pytest.raises(ValueError, match=r"entropy\.clamp: the run has 'none', this config has 0\.3"):
        claim_run(moved, DIGEST, "train")
    path.write_text(json.dumps(record | {"experiment_hash": "0" * 64, "defaults": 0}))
    with pytest.raises(ValueError, match="defaults: the run has those of version 0"):
        claim_run(config, DIGEST, "train")


def test_a_driver_that_died_while_it_claimed_hurts_nobody(tmp_path: Path) -> None:
    """There is a folder with a lock and no description yet: the next one writes it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").touch()
    assert (claimed(config_in(tmp_path)) / "run.json").exists()


def test_another_experiment_is_refused_with_every_difference(tmp_path: Path) -> None:
    """By key, with both values, and what to do about it; nothing in the folder changes."""
    run_dir = claimed(config_in(tmp_path))
    before = sorted(str(path) for path in run_dir.rglob("*"))
    other = config_in(tmp_path, seed=7)
    other = replace(other, learner=replace(other.learner, lr=1e-5))
    for refuse in (lambda: check_claimable(other), lambda: claim_run(other, DIGEST, "train")):
        with pytest.raises(ValueError) as error:
            refuse()
        assert str(error.value).splitlines() == [
            f"run directory {run_dir} is of another experiment, which cannot be resumed with this config:",
            "  learner.lr: the run has 0.0003, this config has 1e-05",
            "  seed: the run has 0, this config has 7",
            "set these keys to the run's own values to resume it, or choose another name (name=...)",
        ]
    assert sorted(str(path) for path in run_dir.rglob("*")) == before


def test_never_takes_new_names_only(tmp_path: Path) -> None:
    """resume = never: the first time it runs, the second time the name is taken."""
    config = config_in(tmp_path, resume="never")
    run_dir = claimed(config)
    for refuse in (lambda: check_claimable(config), lambda: claim_run(config, DIGEST, "train")):
        with pytest.raises(ValueError, match=rf"run directory {run_dir} must be new or empty"):
            refuse()
    assert not is_finished(config, "train")


def test_a_run_in_use_names_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes second is refused; when the first one lets go, the next gets it."""
    monkeypatch.setattr(module, "_LOCK_WAIT_S", 0.0)
    claim = claim_run(config_in(tmp_path), DIGEST, "train")
    with pytest.raises(ValueError, match=r"is in use by polyphony train \(pid \d+, host "):
        claim_run(config_in(tmp_path), DIGEST, "train")
    assert not (claim.run_dir / "logs" / "attempt_2").exists()
    claim.lock.release()
    claimed(config_in(tmp_path))


@pytest.mark.parametrize(
    ("digest", "job", "message"),
    [
        (
            "0" * 64,
            "train",
            r"run\.json: a run must be resumed with what it began with, got other prompts or answers of "
            r"data\.train, or other tokenizer or model files of model\.path: restore them",
        ),
        (DIGEST, "rollouts only", r"begun for another job \(train\), not for: rollouts only"),
    ],
)
def test_other_prompts_or_another_job_are_refused(
    tmp_path: Path, digest: str, job: str, message: str
) -> None:
    """The settings are the same, what they stand for is not; the lock is given back."""
    claimed(config_in(tmp_path))
    with pytest.raises(ValueError, match=message):
        claim_run(config_in(tmp_path), digest, job)
    claimed(config_in(tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"experiment": 3, "experiment_hash": "x"}'])
def test_a_damaged_description_is_refused(tmp_path: Path, content: str) -> None:
    """Which experiment it was is unknown, so nothing may resume it."""
    run_dir = claimed(config_in(tmp_path))
    (run_dir / "run.json").write_text(content)
    for refuse in (
        lambda: check_claimable(config_in(tmp_path)),
        lambda: claim_run(config_in(tmp_path), DIGEST, "train"),
        lambda: is_finished(config_in(tmp_path), "train"),
    ):
        with pytest.raises(ValueError, match=r"run\.json: must be a run's description, got a damaged file"):
            refuse()


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(tmp_path: Path) -> None:
    """It would start from scratch in silence, or not at all; while one is whole it may go on."""
    run_dir = claimed(config_in(tmp_path))
    damage(save_checkpoint(run_dir, 2) / "manifest.json")
    with pytest.raises(ValueError, match="must have an intact checkpoint, got 1 damaged"):
        claimed(config_in(tmp_path))
    save_checkpoint(run_dir, 1)
    claimed(config_in(tmp_path))


def test_steps_without_a_description_are_nobodys(tmp_path: Path) -> None:
    """A folder with committed steps or checkpoints that says nothing of its experiment is left alone."""
    for name, make in (("steps", save_step), ("checkpoints", save_checkpoint)):
        (tmp_path / name).mkdir()
        make(tmp_path / name, 1)
        with pytest.raises(ValueError, match=r"must have a run\.json"):
            claim_run(config_in(tmp_path, name=name), DIGEST, "train")


def test_the_digest_is_of_prompts_answers_and_model_files(tmp_path: Path) -> None:
    """One prompt more, another order, another answer or another weight are another source."""
    prompts = token_prompts(3)

    def with_(**changes: object) -> list[TokenPrompt]:
        return [replace(each, prompt=replace(each.prompt, **changes)) for each in prompts]  # type: ignore[arg-type]

    others = [with_(answer="4"), with_(ground_truth=4), with_(ground_truth="4"), with_(ground_truth=[4])]
    others += [with_(data_source="gsm8k"), with_(extra={"strict": False}), with_(extra={"strict": "false"})]
    found = {source_digest(each, tmp_path) for each in (prompts, prompts[::-1], prompts[:2], [], *others)}
    assert len(found) == 4 + len(others) and source_digest(token_prompts(3), tmp_path) == DIGEST
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = source_digest(prompts, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"heavier")
    assert len({DIGEST, first, source_digest(prompts, tmp_path)}) == 3


def test_changed_code_is_refused_unless_it_is_accepted(tmp_path: Path) -> None:
    """By module and file, before anything is touched; accepted, it is kept, reported and not asked again."""
    config = config_in(tmp_path)
    old = UserCode({"mine": "a" * 64, "helper": "b" * 64}, {"mine": "/x/mine.py", "helper": "/x/helper.py"})
    new = UserCode({"mine": "c" * 64, "helper": "b" * 64}, old.files)
    claim_run(config, DIGEST, "train", code=old).lock.release()
    for refuse in (
        lambda: check_claimable(config, new),
        lambda: claim_run(config, DIGEST, "train", code=new),
    ):
        with pytest.raises(
            ValueError, match=r"got other content of mine \(/x/mine\.py\): .*resume=changed_code"
        ):
            refuse()
    claim_run(config, DIGEST, "train", code=old).lock.release()
    accepted = replace(config, resume="changed_code")
    check_claimable(accepted, new)
    claim_run(accepted, DIGEST, "train", code=new).lock.release()
    (event,) = read_events(tmp_path / "run")
    assert (event["kind"], event["modules"]) == ("code_changed", "mine")
    claim_run(config, DIGEST, "train", code=new).lock.release()
    with pytest.raises(ValueError, match=r"helper \(no longer loaded\)"):
        check_claimable(config, UserCode({"mine": "c" * 64}, {}))


def test_a_run_from_before_code_was_hashed_resumes(tmp_path: Path) -> None:
    """It is not known what its code was."""
    path = claimed(config_in(tmp_path)) / "run.json"
    record = json.loads(path.read_text())
    del record["code_sha256"]
    path.write_text(json.dumps(record))
    claim_run(config_in(tmp_path), DIGEST, "train", code=UserCode({"mine": "a" * 64}, {})).lock.release()


def test_other_demonstrations_are_another_run(tmp_path: Path) -> None:
    """One row fewer is another digest, no rows are none; a run with them does not go on with others."""
    rows = make_demonstrations(1)
    found = {
        demonstrations_digest(each) for each in (rows, rows.slice(0, 1), rows.slice(1), rows.slice(0, 0))
    }
    assert len(found) == 4 and demonstrations_digest(rows.slice(0, 0)) == ""
    config = config_in(tmp_path)
    claim_run(config, DIGEST, "train", demonstrations_digest(rows)).lock.release()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["source_sha256"] == DIGEST  # what is compared between runs with and without
    with pytest.raises(ValueError, match=r"began with, got other demonstrations of sft\.data: restore them"):
        claim_run(config, DIGEST, "train", demonstrations_digest(rows.slice(1)))
    claim_run(config, DIGEST, "train", demonstrations_digest(rows)).lock.release()


def test_when_a_run_is_finished(tmp_path: Path) -> None:
    """When it has said so, and its export is there; not for more steps, or to do another job."""
    config = config_in(tmp_path, num_steps=2)
    assert not is_finished(config, "train")
    claim = claim_run(config, DIGEST, "train")
    save_checkpoint(claim.run_dir, 2)
    (claim.run_dir / "export").mkdir()
    assert not is_finished(config, "train")  # the export may be an older one
    claim.note_finished(2)
    claim.lock.release()
    assert is_finished(config, "train") and not is_finished(config, "rollouts only")
    assert not is_finished(replace(config, num_steps=3), "train")
    with pytest.raises(ValueError, match="of another experiment"):
        is_finished(replace(config, seed=1), "train")
    (claim.run_dir / "export").rmdir()
    assert not is_finished(config, "train")
    (claim.run_dir / "finished.json").write_text("{")
    assert not is_finished(replace(config, checkpoint=CheckpointConfig(export_last=False)), "train")


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    """runs_dir or the run itself is a file: nothing is started."""
    (tmp_path / "file").write_text("")
    for runs_dir, name in ((tmp_path / "file", "run"), (tmp_path, "file")):
        with pytest.raises(ValueError, match="must be a folder, got the file"):
            check_claimable(config_in(runs_dir, name=name))


def test_a_journal_without_a_description_is_nobodys(tmp_path: Path) -> None:
    """Its groups could be of any settings."""
    (tmp_path / "run" / "journal").mkdir(parents=True)
    (tmp_path / "run" / "journal" / "000000000000.arrow").touch()
    with pytest.raises(ValueError, match=r"must have a run\.json"):
        check_claimable(config_in(tmp_path))


def test_room_for_checkpoints_is_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three states of 12 bytes a parameter and an export of 4."""
    model = tmp_path / "model"
    model.mkdir()
    save_file({"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.float32)}, model / "model.safetensors")
    assert count_parameters(model) == 22
    asked: list[tuple[Path, int, str]] = []
    monkeypatch.setattr(module, "check_free_space", lambda *arguments: asked.append(arguments))
    check_space(config_in(tmp_path / "runs", model=ModelConfig(path=str(model))))
    assert asked == [
        (tmp_path / "runs", 22 * (12 * 3 + 4) + (64 << 20), "3 checkpoints and an export of 22 parameters")
    ]


@pytest.mark.parametrize(
    ("keep", "states"), [(2, "1 checkpoint "), (3, "2 checkpoints"), (1, "1 checkpoint ")]
)
def test_a_run_that_is_resumed_has_some_of_its_checkpoints(
    keep: int, states: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that had room for all of them has room for the rest; there is always one to write."""
    config = config_in(tmp_path, model=ModelConfig(path="model"), checkpoint=CheckpointConfig(keep=keep))
    run_dir = tmp_path / config.name
    run_dir.mkdir()
    for step in (1, 2):
        save_checkpoint(run_dir, step)
    asked: list[str] = []
    monkeypatch.setattr(module, "count_parameters", lambda folder: 22)
    monkeypatch.setattr(module, "check_free_space", lambda path, needed, purpose: asked.append(purpose))
    check_space(config)
    assert asked[0].startswith(states)


def test_a_run_at_work_is_not_read(tmp_path: Path) -> None:
    """--train-only of a run that a driver still works on; afterwards, and without a lock file, it may."""
    with reading(tmp_path):
        assert not list(tmp_path.iterdir())
    lock = RunLock(tmp_path / "lock", "polyphony train")
    lock.acquire()
    with pytest.raises(ValueError, match="in use by polyphony train"), reading(tmp_path):
        pass
    lock.release()
    with reading(tmp_path), reading(tmp_path), pytest.raises(ValueError, match="in use"):
        lock.acquire()
