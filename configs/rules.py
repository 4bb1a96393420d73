"""Values that a type cannot rule out: names, ranges, and settings that cannot work together.

In: a built `RunConfig` and where its values come from. Out: nothing, or one `ConfigError` with every broken
rule. Called by `configs.load.load_config`; call `check` yourself for a config made in code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields

from configs.credit_rules import credit_rules
from configs.entries import (
    complete,
    controller_options,
    entry_keys,
    is_anchored,
    moved_settings,
    needs_reference,
    scorer_options,
)
from configs.errors import Broken, Problem, nearest, raise_if_any
from configs.kinds.losses import LOSSES, LossCommon
from configs.kinds.scorers import CustomOptions
from configs.origins import ORIGINS, POLICY, origins_where
from configs.sampling_rules import SAMPLING_RULES
from configs.schema import RunConfig
from configs.scorer_rules import scorer_rules
from configs.sources import Provenance
from configs.token_advantage_rules import broken_shapes

CHOICES: dict[str, tuple[str, ...]] = {
    "model.dtype": ("fp32", "bf16"),
    "kl.estimator": ("k1", "k2", "k3"),
    "kl.place": ("loss", "reward"),
    "rollout.zero_variance_groups": ("keep", "drop", "refill"),
    "kl_base.estimator": ("k1", "k2", "k3"),
    "kl_base.place": ("loss", "reward"),
    "cluster.spawn": ("ray", "local"),
    "cluster.schedule": ("take_turns", "overlap"),
    "cluster.device": ("auto", "cpu", "cuda"),
    "resume": ("auto", "never", "changed_code"),
}
ENTRY_CHOICES: dict[str, tuple[str, ...]] = {
    "combine": ("sum", "multiply", "gate"),
    "aggregate": ("token_mean", "sequence_mean", "sequence_sum"),
    "split": ("train", "heldout", "creative"),
    "ratio_to": ("proximal", "behavior"),
    "level": ("token", "sequence"),
    "mask": ("mined", "random"),
    "baseline": ("group", "none"),
}
"""The same for options of entries, by the option's name."""


POSITIVE = [
    "eval.timeout_s",
    "learner.max_nonfinite_updates",
    "num_steps",
    "rollout.group_size",
    "rollout.groups_per_step",
    "rollout.temperature",
    "rollout.max_tokens",
    "rollout.max_prompt_tokens",
    "rollout.max_rounds",
    "rollout.group_timeout_s",
    "rollout.score_timeout_s",
    "generator.num_engines",
    "generator.tensor_parallel",
    "generator.max_num_seqs",
    "generator.kv_cache_bytes",
    "learner.num_ranks",
    "learner.lr",
    "learner.eps",
    "learner.max_grad_norm",
    "learner.updates_per_step",
    "learner.microbatch_tokens",
    "learner.logit_chunk_tokens",
    "eval.num_prompts",
    "eval.num_samples",
    "eval.temperature",
    "sync.num_probes",
    "cluster.ready_timeout_s",
    "cluster.call_timeout_s",
    "cluster.hang_timeout_s",
    "checkpoint.keep",
    "replay.max_age",
    "tempered.temperature",
]
NOT_NEGATIVE = [
    "seed",
    "rollout.max_lag",
    "learner.warmup_steps",
    "learner.weight_decay",
    "kl.coef",
    "kl_base.coef",
    "reference.reset_every",
    "reference.plateau_steps",
    "eval.every",
    "sync.tolerance",
    "cluster.max_restarts",
    "cluster.restart_backoff_s",
    "checkpoint.every",
    "replay.groups_per_step",
    "tempered.groups_per_step",
]
SHARE_ABOVE_ZERO = ["rollout.top_p", "generator.gpu_memory_utilization"]
SHARE = ["learner.min_lr_ratio", "sft.share"]
SHARE_BELOW_ONE = ["entropy.clamp"]
NOT_EMPTY = ["runs_dir", "model.path"]

ENTRY_POSITIVE = frozenset(
    {
        "limit_s",
        "num_processes",
        "max_chars",
        "num_rows",
        "max_tokens",
        "target_tokens",
        "clip_low",
        "clip_high",
        "cache_tokens",
        "k",
        "prior_successes",
        "prior_failures",
        "grammars",
        "function",
        "path",
    }
)
"""Options of entries, by name: numbers above 0, or texts and lists that are not empty."""
ENTRY_NOT_NEGATIVE = frozenset(
    {"limit", "sum_constant", "eps", "zeta", "beta_low", "beta_high", "coef", "penalty", "positive"}
)
ENTRY_SHARE = frozenset({"probability", "error_rate", "quantile"})
MOVABLE = (
    "entropy.coef",
    "kl.coef",
    "kl_base.coef",
    "sft.share",
    "rollout.temperature",
    "tempered.temperature",
)
"""Sections' keys that a controller may move."""
_BOUNDS = ("low", "high", "value", "otherwise")
MOVABLE_ENTRIES = ("loss", "token_advantage", "reward_shape", "bonus", "prompt_weight")
"""Sections of entries whose numbers (floats, no counts) a controller may move."""
RATIO_KINDS = frozenset({"gspo", "cispo", "gppo", "ce_gppo"})
"""Losses that differ from ppo_clip only where ratios are not 1."""


def check(config: RunConfig, provenance: Provenance | None = None) -> None:
    """Check every rule.

    Raises:
        ConfigError: one line per broken rule; with `provenance` each names the source of the value.
    """
    where = provenance or Provenance()
    config = complete(config, where)
    tree = asdict(config)
    values = dict(_flatten(tree, ""))
    broken = [*_ranges(values), *_entry_ranges(tree), *_not_supported_yet(config)]
    of_losses = (_anchors, _reward, _ratios, _covariance, broken_shapes, credit_rules, scorer_rules)
    for rules in (_names, *SAMPLING_RULES, _learning, *of_losses, _places, _replay, _sft, _controllers):
        broken += rules(config)
    broken += _own_code(config, tree)
    choices = [*_choices(values, tree)]
    problems = [_problem(key, rule, values, where) for key, rule in broken]
    problems += [_problem(key, rule, values, where, suggestion) for key, rule, suggestion in choices]
    raise_if_any(problems)


def _problem(
    key: str, rule: str, values: Mapping[str, object], where: Provenance, suggestion: str = ""
) -> Problem:
    return Problem(source=where.of(key), key=key, value=values[key], rule=rule, suggestion=suggestion)


def _at(tree: Mapping[str, object], key: str) -> dict[str, object]:
    node: object = tree
    for part in key.split("."):
        assert isinstance(node, Mapping), f"{key} leads through a value"
        node = node[part]
    return node if isinstance(node, dict) else {}


def _flatten(value: object, key: str) -> Iterator[tuple[str, object]]:
    """(dotted key, value) of everything at and under `value`, sections included."""
    if key:
        yield key, value
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flatten(item, f"{key}.{name}" if key else str(name))


def _number(value: object) -> float:
    assert isinstance(value, int | float), f"a ranged key holds a number, got {value!r}"
    return value


def _ranges(values: Mapping[str, object]) -> Iterator[Broken]:
    tests: list[tuple[list[str], Callable[[float], bool], str]] = [
        (POSITIVE, lambda value: value > 0, "must be above 0"),
        (NOT_NEGATIVE, lambda value: value >= 0, "must not be negative"),
        (SHARE_ABOVE_ZERO, lambda value: 0 < value <= 1, "must be above 0 and at most 1"),
        (SHARE, lambda value: 0 <= value <= 1, "must be between 0 and 1"),
        (SHARE_BELOW_ONE, lambda value: 0 <= value < 1, "must be at least 0 and below 1"),
    ]
    for keys, holds, rule in tests:
        yield from ((key, rule) for key in keys if not holds(_number(values[key])))
    for key, value in values.items():
        items = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(item, float) and not math.isfinite(item) for item in items):
            yield key, "must be finite"
    yield from ((key, "must not be empty") for key in NOT_EMPTY if not values[key])


def _entry_ranges(tree: Mapping[str, object]) -> Iterator[Broken]:
    for entry_key in entry_keys(tree):
        for name, value in _at(tree, entry_key).items():
            key = f"{entry_key}.{name}"
            if name in ENTRY_POSITIVE:
                if isinstance(value, int | float) and value <= 0:
                    yield key, "must be above 0"
                elif not isinstance(value, int | float) and not value:
                    yield key, "must not be empty"
            elif name in ENTRY_NOT_NEGATIVE and isinstance(value, int | float) and value < 0:
                yield key, "must not be negative"
            elif name in ENTRY_SHARE and not 0 <= _number(value) <= 1:
                yield key, "must be between 0 and 1"


def _choices(values: Mapping[str, object], tree: Mapping[str, object]) -> Iterator[tuple[str, str, str]]:
    asked = list(CHOICES.items())
    for entry_key in entry_keys(tree):
        options = _at(tree, entry_key).keys() & ENTRY_CHOICES.keys()
        asked += [(f"{entry_key}.{name}", ENTRY_CHOICES[name]) for name in sorted(options)]
    for key, valid in asked:
        if values[key] not in valid:
            yield key, f"must be one of {', '.join(valid)}", nearest(str(values[key]), valid)


def _not_supported_yet(config: RunConfig) -> Iterator[Broken]:
    """What the schema can say and the loop cannot do."""
    if config.rollout.top_p < 1:
        # The sampler's logprobs would be of the truncated distribution, the learner's of the whole.
        yield "rollout.top_p", "top_p below 1 is not supported yet"
    for origin in config.loss:
        if origin in origins_where(lambda spec: not spec.made):
            yield f"loss.{origin}", f"a run has no rows of origin {origin} yet"


def _replay(config: RunConfig) -> Iterator[Broken]:
    asked = config.replay.groups_per_step > 0
    if asked and "replay" not in config.loss:
        yield "replay.groups_per_step", "must have a loss to train with: loss.replay"
    if not asked and "replay" in config.loss:
        yield "loss.replay", "must have rows: replay.groups_per_step is 0"


def _sft(config: RunConfig) -> Iterator[Broken]:
    """Demonstrations need a loss that can train them, and the loss needs demonstrations."""
    share, loss = config.sft.share, config.loss.get("sft")
    num_rows = config.rollout.groups_per_step * config.rollout.group_size
    moved = "sft.share" in moved_settings(config)
    if (share > 0 or moved) and loss is None:
        yield "sft.share", "must have a loss to train with: loss.sft"
    if share == 0 and not moved and loss is not None:
        yield "loss.sft", "must have rows: sft.share is 0 and no controller moves it"
    if 0 < share * num_rows < 0.5:
        yield "sft.share", f"must be at least half a row of a step's {num_rows}"
    if loss is not None and ":" not in loss["kind"] and not LOSSES[loss["kind"]].supervised:
        able = ", ".join(name for name, kind in LOSSES.items() if kind.supervised)
        yield "loss.sft.kind", f"must need no advantages and no sampler, as demonstrations have none: {able}"
    is_lab = config.sft.data["kind"] == "lab"
    if loss is not None and is_lab and config.data.train["kind"] != "lab":
        yield "sft.data.kind", "must be given: the lab's demonstrations answer the prompts of data.train lab"


def _controllers(config: RunConfig) -> Iterator[Broken]:
    """A controller may move a number of the objective or sft.share, within bounds that hold its start."""
    taken: dict[str, str] = {}
    for name, entry in config.controllers.items():
        key, options = f"controllers.{name}", controller_options(entry)
        if problem := options.problem():
            option, _, rule = problem.partition(": ")
            yield f"{key}.{option}", rule
        where = f"{key}.setting" if "setting" in entry else key
        for setting, bounds in options.moves().items():
            told = "" if "setting" in entry else f", got {setting!r}"
            if not _is_movable(config, setting):
                places = ", ".join(f"{section}.<name>" for section in MOVABLE_ENTRIES)
                yield where, f"must be {', '.join(MOVABLE)} or a number under one of {places}{told}"
            if setting == "sft.share" and not all(0 <= bound <= 1 for bound in bounds):
                options_at = [option for option in _BOUNDS if not 0 <= _number(entry.get(option, 0.0)) <= 1]
                for at in options_at or [""]:
                    rule = f"must be between 0 and 1, as it is a share{told}"
                    yield f"{key}.{at}".removesuffix("."), rule
            if rule := _broken_bound(setting, min(bounds)):
                yield where, rule + told
            if setting in taken:
                yield where, f"must move another setting than controllers.{taken[setting]}{told}"
            taken[setting] = name
        if "otherwise" in entry and entry["value"] == entry["otherwise"]:
            yield f"{key}.value", "must be another value than otherwise"
        if "floor" in entry and entry["floor"] > entry["ceiling"]:
            yield f"{key}.floor", f"must not be above ceiling ({entry['ceiling']:g})"
        low, high, initial = (_number(entry.get(bound, 0.0)) for bound in ("low", "high", "initial"))
        if not low <= initial <= high:
            yield f"{key}.initial", f"must be within low and high ({low:g} to {high:g})"


def _broken_bound(setting: str, low: float) -> str:
    """The rule of the setting's own values that the lowest one it is moved to breaks, or ""."""
    section, _, rest = setting.partition(".")
    option = rest.rpartition(".")[2]
    is_entry = section in MOVABLE_ENTRIES
    not_negative = ENTRY_NOT_NEGATIVE | ({"weight", "beta"} if section == "token_advantage" else set())
    if low < 0 and (setting in NOT_NEGATIVE or (is_entry and option in not_negative)):
        return f"must not be moved below 0, got {low:g}"
    if low <= 0 and (setting in POSITIVE or (is_entry and option in ENTRY_POSITIVE)):
        return f"must be moved between bounds above 0, got {low:g}"
    return ""


def _is_movable(config: RunConfig, setting: str) -> bool:
    section, _, rest = setting.partition(".")
    if setting in MOVABLE:
        return True
    name, _, option = rest.partition(".")
    entries = getattr(config, section) if section in MOVABLE_ENTRIES else {}
    value = entries.get(name, {}).get(option)
    common = {item.name for item in fields(LossCommon)} if section == "loss" else set()
    return isinstance(value, float) and option not in common


def _names(config: RunConfig) -> Iterator[Broken]:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", config.name) or ".." in config.name:
        yield "name", "must be a plain folder name: letters, digits, -, _ and single dots, at most 128 long"
    for origin in config.loss:
        if origin not in ORIGINS:
            yield f"loss.{origin}", f"must be an origin of samples: {', '.join(ORIGINS)}"


def _learning(config: RunConfig) -> Iterator[Broken]:
    rollout, learner = config.rollout, config.learner
    if learner.updates_per_step > 0 and rollout.groups_per_step % learner.updates_per_step:
        rule = f"must be divisible by learner.updates_per_step ({learner.updates_per_step})"
        yield "rollout.groups_per_step", rule
    if learner.zero_stage not in range(4):
        yield "learner.zero_stage", "must be 0, 1, 2 or 3"
    if not all(0 <= beta < 1 for beta in learner.betas):
        yield "learner.betas", "must be at least 0 and below 1"
    longest = rollout.max_prompt_tokens + rollout.max_tokens
    if learner.microbatch_tokens < longest:
        rule = f"must hold one row: rollout.max_prompt_tokens + rollout.max_tokens is {longest}"
        yield "learner.microbatch_tokens", rule


def _anchors(config: RunConfig) -> Iterator[Broken]:
    """KL anchors, and resets of a reference that nothing is held to."""
    for section, anchor in (("kl", config.kl), ("kl_base", config.kl_base)):
        if not is_anchored(config, section):
            continue
        if anchor.place == "loss" and anchor.estimator == "k1":
            rule = "must not be k1 as a loss term: its mean gradient is zero (use k2 or k3)"
            yield f"{section}.estimator", rule
        if anchor.place == "reward" and anchor.estimator != "k1":
            rule = "must be k1 in the reward: its sum over a sequence is the log-ratio itself"
            yield f"{section}.estimator", rule
    for name in ("reset_every", "plateau_steps"):
        if getattr(config.reference, name) > 0 and not needs_reference(config):
            yield f"reference.{name}", "must have an anchor to reset: kl.coef is 0"


def _reward(config: RunConfig) -> Iterator[Broken]:
    not_sampled = origins_where(lambda spec: spec.sampled != "same_context")
    for origin, entry in config.loss.items():  # unlike a scorer, a loss may not be climbed
        if entry["weight"] < 0:
            yield f"loss.{origin}.weight", "must not be negative"
        if entry.get("ratio_to") == "behavior" and origin in not_sampled:
            yield f"loss.{origin}.ratio_to", "must be proximal: the sampler of these rows saw another context"
    if not any(entry["weight"] > 0 for entry in config.loss.values()):
        yield "loss", "must have a loss with a weight above 0"
    for name, entry in config.scorers.items():
        if entry["kind"] == "length" and not entry["target_tokens"] < entry["max_tokens"]:
            yield f"scorers.{name}.target_tokens", f"must be below max_tokens ({entry['max_tokens']})"
    effects = (entry["weight"] != 0 or entry["combine"] != "sum" for entry in config.scorers.values())
    if set(config.loss) - {*origins_where(lambda spec: spec.learned == "always")} and not any(effects):
        yield "scorers", "must have a scorer with an effect on the reward: a weight, multiply or gate"


def _ratios(config: RunConfig) -> Iterator[Broken]:
    """Bounds of the ratio, and losses that would all be the same."""
    for origin, entry in config.loss.items():
        key, kind = f"loss.{origin}", entry["kind"]
        if entry.get("dual_clip", 0) and not entry["dual_clip"] > 1:
            yield f"{key}.dual_clip", "must be 0 (off) or above 1"
        if kind in RATIO_KINDS and entry["ratio_to"] == "proximal" and config.learner.updates_per_step == 1:
            rule = f"must not be {kind}: when each step makes one update every ratio is 1, as in ppo_clip"
            yield f"{key}.kind", f"{rule} (or learner.updates_per_step above 1, or ratio_to: behavior)"


def _covariance(config: RunConfig) -> Iterator[Broken]:
    """Clip-Cov and KL-Cov, and where they cannot act."""
    for origin, entry in config.loss.items():
        key, kind = f"loss.{origin}", entry["kind"]
        if kind not in ("clip_cov", "kl_cov"):
            continue
        if not 0 < entry["fraction"] <= 1:
            yield f"{key}.fraction", "must be above 0 and at most 1"
        if kind == "clip_cov" and not entry["lower"] < entry["upper"]:
            yield f"{key}.lower", f"must be below upper ({entry['upper']:g})"
        if kind == "kl_cov" and entry["beta"] <= 0:
            yield f"{key}.beta", "must be above 0"
        is_own = entry["ratio_to"] == "proximal" or (origin == POLICY and config.rollout.max_lag == 0)
        if kind == "kl_cov" and config.learner.updates_per_step == 1 and is_own:
            yield f"{key}.kind", "must not be kl_cov: it has zero gradient when each step makes one update"


def _places(config: RunConfig) -> Iterator[Broken]:
    cluster = config.cluster
    if cluster.spawn == "local" and config.generator.tensor_parallel > 1:
        yield "generator.tensor_parallel", "must be 1 with cluster.spawn local: its workers are processes"
    if cluster.spawn == "local" and cluster.schedule == "overlap":
        yield (
            "cluster.schedule",
            "must be take_turns with cluster.spawn local: all share one process",
        )
    if cluster.spawn == "local" and config.learner.num_ranks > 1:
        yield "learner.num_ranks", "must be 1 with cluster.spawn local: ranks are processes"


def _own_code(config: RunConfig, tree: Mapping[str, object]) -> Iterator[Broken]:
    """The user's own "module:attr" must be well formed and stand under a prefix in `allow`."""
    targets = [(f"{key}.kind", str(_at(tree, key)["kind"])) for key in entry_keys(tree)]
    targets = [(key, target) for key, target in targets if ":" in target]
    for name, entry in config.scorers.items():
        options = scorer_options(entry)[1]
        if isinstance(options, CustomOptions) and options.function:
            targets.append((f"scorers.{name}.function", options.function))
    for key, target in targets:
        module, _, attribute = target.partition(":")
        if not (attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))):
            yield key, 'must be "module:attr"'
        elif not any(module == prefix or module.startswith(f"{prefix}.") for prefix in config.allow):
            yield key, f"must be in a module under a prefix in allow, which is {list(config.allow)}"
