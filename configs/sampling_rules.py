"""Rules of what is sampled: groups, evaluations, dynamic and tempered sampling. Called by `configs.rules`.

Each takes the built config and yields (dotted key, rule in words) for what is broken.
"""

from __future__ import annotations

from collections.abc import Iterator

from configs.entries import controller_options
from configs.kinds.advantages import ADVANTAGES, GROUP_BASELINE
from configs.kinds.losses import LOSSES
from configs.schema import RunConfig


def _sampling(config: RunConfig) -> Iterator[tuple[str, str]]:
    rollout, evaluation = config.rollout, config.eval
    kind = config.advantage["kind"]
    if rollout.group_size == 1 and kind in GROUP_BASELINE:
        yield "rollout.group_size", f"must be at least 2: advantage {kind} compares siblings"
    if not evaluation.pass_at or any(k < 1 for k in evaluation.pass_at):
        yield "eval.pass_at", "must hold numbers above 0"
    elif max(evaluation.pass_at) > evaluation.num_samples:
        yield "eval.pass_at", f"must not be larger than eval.num_samples ({evaluation.num_samples})"


def _dynamic_sampling(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Leaving groups out needs an advantage that says nothing of them; refilling needs their rewards."""
    rollout, kind = config.rollout, config.advantage["kind"]
    if rollout.zero_variance_groups == "keep":
        return
    if kind in ADVANTAGES and kind not in GROUP_BASELINE:
        rule = f"must be keep with advantage {kind}: it compares no siblings, so equal rewards teach"
        yield "rollout.zero_variance_groups", rule
    if config.loss.get("policy", {"kind": "nll"})["kind"] == "nll":
        yield (
            "rollout.zero_variance_groups",
            "must be keep without a loss.policy that uses advantages (nll does not)",
        )
    if rollout.zero_variance_groups != "refill":
        return
    if rollout.max_rounds == 1:
        yield "rollout.max_rounds", "must be 2 or more with rollout.zero_variance_groups refill"
    if rollout.max_lag > 0:
        rule = "must be keep or drop with rollout.max_lag above 0: a step's rewards decide what it samples"
        yield "rollout.zero_variance_groups", rule
    if config.replay.groups_per_step > 0:
        rule = (
            "must be 0 with rollout.zero_variance_groups refill: only its rewards say which groups a step has"
        )
        yield "replay.groups_per_step", rule


def _tempered(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Tempered groups need a loss that can train them, and a temperature that is another."""
    key, asked, loss = (
        "tempered.groups_per_step",
        config.tempered.groups_per_step,
        config.loss.get("tempered"),
    )
    entries = config.controllers.items()
    moved = {name: e for name, e in entries if "tempered.temperature" in controller_options(e).moves()}
    if asked == 0:
        if loss is not None:
            yield "loss.tempered", f"must have rows: {key} is 0"
        yield from ((f"controllers.{name}", f"must have rows to sample: {key} is 0") for name in moved)
        return
    if loss is None:
        yield key, "must have a loss to train with: loss.tempered"
    elif ":" not in loss["kind"] and not LOSSES[loss["kind"]].supervised:
        able = ", ".join(name for name, kind in LOSSES.items() if kind.supervised)
        yield "loss.tempered.kind", f"must need no sampler: rows are scored at another temperature ({able})"
    if asked > (limit := config.rollout.groups_per_step):
        yield key, f"must not be above rollout.groups_per_step ({limit}), whose prompts they have"
    if config.rollout.max_lag > 0:
        yield key, "must be 0 with rollout.max_lag above 0: a step's temperature is not known before it"
    if config.rollout.zero_variance_groups == "refill":
        yield key, "must be 0 with rollout.zero_variance_groups refill"
    if not moved and config.tempered.temperature == config.rollout.temperature:
        yield "tempered.temperature", "must be another than rollout.temperature: there would be no pull"
    for name, entry in moved.items():
        for bound in ("low", "initial", "value", "otherwise"):
            if bound in entry and entry[bound] <= 0:
                yield f"controllers.{name}.{bound}", "must be above 0, as it is a temperature"


def _moved_temperature(config: RunConfig) -> Iterator[tuple[str, str]]:
    """A controller may move the temperature that a step is sampled at, if it is known before the step is."""
    for name, entry in config.controllers.items():
        if "rollout.temperature" not in controller_options(entry).moves():
            continue
        if config.rollout.max_lag > 0:
            rule = "must not move rollout.temperature with rollout.max_lag above 0: it is not known in time"
            yield f"controllers.{name}", rule
        if config.tempered.groups_per_step > 0:
            rule = "must not move rollout.temperature beside tempered groups, which are trained at it"
            yield f"controllers.{name}", rule


SAMPLING_RULES = (_sampling, _dynamic_sampling, _tempered, _moved_temperature)
