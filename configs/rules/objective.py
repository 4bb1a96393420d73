"""What is minimised: losses by origin, token advantages and KL anchors. Called by `configs.rules`."""

from __future__ import annotations

from collections.abc import Iterator

from configs.bound import BoundRun
from configs.errors import Broken
from configs.kinds.token_advantages import TOKEN_ADVANTAGES
from configs.origins import ORIGINS, POLICY


def _origins(run: BoundRun) -> Iterator[Broken]:
    for origin, loss in run.losses.items():
        if origin not in ORIGINS:
            yield loss.key, f"must be an origin of samples: {', '.join(ORIGINS)}"
    if not any(loss.common.weight > 0 for loss in run.losses.values()):
        policy = run.losses.get(POLICY)
        if policy is None:
            yield "loss", "must have a loss with a weight above 0"
        else:
            rule = f"must be above 0 while no other loss has a weight above 0: set {policy.key}.weight=1"
            yield f"{policy.key}.weight", rule


def _anchors(run: BoundRun) -> Iterator[Broken]:
    """KL anchors, and resets of a reference that nothing is held to."""
    for section in ("kl", "kl_base"):
        if not run.is_anchored(section):
            continue
        anchor = getattr(run.config, section)
        if anchor.place == "loss" and anchor.estimator == "k1":
            rule = "must not be k1 as a loss term: its mean gradient is zero (use k2 or k3)"
            yield f"{section}.estimator", rule
        # The rule is about sums: other estimators are better for a single token, but not as a reward.
        if anchor.place == "reward" and anchor.estimator != "k1":
            rule = (
                "must be k1 in the reward, because its sum over a sequence is the log-ratio itself: "
                f"set {section}.estimator=k1"
            )
            yield f"{section}.estimator", rule
    for name in ("reset_every", "plateau_steps"):
        if getattr(run.config.reference, name) > 0 and not run.needs_reference():
            rule = "must be 0, as nothing uses the reference"
            more = "set kl.coef above 0 or add a reward_shape that needs it"
            yield f"reference.{name}", f"{rule}: {more}"


def _no_policy_rows(run: BoundRun) -> Iterator[Broken]:
    """KL terms and entropy bonus act on the policy rows that are learned; without any they do nothing."""
    policy, moved = run.losses.get(POLICY), run.moved_settings()
    if policy is not None and policy.common.weight > 0:
        return
    why = "must be 0 without a loss.policy of a weight above 0, on whose rows it acts"
    for section in ("kl", "kl_base"):
        if run.is_anchored(section):
            yield f"{section}.coef", why
    if run.config.entropy.coef or "entropy.coef" in moved:
        yield "entropy.coef", why


def _token_advantages(run: BoundRun) -> Iterator[Broken]:
    """Transforms with nothing to act on, or that the loss cannot take."""
    if not run.token_advantages:
        return
    yield from uses_advantages(run, "token_advantage")
    policy = run.losses.get(POLICY)
    # A mask acts through the advantage: a loss that is not proportional to it would not notice.
    if policy is None or policy.kind.in_proportion:
        return
    for entry in run.token_advantages.values():
        if entry.kind.masks:
            able = ", ".join(name for name, kind in TOKEN_ADVANTAGES.items() if not kind.masks)
            why = f"{policy.kind_name} pulls on tokens whatever their advantage"
            yield f"{entry.key}.kind", f"must not be {entry.kind_name}: {why} (use one of {able})"


def uses_advantages(run: BoundRun, section: str) -> Iterator[Broken]:
    """`section` changes advantages of policy rows: there must be such rows, and a loss that uses them."""
    policy = run.losses.get(POLICY)
    if policy is None:
        yield section, "must have rows to act on: there is no loss.policy"
    elif policy.kind.supervised:
        yield section, f"must have a loss.policy that uses advantages: {policy.kind_name} does not"


OBJECTIVE_RULES = (_origins, _anchors, _no_policy_rows, _token_advantages)
