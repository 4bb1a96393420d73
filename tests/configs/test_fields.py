"""What fields say of themselves: every one does, no rule goes by an option's bare name, all of it pickles."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Mapping
from typing import Any, cast

import pytest
from omegaconf import OmegaConf

from cluster.actor_pool import BUILT_IN, built_in
from configs.bound import MOVABLE, BoundEntry, bind
from configs.entries import NAMED_ENTRIES, SINGLE_ENTRIES, Role
from configs.fields import EXPERIMENT, options_of, settings_of
from configs.kinds.base import ControllerOptions, Kind, Options, load_target
from configs.load import ConfigError, load_config
from configs.schema import RunConfig

ROLES: Mapping[str, Role] = NAMED_ENTRIES | SINGLE_ENTRIES
KINDS = [(section, name) for section, role in ROLES.items() for name in role.table]


def leaves(tree: Mapping[str, object], prefix: str = "") -> set[str]:
    """The dotted keys of a config that are no sections."""
    found: set[str] = set()
    for name, value in tree.items():
        is_entry = f"{prefix}{name}" in ROLES
        inner = isinstance(value, dict) and not is_entry
        found |= leaves(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}"}  # type: ignore[arg-type]
    return found


def test_every_field_says_what_another_value_means() -> None:
    """A field without it is refused, so none can be forgotten; OmegaConf takes the classes all the same."""
    assert {key for key, _ in settings_of(RunConfig)} == leaves(dataclasses.asdict(RunConfig()))
    assert OmegaConf.structured(RunConfig).learner.lr == RunConfig().learner.lr

    @dataclasses.dataclass
    class Silent:
        lr: float = 1.0

    with pytest.raises(ValueError, match="lr: must be declared with `setting`"):
        list(settings_of(Silent))


def test_what_another_value_means() -> None:
    """The lists that the fields stand for."""
    assert set(BUILT_IN) == {key for key in leaves(dataclasses.asdict(RunConfig())) if _is_built_in(key)}
    same = {key for key, setting in settings_of(RunConfig) if EXPERIMENT not in setting.effect}
    sections = {"checkpoint", "cluster", "generator", "sync", "eval"}
    assert {key for key in same if key.split(".")[0] not in sections} == {
        *("name", "runs_dir", "num_steps", "resume", "data.eval"),
        *("learner.num_ranks", "learner.zero_stage", "learner.microbatch_tokens"),
        *("learner.logit_chunk_tokens", "learner.offload_anchor", "learner.max_nonfinite_updates"),
        *("rollout.group_timeout_s", "rollout.score_timeout_s"),
    }
    assert sections <= {key.split(".")[0] for key in same}
    assert (
        *("entropy.coef", "kl.coef", "kl_base.coef"),
        *("rollout.temperature", "sft.share", "tempered.temperature"),
    ) == MOVABLE
    two = load_config("debug", ["generator.num_engines=2", "learner.lr=1e-5"])
    assert built_in(load_config("debug"), two) == ["generator.num_engines"]


def _is_built_in(key: str) -> bool:
    learner = ("num_ranks", "zero_stage", "logit_chunk_tokens", "offload_anchor", "betas", "eps")
    return key.split(".")[0] in ("model", "generator", "cluster") or key in {
        *("sync.num_probes", "rollout.max_prompt_tokens", "rollout.max_tokens"),
        *(f"learner.{name}" for name in (*learner, "weight_decay", "max_grad_norm")),
    }


@pytest.mark.parametrize(("section", "name"), KINDS)
def test_a_kind_is_complete(section: str, name: str) -> None:
    """Its options are `Options` whose defaults are right by their own rules, and its code is there."""
    kind = ROLES[section].table[name]
    options = kind.options()
    assert isinstance(options, Options)
    assert (section, name) == ("refiner", "none") or callable(load_target(kind.target))
    for text in (kind.prepare, kind.start, kind.warm_up):
        assert not text or callable(load_target(text))
    for option, told in options_of(kind.options).items():
        must_be_given = getattr(options, option) in ("", ())
        if told is not None and told.rule is not None and not must_be_given:
            assert told.rule.holds(getattr(options, option)), option
    if kind.isolated:
        assert hasattr(options, "limit_s") and hasattr(options, "num_processes")
    common: Any = ROLES[section].common
    bound = BoundEntry(key=section, common=common(kind=name), options=options, kind=kind)
    assert pickle.loads(pickle.dumps(bound)) == bound


class Odd(Options):
    """Options of which nothing is refused."""


class OddController(ControllerOptions):
    """The same of a controller that moves nothing."""

    def moves(self) -> Mapping[str, tuple[float, float]]:
        return {}


def _named_alike(base: type, skip: type) -> type[Options]:
    """Options with the name of every option there is, and a value that the rules of those would refuse."""
    names = {
        name for role in ROLES.values() for kind in role.table.values() for name in options_of(kind.options)
    }
    taken = options_of(skip).keys()
    odd = [(name, float, -1.0) for name in sorted(names - taken)]
    return cast(type[Options], dataclasses.make_dataclass("OddOptions", odd, bases=(base,)))


@pytest.mark.parametrize("section", [section for section, role in ROLES.items() if role.only is None])
def test_no_rule_goes_by_the_bare_name_of_an_option(section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new kind may call an option `k`, `path` or `ratio_to` without inheriting what holds of another's."""
    role = ROLES[section]
    base = OddController if section == "controllers" else Odd
    kind = Kind(_named_alike(base, role.common), "nowhere:nothing", supervised=section == "loss")
    monkeypatch.setitem(cast(dict[str, Kind], role.table), "odd", kind)
    key = f"{section}.x" if section in NAMED_ENTRIES and section != "loss" else section
    key = "loss.sft" if section == "loss" else key
    rows = ["sft.share=0.5", "loss.sft={kind: nll}"] if section in ("loss", "sft.data") else []
    rows += ["loss.refined={kind: nll}"] if section == "refiner" else []
    config = load_config("debug", [*rows, f"{key}={{kind: odd}}"])
    assert bind(config).config == config


def test_a_broken_rule_is_found_in_every_entry() -> None:
    """The rule of a field holds wherever its entry stands, in the message's usual form."""
    with pytest.raises(ConfigError) as caught:
        load_config("debug", ["scorers.l={kind: length, max_tokens: 0}", "loss.policy.clip_low=-0.5"])
    lines = str(caught.value).splitlines()
    assert "command line: scorers.l.max_tokens = 0: must be above 0" in lines
    assert "command line: loss.policy.clip_low = -0.5: must be above 0" in lines


def test_moving_numbers_makes_another_run_and_leaves_this_one() -> None:
    """What controllers move is replaced in typed options; a name of nothing is refused."""
    run = bind(load_config("debug", ["bonus.b={kind: ucb}"]))
    moved = run.with_settings({"bonus.b.coef": 0.5, "loss.policy.clip_high": 0.3, "kl.coef": 0.1})
    assert (moved.named["bonus"]["b"].options.coef, run.named["bonus"]["b"].options.coef) == (0.5, 0.1)
    assert moved.losses["policy"].options.clip_high == 0.3 and moved.config.kl.coef == 0.1
    assert run.config.kl.coef == 0.0 and pickle.loads(pickle.dumps(moved)) == moved
    for key in ("bonus.c.coef", "bonus.b.coeff", "learner.lr", "nothing"):
        with pytest.raises(ValueError, match=f"{key}: must"):
            run.with_settings({key: 1.0})
