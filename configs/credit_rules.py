"""What cannot work together in the credit of rows: advantages, reward shapes, bonuses and prompt weights.

Called by `configs.rules` with a config whose entries are complete.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from configs.entries import is_anchored
from configs.errors import Broken
from configs.kinds.advantages import RIGHT_OR_WRONG
from configs.kinds.bonuses import COMPARES_SIBLINGS
from configs.kinds.scorers import ANSWERING
from configs.schema import RunConfig


def credit_rules(config: RunConfig) -> Iterator[Broken]:
    """All of them."""
    yield from _advantage(config)
    for name, entry in config.reward_shape.items():
        if entry["kind"] == "overlong":
            yield from _overlong(f"reward_shape.{name}", entry, config.rollout.max_tokens)
        if entry["kind"] == "mara" and entry["beta"] <= 0:
            yield f"reward_shape.{name}.beta", "must be above 0"
    for section in ("bonus", "prompt_weight"):
        if getattr(config, section):
            yield from _of_answers(config, section)
    for name, entry in config.bonus.items():
        if entry["kind"] in COMPARES_SIBLINGS and config.rollout.group_size == 1:
            yield (
                f"bonus.{name}.kind",
                f"must not be {entry['kind']}: it compares siblings, of which there are none",
            )


def _advantage(config: RunConfig) -> Iterator[Broken]:
    kind, size = config.advantage["kind"], config.rollout.group_size
    if kind == "reinforce_pp" and config.advantage["baseline"] == "group" and size == 1:
        yield "rollout.group_size", "must be at least 2: reinforce_pp with baseline group compares siblings"
    if kind == "pass_at_k" and config.advantage["k"] > size:
        yield "advantage.k", f"must not be above rollout.group_size ({size})"
    if kind not in RIGHT_OR_WRONG:
        return
    rule = f"advantage {kind} sees only which rewards are a success"
    for section, anchor in (("kl", config.kl), ("kl_base", config.kl_base)):
        if is_anchored(config, section) and anchor.place == "reward":
            yield f"{section}.place", f"must be loss: {rule}"
    for name, entry in config.reward_shape.items():
        if entry["kind"] == "mara":
            yield f"reward_shape.{name}.kind", f"must not be mara: {rule}"


def _overlong(key: str, entry: Mapping[str, object], longest: int) -> Iterator[Broken]:
    max_tokens, cache, penalty = entry["max_tokens"], entry["cache_tokens"], entry["penalty"]
    assert isinstance(max_tokens, int) and isinstance(cache, int) and isinstance(penalty, float)
    if cache > max_tokens:
        yield f"{key}.cache_tokens", f"must not be above max_tokens ({max_tokens})"
    if penalty == 0 and not entry["filter"]:
        yield f"{key}.penalty", "must be above 0, or filter true: this shape changes nothing"
    if penalty > 0 and max_tokens - cache >= longest:
        rule = f"must be below rollout.max_tokens + cache_tokens ({longest + cache}): nothing gets so long"
        yield f"{key}.max_tokens", rule


def _of_answers(config: RunConfig, section: str) -> Iterator[Broken]:
    """Answers to count, and advantages that the section changes."""
    kinds = {entry["kind"] for entry in config.scorers.values()}
    if not any(kind in ANSWERING or ":" in kind for kind in kinds):
        yield section, f"must have a scorer that reads answers: {', '.join(sorted(ANSWERING))} or your own"
    if "policy" not in config.loss:
        yield section, "must have rows to act on: there is no loss.policy"
    elif config.loss["policy"]["kind"] == "nll":
        yield section, "must have a loss.policy that uses advantages: nll does not"
