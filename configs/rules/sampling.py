"""What is sampled: groups, evaluations, dynamic and tempered sampling, replay and demonstrations.

Each rule takes the bound run and yields (dotted key, rule in words) for what is broken. Called by
`configs.rules`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from configs.bound import BoundRun
from configs.errors import Broken
from configs.kinds.losses import LOSSES
from configs.kinds.refiners import NONE
from configs.origins import ADDED, DISTILLED, POLICY, REFINED, REPLAY, SFT, TEMPERED, origins_where

_USUAL: Final = {REFINED: "{kind: shaped}", DISTILLED: "{kind: sdpo}"}
"""Losses of the origins that refiners add, for messages."""


def _groups(run: BoundRun) -> Iterator[Broken]:
    rollout, evaluation, advantage = run.config.rollout, run.config.eval, run.advantage
    # With one sample, the mean of the group is its own reward, and every advantage 0.
    if rollout.group_size == 1 and advantage.kind.compares_siblings:
        rule = f"must be at least 2: advantage {advantage.kind_name} compares siblings"
        yield "rollout.group_size", rule
    if evaluation.pass_at and max(evaluation.pass_at) > evaluation.num_samples:
        yield "eval.pass_at", f"must not be larger than eval.num_samples ({evaluation.num_samples})"
    if rollout.top_p < 1:
        # The sampler's logprobs would be of the truncated distribution, the learner's of the whole.
        yield "rollout.top_p", "top_p below 1 is not supported yet"


def _dynamic_sampling(run: BoundRun) -> Iterator[Broken]:
    """Dropping groups needs an advantage that is 0 for them; refilling needs their rewards."""
    rollout, advantage, key = run.config.rollout, run.advantage, "rollout.zero_variance_groups"
    if rollout.zero_variance_groups == "keep":
        return
    if not advantage.is_own and not advantage.kind.compares_siblings:
        rule = f"must be keep with advantage {advantage.kind_name}: it compares no siblings"
        yield key, f"{rule}, so equal-reward groups still give gradient"
    policy = run.losses.get(POLICY)
    if policy is None or policy.kind.supervised:
        unused = policy.kind_name if policy is not None else "nll"
        yield key, f"must be keep without a loss.policy that uses advantages ({unused} does not)"
    if rollout.zero_variance_groups != "refill":
        return
    if rollout.max_rounds == 1:
        yield "rollout.max_rounds", f"must be 2 or more with {key} refill"
    if rollout.max_lag > 0:
        rule = "must be keep or drop with rollout.max_lag above 0: a step's rewards decide what it samples"
        yield key, rule
    if run.config.replay.groups_per_step > 0:
        rule = f"must be 0 with {key} refill: only its rewards say which groups a step has"
        yield "replay.groups_per_step", rule


def _tempered(run: BoundRun) -> Iterator[Broken]:
    """Tempered groups need a loss that can train them, and a temperature that is another."""
    key, tempered, rollout = "tempered.groups_per_step", run.config.tempered, run.config.rollout
    loss = run.losses.get(TEMPERED)
    movers = _movers(run, "tempered.temperature")
    if tempered.groups_per_step == 0:
        if loss is not None:
            yield "loss.tempered", f"must have rows: {key} is 0{_removed(TEMPERED)}"
        yield from ((mover, f"must have rows to sample: {key} is 0") for mover in movers)
        return
    if loss is None:
        yield key, "must have a loss to train with: loss.tempered"
    elif not loss.is_own and not loss.kind.supervised:
        rule = f"must be {_supervised()}: rows are sampled at another temperature than they are trained at"
        yield "loss.tempered.kind", rule
    if tempered.groups_per_step > rollout.groups_per_step:
        limit = rollout.groups_per_step
        yield key, f"must not be above rollout.groups_per_step ({limit}), whose prompts they have"
    if rollout.max_lag > 0:
        yield key, "must be 0 with rollout.max_lag above 0: a step's temperature is not known before it"
    if rollout.zero_variance_groups == "refill":
        yield key, "must be 0 with rollout.zero_variance_groups refill"
    # A controller may start at the same temperature and move away from it.
    if not movers and tempered.temperature == rollout.temperature:
        yield "tempered.temperature", "must be another than rollout.temperature: there would be no pull"


def _moved_temperature(run: BoundRun) -> Iterator[Broken]:
    """A controller may move the temperature that a step is sampled at, if it is known before the step is."""
    for key in _movers(run, "rollout.temperature"):
        if run.config.rollout.max_lag > 0:
            rule = "must not move rollout.temperature with rollout.max_lag above 0: it is not known in time"
            yield key, rule
        if run.config.tempered.groups_per_step > 0:
            yield key, "must not move rollout.temperature beside tempered groups, which are trained at it"


def _replay(run: BoundRun) -> Iterator[Broken]:
    wanted = run.config.replay.groups_per_step > 0
    if wanted and REPLAY not in run.losses:
        yield "replay.groups_per_step", "must have a loss to train with: loss.replay"
    if not wanted and REPLAY in run.losses:
        yield "loss.replay", f"must have rows: replay.groups_per_step is 0{_removed(REPLAY)}"


def _refined(run: BoundRun) -> Iterator[Broken]:
    """What a refiner adds needs a loss to train it, and the loss a refiner or an own rollouter."""
    refiner = run.refiner
    refines, adds = refiner.kind_name != NONE, refiner.kind.adds
    makes = {each for each in ADDED if refines and (each == adds or refiner.is_own)}
    if refines and not makes & run.losses.keys():
        yield "refiner.kind", f"must have a loss to train with: loss.{adds}={_USUAL[adds]}"
    for origin in ADDED:
        loss = run.losses.get(origin)
        if loss is not None and origin not in makes and not run.rollouter.is_own:
            yield loss.key, f"must have rows: refiner.kind is {refiner.kind_name}{_removed(origin)}"


def _taught(run: BoundRun) -> Iterator[Broken]:
    """Rows with a teacher are trained towards it; no other loss gets its scores."""
    for origin in origins_where(lambda spec: spec.taught):
        loss = run.losses.get(origin)
        if loss is not None and not loss.kind.taught:
            able = " or ".join(name for name, kind in LOSSES.items() if kind.taught)
            yield f"{loss.key}.kind", f"must be {able}: these rows are trained towards their teacher"


def _demonstrations(run: BoundRun) -> Iterator[Broken]:
    """Demonstrations need a loss that can train them, and the loss needs demonstrations."""
    share, loss, rollout = run.config.sft.share, run.losses.get(SFT), run.config.rollout
    num_rows = rollout.groups_per_step * rollout.group_size
    moved = "sft.share" in run.moved_settings()
    if (share > 0 or moved) and loss is None:
        yield "sft.share", "must have a loss to train with: loss.sft"
    # Rounded, it would be no row at all, and the setting without any effect.
    if 0 < share * num_rows < 0.5:
        yield "sft.share", f"must be at least half a row of a step's {num_rows}"
    if loss is None:
        return
    if share == 0 and not moved:
        yield "loss.sft", f"must have rows: sft.share is 0 and no controller moves it{_removed(SFT)}"
    if not loss.is_own and not loss.kind.supervised:
        rule = f"must be {_supervised()}: demonstrations have no advantages and no sampler"
        yield "loss.sft.kind", rule


def _removed(origin: str) -> str:
    """How to take out an inherited loss, for messages."""
    return f" (loss.{origin}=null removes an inherited loss)"


def _supervised() -> str:
    """The losses that can train rows which nothing was sampled for."""
    return " or ".join(name for name, kind in LOSSES.items() if kind.supervised)


def _movers(run: BoundRun, setting: str) -> list[str]:
    """The dotted keys of the controllers that move the setting."""
    return [entry.key for entry in run.controllers.values() if setting in entry.options.moves()]


SAMPLING_RULES = (
    _groups,
    _dynamic_sampling,
    _tempered,
    _moved_temperature,
    _replay,
    _refined,
    _taught,
    _demonstrations,
)
