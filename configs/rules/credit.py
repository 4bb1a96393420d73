"""What rows are credited with: rewards, advantages, reward shapes, bonuses and prompt weights.

Called by `configs.rules` with the bound run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from configs.bound import BoundRun
from configs.errors import Broken
from configs.kinds.scorers import SCORERS
from configs.origins import origins_where
from configs.rules.objective import uses_advantages


def _reward(run: BoundRun) -> Iterator[Broken]:
    commons = [entry.common for entry in run.scorers.values()]
    has_effect = any(common.weight != 0 or common.combine != "sum" for common in commons)
    # Without the reward these rows are trained on all the same, so a run of them alone needs no scorer.
    unrewarded = origins_where(lambda spec: spec.learned == "always")
    if set(run.losses) - set(unrewarded) and not has_effect:
        yield "scorers", "must have a scorer with an effect on the reward: a weight, multiply or gate"


def _order(run: BoundRun) -> Iterator[Broken]:
    """A scorer that runs after others needs those others, and none of them may wait for it."""
    earlier = run.scored_after()
    for name, entry in run.scorers.items():
        named = {option: [other] for option, other in entry.options.reads().items()}
        for option, others in {"after": list(entry.common.after), **named}.items():
            for other in others:
                if other not in earlier:
                    yield f"{entry.key}.{option}", f"must name a scorer of this config: {', '.join(earlier)}"
                elif name in _ancestors(other, earlier):
                    yield f"{entry.key}.{option}", f"must not name {other}, which runs after {name}"


def _ancestors(name: str, earlier: Mapping[str, tuple[str, ...]]) -> set[str]:
    """The scorer itself and all that run before it."""
    found, waiting = set[str](), [name]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found.add(each)
            waiting += earlier.get(each, ())
    return found


def _only_success(run: BoundRun) -> Iterator[Broken]:
    """Parts of the reward that an advantage of successes does not see."""
    if not run.advantage.kind.only_success:
        return
    for section in ("kl", "kl_base"):
        if run.is_anchored(section) and getattr(run.config, section).place == "reward":
            seen = f"advantage {run.advantage.kind_name} sees only which rewards are a success"
            yield f"{section}.place", f"must be loss: {seen}"


def _answers(run: BoundRun) -> Iterator[Broken]:
    """Bonuses, prompt weights and some shapes need answers; the first two also advantages to change."""
    # Of a user's own scorer nothing is known, so it is trusted to say what is needed.
    answered = any(entry.kind.answers or entry.is_own for entry in run.scorers.values())
    able = ", ".join(sorted(name for name, kind in SCORERS.items() if kind.answers))
    for entry in run.named["reward_shape"].values():
        if entry.kind.needs_verdicts and not answered:
            yield f"{entry.key}.kind", f"must have a scorer that reads answers: {able} or your own"
    for section in ("bonus", "prompt_weight"):
        if not run.named[section]:
            continue
        if not answered and any(entry.kind.needs_answers for entry in run.named[section].values()):
            yield section, f"must have a scorer that reads answers: {able} or your own"
        yield from uses_advantages(run, section)


def _unused(run: BoundRun) -> Iterator[Broken]:
    """Changes of the reward where no loss uses the advantages that are made of it."""
    credited = origins_where(lambda spec: spec.learned == "by_advantage")
    if not any(origin in run.losses and not run.losses[origin].kind.supervised for origin in credited):
        rule = "no loss uses the advantages that are made of rewards"
        for section in ("kl", "kl_base"):
            if run.is_anchored(section) and getattr(run.config, section).place == "reward":
                yield f"{section}.place", f"must be loss: {rule}"
        for entry in run.named["reward_shape"].values():
            # A filter leaves rows out of any loss, and a user's own shape may be one.
            if not entry.is_own and not getattr(entry.options, "filter", False):
                yield f"{entry.key}.kind", f"must not be {entry.kind_name}: {rule}"


def _siblings(run: BoundRun) -> Iterator[Broken]:
    for entry in run.named["bonus"].values():
        # A group of one has no siblings: the bonus would always be 0, without any message.
        if entry.kind.compares_siblings and run.config.rollout.group_size == 1:
            rule = f"must not be {entry.kind_name}: it compares siblings, of which there are none"
            yield f"{entry.key}.kind", rule


CREDIT_RULES = (_reward, _order, _only_success, _answers, _unused, _siblings)
