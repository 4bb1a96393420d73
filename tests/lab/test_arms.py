"""The arms of a comparison: merged in order, refused in words, all before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.errors import ConfigError
from lab.arms import Arm, load_arms


def _arms(folder: Path, text: str, *overrides: str, name: str = "arm", seeds: int = 2) -> tuple[Arm, ...]:
    file = folder / f"{name}.yaml"
    file.write_text(text)
    return load_arms("debug", [str(file)], overrides, seeds, folder / "out")


def test_an_arm_lies_between_the_config_and_the_overrides(tmp_path: Path) -> None:
    """Control is the config; the arm sets kl.coef and lr, of which the override takes lr for all arms."""
    control, arm = _arms(tmp_path, "kl: {coef: 0.3}\nlearner: {lr: 0.5}\n", "learner.lr=0.25")
    assert (control.name, arm.name) == ("control", "arm")
    assert [each.learner.lr for each in (*control.configs, *arm.configs)] == [0.25] * 4
    assert [each.kl.coef for each in (*control.configs, *arm.configs)] == [0.0, 0.0, 0.3, 0.3]
    assert arm.changes == {"kl.coef": (0.0, 0.3)} and control.changes == {}
    assert [(each.name, each.seed) for each in arm.configs] == [("arm-seed0", 0), ("arm-seed1", 1)]
    assert {each.runs_dir for each in arm.configs} == {str(tmp_path / "out" / "runs")}
    assert control.configs[0].eval.every == 25, "debug.yaml says so"


def test_few_checkpoints_and_two_evaluations_unless_the_config_says_else(tmp_path: Path) -> None:
    """lab.yaml says nothing of either: no export, evaluations before the first and after the last step."""
    (tmp_path / "arm.yaml").write_text("kl: {coef: 0.3}\n")
    control, arm = load_arms("lab", [str(tmp_path / "arm.yaml")], [], 1, tmp_path / "out")
    for config in (*control.configs, *arm.configs):
        assert not config.checkpoint.export_last and (config.checkpoint.every, config.checkpoint.keep) == (
            25,
            1,
        )
        assert config.eval.every > config.num_steps
    control, _ = load_arms("lab", [str(tmp_path / "arm.yaml")], ["checkpoint.every=2"], 1, tmp_path / "out")
    assert control.configs[0].checkpoint.every == 2
    with pytest.raises(ValueError, match="nothing to compare"):
        load_arms("lab", [str(tmp_path / "arm.yaml")], ["eval.every=0"], 1, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("klx: {coef: 1}", "klx.coef = 1: unknown key (did you mean kl.coef?)"),
        (
            "eval: {num_prompts: 7}",
            "eval.num_prompts = 7: must not differ: all arms are evaluated in the same way",
        ),
        (
            "data: {train: {kind: lab, split: heldout}}",
            "must not differ: all arms are trained and evaluated on",
        ),
        (
            "rollout: {max_tokens: 12}",
            "rollout.max_tokens = 12: must not differ: the evaluation samples under",
        ),
        ("num_steps: 7", "num_steps = 7: must not differ"),
        ("{seed: 7, kl: {coef: 0.3}}", "seed = 7: must not differ: the seeds of a comparison"),
        ("{resume: never, kl: {coef: 0.3}}", "resume = 'never': must not differ"),
        ("seed: 7", "seed"),
        ("model: {dtype: bf16}", "all arms start from the same model"),
        ("{}", "must change something"),
        ("- 1", "must be a YAML mapping"),
    ],
)
def test_an_arm_that_cannot_be_compared_is_refused(text: str, said: str, tmp_path: Path) -> None:
    """One message with file, key, value and reason. (A seed is taken over by the comparison's own.)"""
    with pytest.raises(ValueError) as refused:
        _arms(tmp_path, text)
    if text != "seed: 7":
        assert said in str(refused.value) and "arm.yaml" in str(refused.value)


def test_an_arm_hidden_by_an_override_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="applies to all arms, and hides"):
        _arms(tmp_path, "kl: {coef: 0.3}", "kl.coef=0.1")


@pytest.mark.parametrize("override", ["seed=3", "name=x", "runs_dir=x", "resume=never"])
def test_the_command_line_cannot_say_what_the_comparison_does(override: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"command line: .*: must not differ"):
        _arms(tmp_path, "kl: {coef: 0.3}", override)


def test_names_and_numbers_of_arms(tmp_path: Path) -> None:
    """Plain names, each once, none of them control's; at least one seed and one file."""
    with pytest.raises(ValueError, match=r"different names, and none control\.yaml"):
        _arms(tmp_path, "kl: {coef: 0.3}", name="control")
    with pytest.raises(ConfigError, match="letters, digits"):
        _arms(tmp_path, "kl: {coef: 0.3}", name="a b")
    with pytest.raises(ConfigError, match=r"--arms = .*must be a YAML file"):
        load_arms("debug", [str(tmp_path / "nowhere.yaml")], [], 1, tmp_path)
    with pytest.raises(ValueError, match="--seeds must be 1 or more, got 0"):
        _arms(tmp_path, "kl: {coef: 0.3}", seeds=0)
    with pytest.raises(ValueError, match="at least one file"):
        load_arms("debug", [], [], 1, tmp_path)
    (tmp_path / "other").mkdir()
    for folder in (tmp_path, tmp_path / "other"):
        (folder / "twice.yaml").write_text("kl: {coef: 0.3}\n")
    files = [str(tmp_path / "twice.yaml"), str(tmp_path / "other" / "twice.yaml")]
    with pytest.raises(ValueError, match=r"got \['twice'\]"):
        load_arms("debug", files, [], 1, tmp_path)


def test_an_arm_may_have_a_base(tmp_path: Path) -> None:
    """As any preset: the fragment's parent comes first."""
    (tmp_path / "parent.yaml").write_text("kl: {coef: 0.3}\nlearner: {lr: 0.5}\n")
    _, arm = _arms(tmp_path, "base: parent.yaml\nlearner: {lr: 0.125}\n")
    assert arm.changes == {"kl.coef": (0.0, 0.3), "learner.lr": (0.0003, 0.125)}


def test_the_changes_that_are_told_leave_out_what_another_kind_has_by_default(tmp_path: Path) -> None:
    """What the file says, and a kind that goes; not the new kind's defaults or the old kind's options."""
    text = "advantage: {kind: rloo}\nscorers: {again: {kind: length, weight: 0.5}}\nkl: {coef: 0.3}\n"
    arm = _arms(tmp_path, text)[1]
    assert len(arm.changes) > 5 and arm.changes["scorers.again.replicas"] == (None, 1)
    assert arm.told_changes() == {
        "advantage.kind": ("grpo", "rloo"),
        "kl.coef": (0.0, 0.3),
        "scorers.again.kind": (None, "length"),
        "scorers.again.weight": (None, 0.5),
    }


@pytest.mark.parametrize(
    ("text", "is_rescored"),
    [
        ("kl: {coef: 0.3}", False),
        ("scorers: {correct: {weight: 0.5}}", True),
        ("scorers: {correct: {replicas: 2}}", False),
        ("scorers: {short: {kind: length, weight: 1.0}}", True),
        ("models: {judge: {path: other}}", True),
        ("models: {judge: {replicas: 2}}", False),
        ("models: {critic: {path: other}}", False),
    ],
)
def test_an_arm_with_other_scores_has_another_reward(text: str, is_rescored: bool, tmp_path: Path) -> None:
    """Also if only the model behind a scorer changes; not for a model that no scorer uses, or for speed."""
    (tmp_path / "control.yml").write_text(
        "base: debug\n"
        "models: {judge: {path: here, task: generate}, critic: {path: here, task: generate}}\n"
        "scorers: {judge: {kind: judge, model: judge, weight: 0.5, rubric: correctness}}\n"
    )
    (tmp_path / "arm.yaml").write_text(text)
    control, arm = load_arms(
        str(tmp_path / "control.yml"), [str(tmp_path / "arm.yaml")], [], 1, tmp_path / "out"
    )
    assert (control.is_rescored, arm.is_rescored) == (False, is_rescored)
