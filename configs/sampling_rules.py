"""Rules of what is sampled: groups, evaluations, dynamic sampling. Called by `configs.rules`.

Each takes the built config and yields (dotted key, rule in words) for what is broken.
"""

from __future__ import annotations

from collections.abc import Iterator

from configs.kinds.advantages import ADVANTAGES, GROUP_BASELINE
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
    if rollout.degenerate == "keep":
        return
    if kind in ADVANTAGES and kind not in GROUP_BASELINE:
        rule = f"must be keep with advantage {kind}: it compares no siblings, so equal rewards teach"
        yield "rollout.degenerate", rule
    if config.loss.get("policy", {"kind": "nll"})["kind"] == "nll":
        yield "rollout.degenerate", "must be keep without a loss.policy that uses advantages (nll does not)"
    if rollout.degenerate != "refill":
        return
    if rollout.max_rounds == 1:
        yield "rollout.max_rounds", "must be 2 or more with rollout.degenerate refill"
    if rollout.max_lag > 0:
        rule = "must be keep or drop with rollout.max_lag above 0: a step's rewards decide what it samples"
        yield "rollout.degenerate", rule
    if config.replay.groups_per_step > 0:
        rule = "must be 0 with rollout.degenerate refill: only its rewards say which groups a step has"
        yield "replay.groups_per_step", rule


SAMPLING_RULES = (_sampling, _dynamic_sampling)
