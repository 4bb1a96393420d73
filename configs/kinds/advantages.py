"""Advantage estimators by name. A target is ``fn(rows: RewardedRows, options) -> advantages_N``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from configs.errors import Broken
from configs.fields import NOT_NEGATIVE, POSITIVE, SHARE, one_of, option
from configs.kinds.base import Kind, Options, RunView


@dataclass
class GrpoOptions(Options):
    """(r - mean) / (std + eps) over the group, std with the n - 1 divisor."""

    eps: float = option(1.0e-6, NOT_NEGATIVE)
    """Added to the standard deviation."""


@dataclass
class DrGrpoOptions(Options):
    """r - mean over the group."""


@dataclass
class RlooOptions(Options):
    """r - mean of the other rows of the group."""


@dataclass
class ReinforceOptions(Options):
    """The reward itself: no baseline."""


@dataclass
class ReinforcePpOptions(Options):
    """REINFORCE++, arXiv 2501.03262: rewards normalised over the whole step, not within the group."""

    baseline: str = option("group", one_of("group", "none"))
    """group (REINFORCE++-baseline: first subtract the group's mean) or none (only the step's statistics)."""
    eps: float = option(1.0e-8, NOT_NEGATIVE)
    """Added to the standard deviation."""

    def check_run(self, key: str, run: RunView) -> Iterator[Broken]:
        if self.baseline == "group" and run.config.rollout.group_size == 1:
            rule = "must be at least 2: reinforce_pp with baseline group compares siblings"
            yield "rollout.group_size", rule


@dataclass
class PassAtKOptions(Options):
    """Pass@k training, arXiv 2508.10751: every subset of k rows of the group shares its best reward."""

    k: int = option(4, POSITIVE)
    """Ours: half of the default group; we found no published value. A group of fewer rows gets zeros."""
    threshold: float = 0.5
    """A reward of at least this is a success. For rewards other than 0 and 1, the differences are lost."""
    eps: float = option(1.0e-6, NOT_NEGATIVE)
    """Added to the standard deviation."""

    def check_run(self, key: str, run: RunView) -> Iterator[Broken]:
        if self.k > (size := run.config.rollout.group_size):
            yield f"{key}.k", f"must not be above rollout.group_size ({size})"


@dataclass
class WReinforceOptions(Options):
    """W-REINFORCE, arXiv 2506.01347: right rows weigh `positive`, wrong ones 1."""

    positive: float = option(0.1, NOT_NEGATIVE)
    """The paper's lambda; 0 is NSR, which learns from wrong rows alone."""
    threshold: float = 0.5
    """As in pass_at_k."""


@dataclass
class QuantileOptions(Options):
    """Quantile advantage estimation (QAE), arXiv 2509.22611: the group's quantile instead of its mean."""

    quantile: float = option(0.4, SHARE)
    """The paper's K, cited from memory. Groups with more than 1 - K right rows learn from their wrong rows
    only, all others from their right rows only."""
    eps: float = option(1.0e-6, NOT_NEGATIVE)
    """Added to the standard deviation."""


@dataclass
class UcpoOptions(Options):
    """UCPO, arXiv 2605.00365: right rows weigh the more the less likely they are among each other."""

    base: str = option("grpo", one_of("grpo", "dr_grpo", "rloo"))
    """The advantage that is weighted."""
    tau: float = option(0.2, SHARE)
    """The released code's value: 0 is `base`, 1 weighs right rows by 1 / q alone."""
    threshold: float = 0.5
    """A row is right from this reward on."""
    per_token: bool = True
    """Compare mean logprobs per token, as the released code does, not those of whole completions."""


ADVANTAGES: dict[str, Kind] = {
    "grpo": Kind(GrpoOptions, "trainer.credit.advantages:grpo", compares_siblings=True),
    "dr_grpo": Kind(DrGrpoOptions, "trainer.credit.advantages:dr_grpo", compares_siblings=True),
    "rloo": Kind(RlooOptions, "trainer.credit.advantages:rloo", compares_siblings=True),
    "reinforce": Kind(ReinforceOptions, "trainer.credit.advantages:reinforce"),
    "reinforce_pp": Kind(ReinforcePpOptions, "trainer.credit.advantages:reinforce_pp"),
    "pass_at_k": Kind(
        PassAtKOptions, "trainer.credit.advantages:pass_at_k", compares_siblings=True, only_success=True
    ),
    "w_reinforce": Kind(WReinforceOptions, "trainer.credit.advantages:w_reinforce", only_success=True),
    "quantile": Kind(QuantileOptions, "trainer.credit.advantages:quantile", compares_siblings=True),
    "ucpo": Kind(UcpoOptions, "trainer.credit.diversity:ucpo", compares_siblings=True),
}
