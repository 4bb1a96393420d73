"""Configs: presets, merging, entries with a kind, errors that name their source, secrets, any override."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import experiment
from configs.bound import bind, bind_entry
from configs.entries import NAMED_ENTRIES
from configs.experiment import config_hash
from configs.kinds.advantages import GrpoOptions
from configs.kinds.base import OwnOptions
from configs.kinds.datasets import FileOptions
from configs.kinds.losses import PpoClipOptions
from configs.kinds.scorers import SCORERS, CustomOptions, RandomOptions, ScorerCommon
from configs.load import (
    ConfigError,
    dump_yaml,
    load_config,
    load_with_sources,
    preset_names,
)
from configs.redact import MASK, NAMED, redact, redact_value
from configs.rules import check
from configs.schema import RunConfig
from configs.sources import NO_SOURCES

CORRECT = "scorers: {correct: {kind: lab_answer, weight: 1.0}}\n"


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def problem(path: str, *overrides: str) -> str:
    """The message of the ConfigError that loading must raise."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


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
    assert (entry.options, entry.kind.target) == (OwnOptions({"depth": 2}), "mine.judges:judge")
    assert entry.common.weight == 0.0
    assert "scorers.own.kind = 'mine.judges:judge': must be in a module under a prefix" in problem(
        "debug", own
    )
    function = 'scorers.own={kind: custom, function: "minefield:f"}'
    assert "scorers.own.function = 'minefield:f'" in problem("debug", function, "allow=[mine]")
    allowed = bind(load_config("debug", [function, "allow=[minefield]"]))
    assert allowed.scorers["own"].options == CustomOptions(function="minefield:f")


def test_an_unknown_key_names_the_nearest_key() -> None:
    """A typing error is answered with the key that was meant, in its section or elsewhere."""
    message = problem("debug", "learner.lrr=0.1", "warmup_steps=3", "lerner.lr=1", "eva.temperature=1")
    assert message.splitlines() == [
        "command line: learner.lrr = 0.1: unknown key (did you mean learner.lr?)",
        "command line: warmup_steps = 3: unknown key (did you mean learner.warmup_steps?)",
        "command line: lerner.lr = 1: unknown key (did you mean learner.lr?)",
        "command line: eva.temperature = 1: unknown key (did you mean eval.temperature?)",
    ]


def test_an_error_names_the_file_that_set_the_value(tmp_path: Path) -> None:
    """Of a base, a file and the command line, the one to edit is the last that set the key."""
    parent = write(tmp_path, "a.yaml", CORRECT + "learner: {lr: -1.0}\n")
    child = write(tmp_path, "b.yaml", "base: a.yaml\nrollout: {temperature: 0}\n")
    assert problem(child, "kl.coef=-2").splitlines() == [
        f"{child}: rollout.temperature = 0.0: must be above 0",
        f"{parent}: learner.lr = -1.0: must be above 0",
        "command line: kl.coef = -2.0: must not be negative",
    ]
    assert problem(child, "learner.lr=-3", "rollout.temperature=1") == (
        "command line: learner.lr = -3.0: must be above 0"
    )


def test_an_error_about_a_default_says_so(tmp_path: Path) -> None:
    """groups_per_step 16 is nobody's line; the file is where to put another."""
    path = write(tmp_path, "a.yaml", CORRECT + "learner: {updates_per_step: 3}\n")
    rule = "must be divisible by learner.updates_per_step (3)"
    assert problem(path) == f"{path} (class default): rollout.groups_per_step = 16: {rule}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.lr=fast", "learner.lr = 'fast': must be a number"),
        ("learner.lr=null", "learner.lr = null: must be a number"),
        ("num_steps=1.5", "num_steps = 1.5: must be a whole number"),
        ("num_steps=true", "num_steps = true: must be a whole number"),
        ("name=true", "name = true: must be text"),
        ("data.shuffle=2", "data.shuffle = 2: must be true or false"),
        ("learner.betas=[0.9]", "learner.betas = [0.9]: must be a list of 2 numbers"),
        ("eval.pass_at=[x]", "eval.pass_at = ['x']: must be a list of whole numbers"),
        ("learner=3", "learner = 3: must be a section (a mapping)"),
        ("scorers=[correct]", "scorers = ['correct']: must be a mapping"),
        ("advantage=null", "advantage = null: must be a mapping"),
        ("scorers.correct=math", "must have a mapping or null under correct"),
        ("scorers={a b: {kind: math}}", "must have names of letters, digits, - and _"),
        ("learner={lr.x: 1}", "learner.lr.x = 1: must be nested: a key in a file has no dots"),
        ("name=???", "name = '???': must be given"),
        ("learner.lr=.inf", "learner.lr = inf: must be finite"),
        ("learner.lr", "learner.lr = 'learner.lr': an override must read key.sub=value"),
        ("learner..lr=1", "an override must read key.sub=value"),
        ("eval.pass_at=[1", "eval.pass_at = '[1': must be a YAML value"),
        ("scorers.x.weight=1", "scorers.x.kind = null: must be one of lab_answer,"),
        ("scorers.correct.kind=lab_anser", "(did you mean lab_answer?)"),
        ("advantage.kind=gpro", "advantage.kind = 'gpro': must be one of grpo,"),
        (
            "loss.policy.clip=1",
            "unknown key; this kind takes kind, weight, aggregate, sum_constant, clip_low",
        ),
        ("data.train.limt=1", "(did you mean data.train.limit?)"),
    ],
)
def test_a_wrong_type_or_shape_is_one_readable_line(override: str, message: str) -> None:
    """File or command line, key, value, rule: nothing of the library underneath shows through."""
    text = problem("debug", override)
    assert text.startswith("command line: ") and message in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("overrides", "key", "rule"),
    [
        (["rollout.group_size=1"], "rollout.group_size", "must be at least 2: advantage grpo"),
        (["eval.pass_at=[9]"], "eval.pass_at", "must not be larger than eval.num_samples (8)"),
        (["eval.pass_at=[]"], "eval.pass_at", "must hold numbers above 0"),
        (["learner.zero_stage=4"], "learner.zero_stage", "must be 0, 1, 2 or 3"),
        (["learner.betas=[0.9,1]"], "learner.betas", "must be at least 0 and below 1"),
        (["learner.min_lr_ratio=1.5"], "learner.min_lr_ratio", "must be between 0 and 1"),
        (["learner.microbatch_tokens=103"], "learner.microbatch_tokens", "must hold one row"),
        (["rollout.top_p=0"], "rollout.top_p", "must be above 0 and at most 1"),
        (["cluster.schedule=overlap", "cluster.spawn=local"], "cluster.schedule", "must be take_turns"),
        (["replay.groups_per_step=2"], "replay.groups_per_step", "must have a loss to train with"),
        (["loss.replay={kind: ppo_clip}"], "loss.replay", "must have rows"),
        (["resume=always"], "resume", "must be one of auto, never"),
        (["cluster.max_restarts=-1"], "cluster.max_restarts", "must not be negative"),
        (["cluster.schedule=turns"], "cluster.schedule", "must be one of take_turns, overlap"),
        (["cluster.spawn=rya"], "cluster.spawn", "must be one of ray, local (did you mean ray?)"),
        (["cluster.spawn=local", "learner.num_ranks=2"], "learner.num_ranks", "must be 1 with cluster.spawn"),
        (
            ["cluster.spawn=local", "generator.tensor_parallel=2"],
            "generator.tensor_parallel",
            "must be 1 with",
        ),
        (["cluster.device=gpu"], "cluster.device", "must be one of auto, cpu, cuda"),
        (["model.dtype=fp16"], "model.dtype", "must be one of fp32, bf16"),
        (["kl.estimator=k4"], "kl.estimator", "must be one of k1, k2, k3"),
        (["kl.estimator=k1", "kl.coef=0.1"], "kl.estimator", "must not be k1 as a loss term"),
        (["kl.place=reward", "kl.coef=0.1"], "kl.estimator", "must be k1 in the reward"),
        (["rollout.top_p=0.9"], "rollout.top_p", "top_p below 1 is not supported yet"),
        (["loss.refined={kind: nll}"], "loss.refined", "a run has no rows of origin refined yet"),
        (["learner.max_nonfinite_updates=0"], "learner.max_nonfinite_updates", "must be above 0"),
        (["kl.place=advantage"], "kl.place", "must be one of loss, reward"),
        (["scorers.correct.weight=0"], "scorers", "must have a scorer with an effect on the reward"),
        (["scorers.correct.combine=add"], "scorers.correct.combine", "must be one of sum, multiply, gate"),
        (["loss.policy.aggregate=mean"], "loss.policy.aggregate", "must be one of token_mean"),
        (["loss.policy.weight=0"], "loss", "must have a loss with a weight above 0"),
        (["loss.policy.weight=-1"], "loss.policy.weight", "must not be negative"),
        (["loss.others={kind: nll}"], "loss.others", "must be an origin of samples"),
        (["data.train.split=test"], "data.train.split", "must be one of train, heldout, creative"),
        (["data.train.kind=file"], "data.train.path", "must not be empty"),
        (["scorers.r={kind: random, probability: 2}"], "scorers.r.probability", "must be between 0 and 1"),
        (["scorers.r={kind: math, limit_s: 0}"], "scorers.r.limit_s", "must be above 0"),
        (
            ["scorers.r={kind: length, target_tokens: 64}"],
            "scorers.r.target_tokens",
            "must be below max_tokens",
        ),
        (["name=../up"], "name", "must be a plain folder name"),
        (["name=a/b"], "name", "must be a plain folder name"),
        (["name=.."], "name", "must be a plain folder name"),
        (["name=''"], "name", "must be a plain folder name"),
        (["num_steps=0"], "num_steps", "must be above 0"),
        (["kl.coef=-0.1"], "kl.coef", "must not be negative"),
    ],
)
def test_a_broken_rule_names_the_key(overrides: list[str], key: str, rule: str) -> None:
    """One row per rule: each refuses its case, and under the key the user must change."""
    lines = problem("debug", *overrides).splitlines()
    assert any(f": {key} = " in line or f": {key}: " in line for line in lines if rule in line), lines


def test_a_multiplied_or_gated_reward_needs_no_weight() -> None:
    """The other side of the effect rule: combine alone gives a scorer an effect."""
    config = load_config("debug", ["scorers.correct.weight=0", "scorers.correct.combine=gate"])
    assert config.scorers["correct"]["combine"] == "gate"


def test_a_config_made_in_code_is_checked_too() -> None:
    """`check` needs neither a file nor filled entries; defaults alone have no scorer."""
    check(RunConfig(scorers={"c": {"kind": "constant", "weight": 1.0}}))
    with pytest.raises(ConfigError, match=r"^config: scorers = \{\}: must have a scorer"):
        check(RunConfig())


def test_files_that_cannot_be_a_config(tmp_path: Path) -> None:
    """Missing, not YAML, not a mapping, a Python object: one line with the file's name."""
    assert "(did you mean debug?)" in problem("debgu")
    assert "CONFIG = 'no/such.yaml': must be a config file" in problem("no/such.yaml")
    texts = ["a: [1", "- a\n- b\n", "name: !!python/name:os.system x\n", "a: \0"]
    for text in texts:
        path = write(tmp_path, "bad.yaml", text)
        message = problem(path)
        assert message.startswith(f"{path}: must be a YAML mapping: ") and len(message.splitlines()) == 1
    path = write(tmp_path, "object.yaml", "name: !!python/object/apply:pathlib.Path [x]\n")
    assert problem(path).endswith("must be plain YAML")


def test_bases_that_do_not_lead_anywhere(tmp_path: Path) -> None:
    """A missing base and a cycle, directly and through a second file."""
    lone = write(tmp_path, "lone.yaml", "base: gone.yaml\n")
    assert problem(lone).startswith(f"{lone}: base = 'gone.yaml': must be a file, relative to this one")
    near = write(tmp_path, "near.yaml", "base: debgu\n")
    assert problem(near).endswith("or the name of a preset (did you mean debug?)")
    own = write(tmp_path, "own.yaml", "base: own.yaml\n")
    assert "must not lead back to itself" in problem(own)
    first = write(tmp_path, "first.yaml", "base: second.yaml\n")
    second = write(tmp_path, "second.yaml", "base: ./first.yaml\n")
    assert problem(first).startswith(f"{second}: base = './first.yaml': must not lead back to itself")


def test_a_base_may_be_a_preset(tmp_path: Path) -> None:
    """By its name, as on the command line; a file of that name beside this one comes first."""
    path = write(tmp_path, "mine.yaml", "base: debug\nseed: 7\n")
    assert load_config(str(path)) == replace(load_config("debug"), seed=7)
    write(tmp_path, "debug", "scorers: {c: {kind: constant, weight: 1.0}}\nnum_steps: 3\n")
    assert load_config(str(path)).num_steps == 3


def test_a_key_that_is_given_twice_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, "twice.yaml", "seed: 1\nseed: 2\n")
    assert problem(path) == f"{path}: must have each key once: found duplicate key seed (line 2, column 1)"


def test_a_mapping_too_long_to_show_is_left_out() -> None:
    """Its beginning says nothing; a long text is cut."""
    with pytest.raises(ConfigError, match="scorers: must have a scorer with an effect on the reward"):
        load_config("debug", ["scorers.correct.weight=0"])


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


def test_a_key_at_its_default_is_not_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a version with a new key knows the runs of the one before; another value is another experiment."""
    plain, moved = load_config("debug", []), load_config("debug", ["entropy.coef=0.1"])
    hashes = config_hash(plain), config_hash(moved)
    known = experiment.settings

    def with_new_key(config: RunConfig) -> dict[str, object]:
        return {key: value for key, value in known(config).items() if key != "entropy.coef"}

    monkeypatch.setattr(experiment, "settings", with_new_key)  # a version that has no entropy.coef yet
    assert config_hash(plain) == hashes[0] == config_hash(moved) != hashes[1]


def test_an_entry_that_is_newer_is_not_hashed_at_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run from before there were rollouters goes on with the one it had; another is another experiment."""
    other = ["rollouter.kind=my.module:fn", "allow=[my]"]
    plain, moved = load_config("debug", []), load_config("debug", other)
    known, hashes = experiment.experiment(plain), (config_hash(plain), config_hash(moved))
    assert known.pop("rollouter.kind") == "single_turn" and experiment.differences(known, plain) == []
    assert ("rollouter.kind", "none", "my.module:fn") in experiment.differences(known, moved)
    settings = experiment.settings
    monkeypatch.setattr(
        experiment, "settings", lambda run: {k: v for k, v in settings(run).items() if k != "rollouter.kind"}
    )
    assert config_hash(plain) == hashes[0] != hashes[1]


def test_an_entry_that_is_taken_away_changes_the_hash() -> None:
    """A mapping's entries are hashed all: an empty one differs from the default."""
    both = load_config("debug", ["loss.sft={kind: nll}", "sft.share=0.1"])
    assert len({config_hash(load_config("debug", [])), config_hash(both)}) == 2
    assert config_hash(replace(both, loss={"sft": both.loss["sft"]})) != config_hash(both)


def test_the_hash_changes_with_the_experiment_only() -> None:
    """Longer, renamed or moved is the same experiment; so is a default written out."""
    plain = config_hash(load_config("debug", []))
    assert len(plain) == 64
    assert config_hash(load_config("debug", ["num_steps=7", "name=x", "runs_dir=y"])) == plain
    assert config_hash(load_config("debug", ["learner.lr=3e-4"])) == plain
    assert config_hash(load_config("debug", ["learner.lr=4e-4"])) != plain
    assert config_hash(load_config("debug", ["seed=1"])) != plain
    assert config_hash(load_config("debug", ["learner.num_ranks=2", "checkpoint.every=3"])) == plain
    assert config_hash(load_config("debug", ["eval.every=1", "data.eval.split=train"])) == plain


def test_results_that_are_compared_also_hash_how_they_were_evaluated() -> None:
    """Two evaluations of another size are not paired; a longer limit of one is no difference."""
    hashes = {
        config_hash(load_config("debug", changes), with_evaluation=True)
        for changes in ([], ["eval.timeout_s=7"], ["eval.num_samples=16"], ["data.eval.split=train"])
    }
    assert len(hashes) == 3


DEFAULTS = dataclasses.asdict(RunConfig())
KEYS = [
    *DEFAULTS,
    *(f"{section}.{key}" for section, value in DEFAULTS.items() if isinstance(value, dict) for key in value),
    *("scorers.correct", "scorers.correct.kind", "scorers.correct.weight", "scorers.own", "scorers.own.kind"),
    *("scorers.own.options", "loss.policy.weight", "data.train.limit", "base", "x", "a.b"),
]
VALUES = [
    *("1", "0", "-1", "1.5", "1e-4", "true", "null", "[]", "{}", "[1,2]", ".nan", "1e400", '""', "???"),
    *("9" * 400, "9" * 5000, "2020-01-01", "[[[[", "&a [*a]", "{1: 2}", "{a.b: 1}", "{a: [b]}"),
    *("random", "custom", "mine:f", "math", "cpu", "k2", "rloo", "{kind: math}", "{kind: random}"),
    *(
        "${name}",
        "${oc.env:HOME}",
        "${x:y}",
        "${",
        "${}",
        "${.}",
        "${learner}",
        "${scorers}",
        "[1, '${seed}']",
    ),
    *(
        "\\\\${x}",
        "!!binary aGk=",
        "!!set {a}",
        "!!python/name:os",
        "{kind: custom, options: {x: '${learner}'}}",
    ),
    *(
        "{kind: custom, options: {'a[': '${nope}'}}",
        "{kind: custom, function: f, options: {'b.c': '${nope}'}}",
    ),
]
OVERRIDES = st.tuples(
    st.sampled_from(KEYS) | st.text(max_size=8), st.sampled_from(VALUES) | st.text(max_size=12)
).map("=".join)


@settings(max_examples=250, deadline=None)
@given(st.lists(OVERRIDES | st.text(max_size=12), min_size=1, max_size=3))
def test_any_override_gives_a_config_or_a_config_error(overrides: list[str]) -> None:
    """Whatever is typed, the answer is a checked config that can be dumped and hashed, or readable lines."""
    try:
        config = load_config("debug", overrides)
    except ConfigError as error:
        assert str(error) and all(line.strip() for line in str(error).split("\n"))
        return
    check(config)
    assert isinstance(config, RunConfig) and "${" not in dump_yaml(config)
    assert config_hash(config) == config_hash(load_config("debug", overrides))


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


def test_a_message_is_given_the_files_of_its_keys(tmp_path: Path) -> None:
    """Line by line, where a line begins with a key of the config; other lines and prose are left alone."""
    (tmp_path / "mine.yaml").write_text("base: debug\nmodel: {path: none}\nscorers: {mine: {kind: length}}\n")
    _, sources = load_with_sources(str(tmp_path / "mine.yaml"), ["data.train.limit=3"])
    message = (
        "model.path = 'none': no such folder\ndata.train: all 3 prompts are too long\n"
        "scorers.mine (length): no answer\nmodel.json: no key\nruns_dir and name: a folder"
    )
    assert sources.name_in(message).splitlines() == [
        f"{tmp_path}/mine.yaml: model.path = 'none': no such folder",
        "command line: data.train: all 3 prompts are too long",
        f"{tmp_path}/mine.yaml: scorers.mine (length): no answer",
        "model.json: no key",
        "runs_dir and name: a folder",
    ]
    assert NO_SOURCES.name_in(message) == message
