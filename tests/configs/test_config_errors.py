"""Configs that cannot work: each problem is one line with its source, key, value and rule."""

import dataclasses
from pathlib import Path

import pytest
from config_files import CORRECT, problem, write
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from configs.experiment import config_hash
from configs.load import (
    ConfigError,
    dump_yaml,
    load_config,
    load_with_sources,
)
from configs.rules import check
from configs.schema import RunConfig
from configs.sources import NO_SOURCES


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
        ("scorers.x.weight=1", "scorers.x: has no kind: give scorers.x.kind, one of lab_answer,"),
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
        (["loss.refined={kind: nll}"], "loss.refined", "must have rows: refiner.kind is none"),
        (["learner.max_nonfinite_updates=0"], "learner.max_nonfinite_updates", "must be above 0"),
        (["kl.place=advantage"], "kl.place", "must be one of loss, reward"),
        (["scorers.correct.weight=0"], "scorers", "must have a scorer with an effect on the reward"),
        (["scorers.correct.combine=add"], "scorers.correct.combine", "must be one of sum, multiply, gate"),
        (["loss.policy.aggregate=mean"], "loss.policy.aggregate", "must be one of token_mean"),
        (["loss.policy.weight=0"], "loss.policy.weight", "must be above 0 while no other loss has a weight"),
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


def test_a_key_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "twice.yaml", "seed: 1\nseed: 2\n")
    assert problem(path) == f"{path}: must have each key once: found duplicate key seed (line 2, column 1)"


def test_a_mapping_too_long_to_show_is_left_out() -> None:
    """Its beginning says nothing; a long text is cut."""
    with pytest.raises(ConfigError, match="scorers: must have a scorer with an effect on the reward"):
        load_config("debug", ["scorers.correct.weight=0"])


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


@examples(250)
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
