"""Secrets in configs: masked wherever a config is shown, and nothing else is."""

from pathlib import Path

import pytest
from config_files import CORRECT, problem, write

from configs.entries import NAMED_ENTRIES
from configs.experiment import config_hash
from configs.load import (
    dump_yaml,
    load_config,
)
from configs.redact import MASK, NAMED, redact, redact_value


def test_environment_variables_are_the_only_thing_a_config_may_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oc.env works for typed keys and in entries; other resolvers could run or read anything."""
    monkeypatch.setenv("LEARNING_RATE", "1e-5")
    monkeypatch.setenv("NESTED", "${name}")
    path = write(tmp_path, "a.yaml", CORRECT + "learner: {lr: '${oc.env:LEARNING_RATE}'}\n")
    config = load_config(
        path, ["scorers.correct.weight=${oc.env:NO_WEIGHT,0.5}", "learner.eps=${learner.lr}"]
    )
    assert (config.learner.lr, config.learner.eps, config.scorers["correct"]["weight"]) == (1e-5, 1e-5, 0.5)
    assert "${" not in dump_yaml(config)
    for text in ("${oc.decode:1}", "${oc.env:X,${oc.create:1}}", "${oc.dict.keys:learner}"):
        assert "must use no resolver but oc.env" in problem(path, f"name={text}")
    assert "must not build the name" in problem(path, "name=${${name}:x}")
    assert "Environment variable 'NO_SUCH' not found" in problem(path, "learner.lr=${oc.env:NO_SUCH}")
    assert "command line: learner.lr = '${learner.lr}': must resolve" in problem(
        path, "learner.lr=${learner.lr}"
    )
    assert "must not become an interpolation again" in problem(path, "runs_dir=${oc.env:NESTED}")


def test_secrets_are_masked_by_name_and_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's config.yaml is shared; max_tokens is no secret, and a renewed secret is no other run."""
    monkeypatch.setenv("JUDGE_API_KEY", "hunter2-hunter2")
    given = {
        "apiKey": "abc",
        "hf_token": 7,
        "max_tokens": 40,
        "urls": ["http://u:hunter2-hunter2@host", ("plain",)],
        "credentials": {"user": "me", "on": True, "none": None},
    }
    assert redact(given) == {
        "apiKey": "***",
        "hf_token": "***",
        "max_tokens": 40,
        "urls": ["http://***@host", ("plain",)],
        "credentials": {"user": "***", "on": True, "none": None},
    }
    own = ["allow=[mine]", 'scorers.own={kind: custom, function: "mine:f"}']
    config = load_config("debug", [*own, "scorers.own.options.address=x/${oc.env:JUDGE_API_KEY}"])
    assert config.scorers["own"]["options"]["address"] == "x/hunter2-hunter2"
    original_hash = config_hash(config)
    assert "hunter2" not in dump_yaml(config) and "address: x/***" in dump_yaml(config)
    monkeypatch.setenv("JUDGE_API_KEY", "correct-horse")
    renewed = load_config("debug", [*own, "scorers.own.options.address=x/${oc.env:JUDGE_API_KEY}"])
    assert config_hash(renewed) == original_hash and "correct-horse" not in dump_yaml(renewed)
    assert "sk-12345" not in problem("debug", "api_key=sk-12345", "learner.api_key={a: sk-12345}")
    assert "sk-12345" not in problem("debug", "api_key=[sk-12345")
    assert "correct-horse" not in problem("debug", "learner.lr=${oc.env:JUDGE_API_KEY}")


def test_names_that_a_user_chose_are_no_secrets() -> None:
    """A band called token and a scorer called api_key keep their numbers; below them the rules hold."""
    bands = "bands: {token: {metric: entropy/token_mean, low: %s}}, "
    bands += "actuators: {a: {setting: kl.coef, bands: [token], high: 1}}"
    low, high = (
        load_config("debug", ["controllers.b={kind: entropy_bands, " + bands % text + "}"])
        for text in ("0.5", "0.7")
    )
    assert config_hash(low) != config_hash(high) and MASK not in dump_yaml(low)
    weights = [
        load_config("debug", [f"scorers.api_key={{kind: lab_answer, weight: {text}}}"]) for text in "12"
    ]
    assert config_hash(weights[0]) != config_hash(weights[1])
    given = {"scorers": {"token": {"api_key": "abc", "weight": 1.0}}, "controllers": {"token": "abc"}}
    assert redact(given) == {
        "scorers": {"token": {"api_key": MASK, "weight": 1.0}},
        "controllers": {"token": MASK},
    }
    assert redact_value("scorers.token.weight", 2) == 2 and redact_value("scorers.token.api_key", "x") == MASK
    assert set(NAMED_ENTRIES) <= NAMED


def test_a_section_called_like_a_secret_is_none() -> None:
    """`token_advantage` is written out and hashed; what is called like a secret below it is masked."""
    weights = [
        load_config("debug", [f"token_advantage.p={{kind: repo, beta: {text}}}"]) for text in ("0.1", "0.2")
    ]
    assert config_hash(weights[0]) != config_hash(weights[1])
    assert "beta: 0.1" in dump_yaml(weights[0]) and MASK not in dump_yaml(weights[0])
    assert redact_value("token_advantage.p.beta", 2) == 2
    assert redact_value("token_advantage.p.api_key", "x") == MASK
    assert redact({"token_advantage": {"p": {"api_key": "abc"}}}) == {
        "token_advantage": {"p": {"api_key": MASK}}
    }


def test_credentials_inside_a_url_are_masked() -> None:
    """https://user:password@host must not reach config.yaml, whatever its key is called."""
    assert redact({"path": "https://me:pw@host/x", "plain": "https://host/a@b"}) == {
        "path": "https://***@host/x",
        "plain": "https://host/a@b",
    }


def test_the_keys_of_a_json_schema_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked, it would be another schema for whoever reads the saved config, and each would have one hash."""
    monkeypatch.setenv("JUDGE_API_KEY", "hunter2-hunter2")
    entry = "scorers.form={{kind: json_schema, schema: {{properties: {{api_key: {{type: {}}}}}, title: {}}}}}"
    text, number = (
        load_config("debug", [entry.format(kind, "hunter2-hunter2")]) for kind in ("string", "integer")
    )
    assert config_hash(text) != config_hash(number)
    assert "api_key:\n          type: string" in dump_yaml(text) and "hunter2" not in dump_yaml(text)
