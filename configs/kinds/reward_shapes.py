"""Changes of the reward by name. A target is ``fn(rows: RewardedRows, options) -> rewards_N``.

They act on every rewarded row of a step before its advantage, in the order of the config. Where one returns
NaN the row has no reward any more: it stays out of baselines and losses, like a row whose scorer failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from configs.errors import Broken
from configs.fields import NOT_EMPTY, NOT_NEGATIVE, POSITIVE, one_of, option
from configs.kinds.base import Kind, Options, RunView


@dataclass
class OverlongOptions(Options):
    """Soft overlong punishment and overlong filtering, DAPO, arXiv 2503.14476.

    The paper has 20,480 and 4,096 tokens; ours are the default of rollout.max_tokens and the same fifth.
    """

    max_tokens: int = option(40, POSITIVE)
    """Length from which the whole penalty is subtracted (L_max)."""
    cache_tokens: int = option(8, POSITIVE)
    """Tokens before that over which it grows from 0 (L_cache)."""
    penalty: float = option(1.0, NOT_NEGATIVE)
    """Subtracted at `max_tokens`; 0 only filters."""
    filter: bool = False
    """Null the reward of completions that were cut off, so that nothing is learned from them."""

    def check(self) -> Iterator[Broken]:
        if self.cache_tokens > self.max_tokens:
            yield "cache_tokens", f"must not be above max_tokens ({self.max_tokens})"
        if self.penalty == 0 and not self.filter:
            yield "penalty", "must be above 0, or filter true: this shape changes nothing"

    def check_run(self, key: str, run: RunView) -> Iterator[Broken]:
        longest = run.config.rollout.max_tokens
        if self.penalty > 0 and self.max_tokens - self.cache_tokens >= longest:
            limit = longest + self.cache_tokens
            rule = f"must be below rollout.max_tokens + cache_tokens ({limit}): nothing gets so long"
            yield f"{key}.max_tokens", rule


@dataclass
class MaraOptions(Options):
    """Mode-anchored reward augmentation (MARA), arXiv 2510.20817: equal targets for all good completions.

    Both defaults are ours; `beta` should be the coefficient of the KL term that the run has.
    """

    beta: float = option(0.1, POSITIVE)
    """Coefficient of the KL term whose target is made equal (the paper's beta)."""
    threshold: float = 1.0
    """Reward from which a completion is good (the paper's tau)."""

    def check_run(self, key: str, run: RunView) -> Iterator[Broken]:
        if run.advantage.kind.only_success:
            seen = f"advantage {run.advantage.kind_name} sees only which rewards are a success"
            yield f"{key}.kind", f"must not be mara: {seen}"


@dataclass
class CosineLengthOptions(Options):
    """Cosine length reward, arXiv 2502.03373: short right answers gain, short wrong ones lose most.

    Added to the reward: with a scorer of 1 and 0 the defaults give the values of Open-R1.
    """

    max_tokens: int = option(40, POSITIVE)
    """Length from which the values for long answers hold."""
    right_short: float = 0.0
    """Added to a right answer of no length."""
    right_long: float = -0.5
    """Added to a right answer of `max_tokens` or more."""
    wrong_short: float = -1.0
    """Added to a wrong answer of no length."""
    wrong_long: float = -0.5
    """Added to a wrong answer of `max_tokens` or more."""


@dataclass
class RelativeLengthOptions(Options):
    """Length reward of Kimi k1.5, arXiv 2501.12599: answers shorter than their siblings' gain."""

    coef: float = option(1.0, NOT_NEGATIVE)
    """Half of it is the most that is added or subtracted; 0 is off, for a controller that turns it on."""

    def check_run(self, key: str, run: RunView) -> Iterator[Broken]:
        if run.config.rollout.group_size == 1:
            yield f"{key}.kind", "must not be relative_length: it compares siblings, of which there are none"


@dataclass
class VpoOptions(Options):
    """Vector Policy Optimization, arXiv 2605.22817: the best candidate, for random weights of its scores.

    The numbers of draws and candidates are not published where we could read them: the defaults are ours.
    """

    components: tuple[str, ...] = option((), NOT_EMPTY)
    """The scorers whose scores are weighted; their weights in the config do not count."""
    over: str = option("candidates", one_of("candidates", "group"))
    """candidates (those within a row) or group (ours: what the group's best loses without the row)."""
    scale: str = option("none", one_of("none", "group"))
    """group: map every score to [0, 1] over the group, so that none dominates by its range."""
    num_draws: int = option(64, POSITIVE)
    """Draws of random weights over which the best candidate is averaged."""
    concentration: float = option(1.0, POSITIVE)
    """Parameter of the symmetric Dirichlet distribution; the paper's is 1, uniform over all weights."""
    seed: int = 0
    """Seed of the draws."""

    def check_run(self, key: str, run: RunView) -> Iterator[Broken]:
        if unknown := [name for name in self.components if name not in run.scorers]:
            known = ", ".join(run.scorers)
            yield f"{key}.components", f"must name scorers of this config ({known}), got {unknown[0]}"
        first = next(iter(run.config.reward_shape))
        if key != f"reward_shape.{first}":
            rule = (
                f"must come before reward_shape.{first}: vpo puts another reward in place of the one so far"
            )
            yield f"{key}.kind", rule


REWARD_SHAPES: dict[str, Kind] = {
    "overlong": Kind(OverlongOptions, "trainer.credit.reward_shapes:overlong"),
    "mara": Kind(MaraOptions, "trainer.credit.reward_shapes:mara", reference=True),
    "cosine_length": Kind(
        CosineLengthOptions, "trainer.credit.reward_shapes:cosine_length", needs_verdicts=True
    ),
    "relative_length": Kind(
        RelativeLengthOptions, "trainer.credit.reward_shapes:relative_length", needs_verdicts=True
    ),
    "vpo": Kind(VpoOptions, "trainer.credit.diversity:vpo"),
}
