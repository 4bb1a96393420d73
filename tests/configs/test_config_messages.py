"""What a wrong override is answered with: one line with the source, the remedy, and what was meant."""

from __future__ import annotations

import pytest
from config_files import problem

from configs.load import dump_yaml, load_config, load_with_sources


def test_one_override_drops_the_critiques_of_a_preset() -> None:
    """The loss of the refined rows goes with the refiner that made them, and a note says so."""
    config, sources = load_with_sources("critique_grpo", ["refiner={kind: none}"])
    assert list(config.loss) == ["policy"] and config.refiner == {"kind": "none"}
    (note,) = sources.left_out
    assert note.startswith(
        "loss.refined of configs/critique_grpo.yaml is left out: refiner.kind none (command"
    )
    same = load_config("critique_grpo", ["refiner={kind: none}", "loss.refined=null"])
    assert dump_yaml(same) == dump_yaml(config)
    config, sources = load_with_sources("critique_grpo", ["refiner={kind: resample_hot}"])
    assert list(config.loss) == ["policy", "refined"] and sources.left_out == ()
    assert load_with_sources("critique_grpo", ["loss.refined.gamma=0.2"])[1].left_out == ()


def test_sdpo_without_its_refiner_needs_the_policy_loss_again() -> None:
    """Its policy loss has weight 0: nothing would be learned, so that a second override is asked for."""
    text = problem("sdpo", "refiner.kind=none")
    assert len(text.splitlines()) == 1 and "set loss.policy.weight=1" in text
    assert "loss.distilled of configs/sdpo.yaml is left out" in text
    config = load_config("sdpo", ["refiner.kind=none", "loss.policy.weight=1"])
    assert list(config.loss) == ["policy"] and config.loss["policy"]["weight"] == 1.0
    # Another refiner makes other rows: the loss of the old ones goes, and one for the new ones is asked for.
    text = problem("sdpo", "refiner={kind: critique_grpo}")
    assert "must have a loss to train with: loss.refined={kind: shaped}" in text


def test_a_loss_without_rows_that_was_asked_for_is_still_refused() -> None:
    """Only what a base has and a later source leaves without rows is taken out."""
    for overrides in (["loss.refined={kind: shaped}"], ["refiner.kind=none", "loss.refined={kind: shaped}"]):
        text = problem("debug", *overrides)
        assert "must have rows: refiner.kind is none (loss.refined=null removes an inherited loss)" in text
    text = problem("critique_grpo", "refiner.kind=none", "loss.refined.gamma=0.2")
    assert "loss.refined" in text and "must have rows" in text


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "scorers.corect.weight=1",
            "command line: scorers.corect: has no kind (did you mean scorers.correct?)",
        ),
        (
            "scorers.zzz.weight=1",
            "command line: scorers.zzz: has no kind: give scorers.zzz.kind, one of lab_ans",
        ),
        ("refiner=none", "command line: refiner = 'none': must be a mapping, such as {kind: none}"),
        ("refiner=zzz", "command line: refiner = 'zzz': must be a mapping"),
        ("scorers.m=math", "must have a mapping or null under m, such as {kind: math}"),
        (
            'scorers.correct={kind: judge, endpoint: "http://127.0.0.1:1/v1"}',
            "command line (default of its kind): scorers.correct.served_model = '': must be the model's name",
        ),
        (
            "scorers.r={kind: reward_model}",
            "command line (default of its kind): scorers.r.model = '': must name a model under models",
        ),
        (
            "scorers.r={kind: reward_model, model: rm}",
            "(there: none), such as models={rm: {path: ..., task: cl",
        ),
        (
            "scorers.p={kind: partition}",
            ".p.quality = '': must name the scorer",
        ),
        (
            "scorers.j={kind: judge, model: j, api_key: sk-1}",
            "api_key = '***': must be the name of an environ",
        ),
        ("name=null", 'command line: name = null: must be text: an empty one is ""'),
        ("learner.lr=", "command line: learner.lr = '': must be a number"),
    ],
)
def test_each_fault_is_said_once_with_its_remedy(override: str, line: str) -> None:
    """One line for one fault, with the source that chose the kind where the value is a default."""
    lines = [each for each in problem("debug", override).splitlines() if "models (there" not in each]
    lines = lines or problem("debug", override).splitlines()
    assert len(lines) == 1 and line in lines[0], lines


def test_a_critic_without_its_model_is_one_fault() -> None:
    text = problem("critique_grpo", "refiner.critic=model")
    assert len(text.splitlines()) == 1 and "models={critic: {path: ..., task: generate}}" in text


def test_an_empty_override_is_an_empty_text() -> None:
    """As config.md says of a judge's cache; null still takes an entry out."""
    assert load_config("judge", ["scorers.judge.cache="]).scorers["judge"]["cache"] == ""
    alone = ["scorers.judge=null", "scorers.correct.weight=1", "scorers.correct.watch_steps=0"]
    assert "judge" not in load_config("judge", alone).scorers


def test_a_variable_of_a_judge_is_shown_and_a_key_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved config loads again, and a key that was put there by mistake is in no message."""
    given = ["scorers.judge.api_key=JUDGE_API_KEY", "scorers.judge.secrets=[JUDGE_API_KEY]"]
    assert "api_key: JUDGE_API_KEY" in dump_yaml(load_config("judge", given))
    monkeypatch.delenv("JBSWY3DPEHPK3PXP", raising=False)
    assert "JBSWY3DPEHPK3PXP':" not in problem("judge", "scorers.judge.api_key=JBSWY3DPEHPK3PXP")
    monkeypatch.setenv("OTHER_TOKEN", "API_KEY_123456")
    assert "api_key = '***'" in problem("judge", "scorers.judge.api_key=API_KEY_123456")
