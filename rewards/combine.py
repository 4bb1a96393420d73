"""Combine the judgements of one completion into its reward. In: Judgements by scorer name. Out: a Sample.

The only place that combines scores; called for every completion that is scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

from configs.kinds.scorers import SCORERS, ScorerCommon
from configs.origins import POLICY
from rollouts.records import Completion, Judgement, Sample, Span

Value = TypeVar("Value")
_COMBINES = ("sum", "multiply", "gate")


def check_tags(common_keys: Mapping[str, ScorerCommon]) -> None:
    """Check that no two scorers set the same tag, as far as their kinds declare it; called before a run.

    Raises:
        ValueError: two do; the message names both scorers and the tag.
    """
    scorer_of: dict[str, str] = {}
    for name, common in common_keys.items():
        for tag in SCORERS[common.kind].tags if common.kind in SCORERS else ():
            if tag in scorer_of:
                raise _clash(tag, scorer_of[tag], name)
            scorer_of[tag] = name


def combine(
    completion: Completion,
    judgements: Mapping[str, Judgement],
    common_keys: Mapping[str, ScorerCommon],
    origin: str = POLICY,
) -> Sample:
    """reward = gate x product(multiply) x sum(weight x score), over scorers in config order.

    A gate is 0 if its score is 0, else 1. Without a scorer in the sum, the sum is 1 if there is a gate or a
    factor, and 0 otherwise. A null score of any scorer in the reward makes the reward null, and so does an
    overflow; a scorer with combine=sum and weight 0 is not in the reward. `reward_vector` has the score of
    every scorer, in config order. The partition is that of the first scorer that has one.

    If two scorers set the same tag, that of the later one is stored as `<scorer>.<tag>`.

    Raises:
        ValueError: the mappings have different scorers, or a `combine` is unknown.
    """
    if judgements.keys() != common_keys.keys():
        raise ValueError(f"judgements must be of scorers {list(common_keys)}, got {list(judgements)}")
    ordered = {name: judgements[name] for name in common_keys}
    vector = tuple(judgement.score for judgement in ordered.values())
    answer, answer_ok = _first_answer(ordered)
    return Sample(
        completion=completion,
        origin=origin,
        scores=dict(zip(ordered, vector, strict=True)),
        score_status={name: judgement.status for name, judgement in ordered.items()},
        tags=_merge_tags(ordered),
        spans=_merge_spans(ordered),
        answer=answer,
        answer_ok=answer_ok,
        reward_vector=vector,
        reward=_reward(ordered, common_keys),
        partition=next((each.partition for each in ordered.values() if each.partition), None),
        numbers=_prefixed({name: judgement.numbers for name, judgement in ordered.items()}),
        texts=_prefixed({name: judgement.texts for name, judgement in ordered.items()}),
    )


def _prefixed(values: Mapping[str, Mapping[str, Value]]) -> dict[str, Value]:
    """The values of all scorers in one mapping, each as "<scorer>/<name>"."""
    return {f"{scorer}/{name}": value for scorer, own in values.items() for name, value in own.items()}


def _reward(judgements: Mapping[str, Judgement], common_keys: Mapping[str, ScorerCommon]) -> float | None:
    gate, product = 1.0, 1.0
    terms: list[float] = []
    num_factors = 0
    for name, common in common_keys.items():
        if common.combine not in _COMBINES:
            raise ValueError(f"scorers.{name}.combine must be one of {_COMBINES}, got {common.combine!r}")
        # Such a scorer is only recorded. Its failures must not cost rewards.
        if common.combine == "sum" and common.weight == 0:
            continue
        score = judgements[name].score
        if score is None:
            return None  # unknown, which is not the same as a score of 0
        if common.combine == "sum":
            terms.append(common.weight * score)
            continue
        num_factors += 1
        if common.combine == "multiply":
            product *= score
        elif score == 0:
            gate = 0.0
    total = sum(terms) if terms else float(num_factors > 0)
    reward = gate * product * total
    return reward if math.isfinite(reward) else None


def _merge_tags(judgements: Mapping[str, Judgement]) -> dict[str, str]:
    """All tags. A tag that an earlier scorer has set already is stored as `<scorer>.<tag>`.

    `check_tags` finds clashes of the built-in kinds before a run; a user's own scorer may still cause one.
    """
    tags: dict[str, str] = {}
    for name, judgement in judgements.items():
        for tag, value in judgement.tags.items():
            tags[f"{name}.{tag}" if tag in tags else tag] = value
    return tags


def _clash(tag: str, first: str, second: str) -> ValueError:
    return ValueError(
        f"scorers must set different tags, got {tag!r} from both {first!r} and {second!r}: remove one of them"
    )


def _merge_spans(judgements: Mapping[str, Judgement]) -> tuple[Span, ...]:
    return tuple(span for judgement in judgements.values() for span in judgement.spans)


def _first_answer(judgements: Mapping[str, Judgement]) -> tuple[str | None, bool | None]:
    """`answer` and `answer_ok` of the first scorer that has either: both are always of the same scorer."""
    for judgement in judgements.values():
        if judgement.answer is not None or judgement.answer_ok is not None:
            return judgement.answer, judgement.answer_ok
    return None, None
