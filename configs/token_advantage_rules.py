"""What shapes and the losses that they act on must not be. Called by `configs.rules`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from configs.schema import RunConfig

_Rule = tuple[str, Callable[[float], bool], str]
"""(option, whether a value of it is right, rule in words)"""

_RULES: Final[dict[str, tuple[_Rule, ...]]] = {
    "positive_reweight": (("weight", lambda value: value >= 0, "must not be negative"),),
    "repo": (("beta", lambda value: value >= 0, "must not be negative"),),
    "entropy_advantage": (
        ("alpha", lambda value: value >= 0, "must not be negative"),
        ("kappa", lambda value: value > 1, "must be above 1: no advantage may change its sign"),
    ),
    "top_entropy": (("fraction", lambda value: 0 < value <= 1, "must be above 0 and at most 1"),),
    "hicra": (("alpha", lambda value: 0 <= value < 1, "must be at least 0 and below 1"),),
    "stare": (
        ("strength", lambda value: 0 <= value <= 1, "must be between 0 and 1"),
        ("fraction", lambda value: 0 < value <= 0.5, "must be above 0 and at most 0.5"),
    ),
    "tis": (("cap", lambda value: value >= 1, "must be at least 1"),),
    "icepop": (
        ("low", lambda value: 0 <= value <= 1, "must be between 0 and 1"),
        ("high", lambda value: value >= 1, "must be at least 1"),
    ),
    "rejection": (
        ("low", lambda value: 0 <= value <= 1, "must be between 0 and 1"),
        ("high", lambda value: value >= 1, "must be at least 1"),
    ),
}
"""By kind: what its options may be."""
_MASKS: Final = ("top_entropy", "tis", "icepop", "rejection")
"""Kinds that scale or drop what a token teaches, which only a loss in proportion to A lets them do."""
_NOT_IN_PROPORTION: Final = ("kl_cov",)


def broken_shapes(config: RunConfig) -> Iterator[tuple[str, str]]:
    """(dotted key, rule) of everything under `token_advantage` out of range or with nothing to act on."""
    if not config.token_advantage:
        return
    policy = config.loss.get("policy")
    if policy is None:
        yield "token_advantage", "must have rows to act on: there is no loss.policy"
    elif policy["kind"] == "nll":
        yield "token_advantage", "must have a loss.policy that uses advantages: nll does not"
    for name, entry in config.token_advantage.items():
        for option, holds, rule in _RULES.get(entry["kind"], ()):
            if not holds(entry[option]):
                yield f"token_advantage.{name}.{option}", rule
    yield from _broken_pairs(config)


def _broken_pairs(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Shapes that this loss cannot take, or that would correct for the sampler twice."""
    policy = config.loss.get("policy", {"kind": ""})
    weighs = ""
    for name, entry in config.token_advantage.items():
        key, kind = f"token_advantage.{name}.kind", entry["kind"]
        if kind in _MASKS and policy["kind"] in _NOT_IN_PROPORTION:
            rule = f"must not be {kind}: {policy['kind']} pulls on tokens whatever their advantage"
            yield key, f"{rule} (entropy_advantage, stare and repo_r work)"
        if kind != "tis" and not (kind == "icepop" and entry["weigh"]):
            continue
        if policy.get("ratio_to") == "behavior":
            yield (
                key,
                f"must not be {kind} with ratio_to: behavior, whose ratio corrects for the sampler already",
            )
        if weighs:
            yield key, f"must not be {kind}: token_advantage.{weighs} weighs by proximal / behavior already"
        weighs = name
