"""The origins a row of rollouts may have, in one table, and what holds of the rows of each.

Whatever depends on an origin reads this table: the row contract, the journal, how a step's groups are
numbered and spread, what is compared and credited, the objective and the metrics. To add an origin, add a
line. What makes the rows (the producer, replay, demonstrations) is elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

Sampled = Literal["same_context", "other_context", "no"]
Learned = Literal["by_advantage", "if_right", "always"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginSpec:
    """The properties of all rows of an origin."""

    sampled: Sampled
    """How the tokens were sampled. same_context: by a policy of the run, under the row's own prompt: the row
    has behavior logprobs and versions, and importance ratios to the sampler are valid. other_context: under
    another prompt: the row may have both, but no ratio is valid. no: not sampled, behavior logprobs null."""
    learned: Learned
    """by_advantage: compared with siblings, left out if the group has no signal. if_right: imitated if the
    reward is above 0. always: imitated without a reward."""
    journaled: bool = False
    """Whether rows are sampled with their group and stored in the journal; others are added to a batch."""
    replayable: bool = False
    """Whether later steps may train on a copy, of origin replay."""
    transformed: bool = False
    """Whether `token_advantage`, the KL anchors and the entropy bonus act on its tokens."""
    group_of: str = ""
    """The origin whose groups the rows join, by submission; "" if they have groups of their own."""
    taught: bool = False
    """Whether a teacher that reads another prompt than the row's scores its tokens; the row holds that prompt
    (`teacher_prompt_ids`)."""
    at_training_temperature: bool = False
    """Scored at `rollout.temperature`, whatever they were sampled at."""


POLICY: Final = "policy"
"""The run's own samples: main metrics, bonuses, answer counts and throughput are of these rows alone."""
REFINED: Final = "refined"
DISTILLED: Final = "distilled"
"""Repeats a policy row token by token, so that its loss is one towards the teacher and not by a reward."""
REPLAY: Final = "replay"
TEMPERED: Final = "tempered"
SFT: Final = "sft"

ORIGINS: Final[dict[str, OriginSpec]] = {
    POLICY: OriginSpec(
        sampled="same_context", learned="by_advantage", journaled=True, replayable=True, transformed=True
    ),
    REFINED: OriginSpec(sampled="other_context", learned="by_advantage", journaled=True, group_of=POLICY),
    DISTILLED: OriginSpec(
        sampled="same_context", learned="always", journaled=True, group_of=POLICY, taught=True
    ),
    REPLAY: OriginSpec(sampled="same_context", learned="by_advantage"),
    TEMPERED: OriginSpec(
        sampled="same_context", learned="if_right", journaled=True, at_training_temperature=True
    ),
    SFT: OriginSpec(sampled="no", learned="always"),
}
"""In the order in which a step numbers their groups and spreads them over its updates."""


def origins_where(holds: Callable[[OriginSpec], bool] = lambda spec: True) -> tuple[str, ...]:
    """The origins whose spec `holds`, in the order of the table."""
    return tuple(name for name, spec in ORIGINS.items() if holds(spec))


ADDED: Final = origins_where(lambda spec: spec.group_of == POLICY)
"""Origins of the rows that refiners add to groups of the policy."""


def parts() -> tuple[tuple[str, ...], ...]:
    """Origins whose rows have groups in common, in the order of the table."""
    by_head: dict[str, tuple[str, ...]] = {}
    for name, spec in ORIGINS.items():
        head = spec.group_of or name
        by_head[head] = (*by_head.get(head, ()), name)
    return tuple(by_head.values())
