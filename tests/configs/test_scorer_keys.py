"""Keys that every scorer takes: where it runs is no other experiment, and names of secrets are no secrets."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from configs.experiment import config_hash, differences, experiment
from configs.kinds.scorers import ScorerCommon
from configs.load import ConfigError, dump_yaml, load_config
from configs.redact import MASK, redact, redact_value

PLACED = (
    *("scorers.correct.replicas=3", "scorers.correct.concurrency=8", "scorers.correct.num_cpus=1"),
    *("scorers.correct.num_gpus=0.25", "scorers.correct.secrets=[JUDGE_API_KEY]"),
)
VALUE = "a-value-of-an-ordinary-name"


def test_where_a_scorer_runs_is_no_other_experiment() -> None:
    """Replicas, concurrency, shares and secrets leave the hash alone; a weight does not."""
    plain, placed = load_config("debug"), load_config("debug", PLACED)
    assert config_hash(placed) == config_hash(plain) and experiment(placed) == experiment(plain)
    assert not any(key.endswith((".replicas", ".secrets", ".num_gpus")) for key in experiment(plain))
    heavier = load_config("debug", ["scorers.correct.weight=2"])
    assert [key for key, _, _ in differences(experiment(plain), heavier)] == ["scorers.correct.weight"]
    # a scorer called like one of those keys is an entry as any other
    named = load_config("debug", ["scorers.replicas={kind: constant, value: 2.0}"])
    assert "scorers.replicas.value" in experiment(named)


def test_the_key_for_all_scorers_says_what_to_write_instead(tmp_path: Path) -> None:
    """In a file and on the command line."""
    wanted = r"cluster\.scorer_replicas = 2: was renamed to scorers\.<name>\.replicas"
    with pytest.raises(ConfigError, match=wanted):
        load_config("debug", ["cluster.scorer_replicas=2"])
    path = tmp_path / "old.yaml"
    path.write_text("cluster:\n  scorer_replicas: 2\n")
    with pytest.raises(ConfigError, match=rf"old\.yaml: {wanted}"):
        load_config(str(path))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("replicas=0", "replicas = 0: must be above 0"),
        ("concurrency=-1", "concurrency = -1: must be above 0"),
        ("num_gpus=-0.5", "num_gpus = -0.5: must not be negative"),
        ("num_gpus=1.5", "num_gpus = 1.5: must be a share of one GPU or a whole number of them"),
        ("num_cpus=-1", "num_cpus = -1.0: must not be negative"),
        ("secrets=JUDGE_API_KEY", "must be a list of texts"),
        ("secrets=[sk-live-123456]", "must be names of environment variables"),
    ],
)
def test_bad_values_are_refused_by_key(override: str, message: str) -> None:
    """One line each; what may be a secret is not shown."""
    with pytest.raises(ConfigError) as refused:
        load_config("debug", [f"scorers.correct.{override}"])
    assert message in str(refused.value) and "sk-live" not in str(refused.value)


def test_names_of_secrets_are_shown_and_values_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names load again; a declared variable's value is masked whatever its name, and so is a slip."""
    monkeypatch.setenv("JUDGE_ENDPOINT", VALUE)
    config = load_config(
        "debug",
        [
            "scorers.mine={kind: 'mine:f', secrets: [JUDGE_ENDPOINT], options: {url: 'http://h/${oc.env:JUDGE_ENDPOINT}'}}",
            "allow=[mine]",
        ],
    )
    text = dump_yaml(config)
    assert VALUE not in text and f"url: http://h/{MASK}" in text
    assert "- JUDGE_ENDPOINT" in text
    given = {"scorers": {"a": {"secrets": ["A_KEY", "sk-live-1"]}}, "custom": {"secrets": ["A_KEY"]}}
    assert redact(given) == {"scorers": {"a": {"secrets": ["A_KEY", MASK]}}, "custom": {"secrets": [MASK]}}
    assert redact_value("scorers.a.secrets", ["A_KEY", "sk-live-1"]) == ["A_KEY", MASK]
    assert redact_value("scorers.a.options.secrets", ["A_KEY"]) == [MASK]


def test_the_page_has_every_key_with_its_default() -> None:
    """docs/scorers.md, as a user reads it."""
    page = (Path(__file__).resolve().parents[2] / "docs/scorers.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]+?)`? \|", page, re.MULTILINE))
    defaults = {item.name: item.default for item in fields(ScorerCommon) if item.name != "kind"}
    shown = {
        name: "[]" if value == () else f"{value:g}" if isinstance(value, int | float) else value
        for name, value in defaults.items()
    }
    assert rows == shown


def test_where_samples_are_scored_is_no_other_experiment() -> None:
    """The number of sandbox processes changes no score; a limit may, as a sample past it has none."""
    given = 'scorers.mine={kind: custom, function: "mine:f"%s}'
    first, more, longer = (
        config_hash(load_config("debug", [given % other, "allow=[mine]"]))
        for other in ("", ", num_processes: 4", ", limit_s: 20")
    )
    assert first == more != longer
