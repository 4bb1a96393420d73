"""Several judgements of one completion into one reward. In: Judgements by scorer name. Out: a Sample.

The only place that combines scores; called for every completion that is judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from configs.kinds.scorers import SCORERS, ScorerCommon
from configs.origins import POLICY
from rollouts.records import Completion, Judgement, Sample, Span

_COMBINES = ("sum", "multiply", "gate")


def check_tags(commons: Mapping[str, ScorerCommon]) -> None:
    """Refuse two scorers that give the same tag, as far as their kinds tell; called when a config is read.

    Raises:
        ValueError: naming both scorers and the tag.
    """
    giver: dict[str, str] = {}
    for name, common in commons.items():
        for tag in SCORERS[common.kind].tags if common.kind in SCORERS else ():
            if tag in giver:
                raise _clash(tag, giver[tag], name)
            giver[tag] = name


def combine(
    completion: Completion,
    judgements: Mapping[str, Judgement],
    commons: Mapping[str, ScorerCommon],
    origin: str = POLICY,
) -> Sample:
    """reward = gate x product(multiply) x sum(weight x score), over scorers in config order.

    A gate is 0 where its score is 0, else 1. Without a weighted scorer the sum is 1 if there is a gate or
    factor and 0 otherwise. A null score of any scorer that takes part makes the reward null, and so does an
    overflow; one with combine=sum and weight 0 takes no part. `reward_vector` holds every scorer's own score,
    in config order.

    Where two scorers give the same tag, the later one's is kept as `<scorer>.<tag>`.

    Raises:
        ValueError: the mappings name different scorers, or a `combine` is unknown.
    """
    if judgements.keys() != commons.keys():
        raise ValueError(f"judgements must be of scorers {list(commons)}, got {list(judgements)}")
    ordered = {name: judgements[name] for name in commons}
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
        reward=_reward(ordered, commons),
    )


def _reward(judgements: Mapping[str, Judgement], commons: Mapping[str, ScorerCommon]) -> float | None:
    gate, product = 1.0, 1.0
    terms: list[float] = []
    num_factors = 0
    for name, common in commons.items():
        if common.combine not in _COMBINES:
            raise ValueError(f"scorers.{name}.combine must be one of {_COMBINES}, got {common.combine!r}")
        if common.combine == "sum" and common.weight == 0:
            continue
        score = judgements[name].score
        if score is None:
            return None
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
    """All tags; one that an earlier scorer gave already goes under `<scorer>.<tag>`.

    `check_tags` refuses kinds that are known to clash before a run; a user's own may still do so in it.
    """
    tags: dict[str, str] = {}
    for name, judgement in judgements.items():
        for tag, value in judgement.tags.items():
            tags[f"{name}.{tag}" if tag in tags else tag] = value
    return tags


def _clash(tag: str, first: str, second: str) -> ValueError:
    return ValueError(f"scorers must give different tags, got {tag!r} from both {first!r} and {second!r}")


def _merge_spans(judgements: Mapping[str, Judgement]) -> tuple[Span, ...]:
    return tuple(span for judgement in judgements.values() for span in judgement.spans)


def _first_answer(judgements: Mapping[str, Judgement]) -> tuple[str | None, bool | None]:
    """Of the first scorer that gives either: never one scorer's answer with another's verdict."""
    for judgement in judgements.values():
        if judgement.answer is not None or judgement.answer_ok is not None:
            return judgement.answer, judgement.answer_ok
    return None, None
