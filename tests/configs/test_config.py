"""Configs: presets, merging, and entries with a kind."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
from config_files import CORRECT, problem, write

from configs.bound import bind, bind_entry
from configs.kinds.advantages import GrpoOptions
from configs.kinds.base import OwnModelOptions
from configs.kinds.datasets import FileOptions
from configs.kinds.losses import PpoClipOptions
from configs.kinds.scorers import SCORERS, CustomOptions, RandomOptions, ScorerCommon
from configs.load import (
    ConfigError,
    dump_yaml,
    load_config,
    preset_names,
)
from configs.schema import RunConfig


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_its_dump_loads_as_the_same_config(name: str, tmp_path: Path) -> None:
    """A run keeps the dump as its config.yaml: it must mean what the preset meant, by name and by path."""
    config = load_config(name, [])
    assert isinstance(config, RunConfig)
    assert load_config(f"configs/{name}.yaml", []) == config
    assert load_config(write(tmp_path, "again.yaml", dump_yaml(config)), []) == config


def test_the_presets_say_what_their_comments_promise() -> None:
    """The experiments differ from debug in one thing each."""
    debug, random, anchored = (load_config(name, []) for name in ("debug", "debug_random", "debug_kl"))
    assert (debug.name, debug.num_steps, debug.eval.every) == ("debug", 100, 25)
    assert {name: entry["weight"] for name, entry in random.scorers.items()} == {
        "correct": 0.0,
        "format": 0.0,
        "reward": 1.0,
    }
    assert dataclasses.replace(anchored, name="debug", kl=debug.kl) == debug
    assert (debug.kl.coef, anchored.kl.coef) == (0.0, 0.3)


def test_overrides_beat_the_file_which_beats_its_base_which_beats_the_defaults(tmp_path: Path) -> None:
    """One key set at every level; 1e-6 without a dot is a float, which plain YAML 1.1 reads as text."""
    write(tmp_path, "a.yaml", CORRECT + "learner: {lr: 1e-6, eps: 1e-6, warmup_steps: 3}\n")
    child = write(tmp_path, "b.yaml", "base: a.yaml\nlearner: {lr: 2e-6, warmup_steps: 4}\n")
    learner = load_config(child, ["learner.lr=3e-6"]).learner
    assert (learner.lr, learner.warmup_steps, learner.eps, learner.zero_stage) == (3e-6, 4, 1e-6, 1)


def test_tuples_come_out_as_tuples_and_lists_replace_lists() -> None:
    """Fields typed as tuples hold tuples, so that a config compares equal however it was made."""
    config = load_config("debug", ["eval.pass_at=[2]", "learner.betas=[0.8, 0.9]", "allow=[mine]"])
    assert (config.eval.pass_at, config.learner.betas, config.allow) == ((2,), (0.8, 0.9), ("mine",))


def test_another_kind_replaces_the_options_and_keeps_weight_and_combine(tmp_path: Path) -> None:
    """Options of the parent's kind are alien to the new one; the place in the reward is not."""
    write(tmp_path, "a.yaml", "scorers: {r: {kind: random, weight: 2.0, probability: 0.1, seed: 4}}\n")
    child = write(tmp_path, "b.yaml", "base: a.yaml\nscorers: {r: {kind: constant}}\n")
    entry = load_config(child, []).scorers["r"]
    kept = {"kind": "constant", "weight": 2.0, "combine": "sum", "value": 1.0}
    assert {name: entry[name] for name in kept} == kept and "probability" not in entry and "seed" not in entry
    same_kind = load_config(child, ["scorers.r.kind=random", "scorers.r.seed=9"]).scorers["r"]
    assert (same_kind["seed"], same_kind["probability"]) == (9, 0.5)
    file_data = load_config("debug", ["data.train={kind: file, path: x.jsonl}"]).data.train
    assert file_data == {"kind": "file", "path": "x.jsonl", "domain": "", "limit": 0}


def test_null_removes_a_scorer_and_a_loss() -> None:
    """`scorers.name=null` is the way to leave one out of a parent's set."""
    config = load_config("debug", ["scorers.format=null", "loss.policy={kind: nll}"])
    assert list(config.scorers) == ["correct"]
    assert config.loss["policy"]["kind"] == "nll"


def test_an_entry_is_bound_to_typed_options() -> None:
    """What actors are called with; missing options take the class defaults."""
    entry = bind_entry({"kind": "random", "weight": 0.5, "probability": "0.25"}, "scorers.coin")
    assert entry.common == ScorerCommon(kind="random", weight=0.5) and entry.kind_name == "random"
    assert (entry.options, entry.kind) == (RandomOptions(probability=0.25), SCORERS["random"])
    loss = bind_entry({"kind": "ppo_clip", "clip_high": 0.3}, "loss.policy")
    assert loss.options == PpoClipOptions(clip_high=0.3)
    assert bind_entry({"kind": "grpo"}, "advantage").options == GrpoOptions()
    assert bind_entry({"kind": "file", "path": "a"}, "data.train").options == FileOptions(path="a")
    with pytest.raises(ConfigError, match=r"did you mean scorers\.coin\.probability"):
        bind_entry({"kind": "random", "probabilty": 0.5}, "scorers.coin")


def test_own_code_needs_an_allowed_prefix() -> None:
    """A config is text from anywhere: it names only code the user listed; `mine` allows no `minefield`."""
    own = 'scorers.own={kind: "mine.judges:judge", options: {depth: 2}}'
    config = load_config("debug", ["allow=[mine]", own])
    entry = bind(config).scorers["own"]
    assert (entry.options, entry.kind.target) == (OwnModelOptions({"depth": 2}), "mine.judges:judge")
    assert entry.common.weight == 0.0
    assert "scorers.own.kind = 'mine.judges:judge': must be in a module under a prefix" in problem(
        "debug", own
    )
    function = 'scorers.own={kind: custom, function: "minefield:f"}'
    assert "scorers.own.function = 'minefield:f'" in problem("debug", function, "allow=[mine]")
    allowed = bind(load_config("debug", [function, "allow=[minefield]"]))
    assert allowed.scorers["own"].options == CustomOptions(function="minefield:f")


def test_a_base_may_be_a_preset(tmp_path: Path) -> None:
    """By its name, as on the command line; a file of that name beside this one comes first."""
    path = write(tmp_path, "mine.yaml", "base: debug\nseed: 7\n")
    assert load_config(str(path)) == replace(load_config("debug"), seed=7)
    write(tmp_path, "debug", "scorers: {c: {kind: constant, weight: 1.0}}\nnum_steps: 3\n")
    assert load_config(str(path)).num_steps == 3
