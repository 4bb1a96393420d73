"""Scores to one reward: the formula by hand, nulls, order, tags, answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.kinds.scorers import ScorerCommon
from rewards.combine import check_tags, combine
from rollouts.records import Completion, Judgement, Partition, Sample, Span

COMPLETION = Completion(
    sample_id="s0",
    seed=0,
    token_ids=(1, 2),
    text="a b",
    finish_reason="stop",
    behavior_logprobs=(-0.5, -0.25),
    versions=((0, 3),),
)
MISSING = Judgement(score=None, status="timeout")


def common(combine: str = "sum", weight: float = 0.0, kind: str = "constant") -> ScorerCommon:
    return ScorerCommon(kind=kind, weight=weight, combine=combine)


def combined(**entries: tuple[float | None, ScorerCommon]) -> Sample:
    judgements = {
        name: MISSING if score is None else Judgement(score=score) for name, (score, _) in entries.items()
    }
    return combine(COMPLETION, judgements, {name: shared for name, (_, shared) in entries.items()})


def test_the_whole_formula_by_hand() -> None:
    """gate 1 x (0.5 x 4) x (1.0 x 0.75 + 0.5 x -0.5 + nothing of the tagger) = 2 x 0.5 = 1."""
    sample = combined(
        correct=(0.75, common(weight=1.0)),
        format=(9.0, common()),
        allowed=(0.2, common("gate")),
        diverse=(0.5, common("multiply")),
        style=(-0.5, common(weight=0.5)),
        bonus=(4.0, common("multiply")),
    )
    assert sample.reward == 1.0
    assert sample.reward_vector == (0.75, 9.0, 0.2, 0.5, -0.5, 4.0)
    assert list(sample.scores.items()) == [
        ("correct", 0.75),
        ("format", 9.0),
        ("allowed", 0.2),
        ("diverse", 0.5),
        ("style", -0.5),
        ("bonus", 4.0),
    ]
    assert (sample.completion, sample.origin) == (COMPLETION, "policy")


@pytest.mark.parametrize(
    ("entries", "reward"),
    [
        ({"a": (0.5, common(weight=2.0))}, 1.0),
        ({"a": (0.5, common(weight=-2.0))}, -1.0),
        ({"a": (0.0, common("gate")), "b": (1.0, common(weight=1.0))}, 0.0),
        ({"a": (-0.5, common("gate")), "b": (3.0, common(weight=1.0))}, 3.0),  # a gate has no size
        ({"a": (0.5, common("multiply")), "b": (0.5, common("multiply"))}, 0.25),  # no sum: it is 1
        ({"a": (0.7, common("gate"))}, 1.0),
        ({"a": (0.0, common("gate"))}, 0.0),
        ({"a": (0.5, common("multiply")), "b": (9.0, common())}, 0.5),
        ({"a": (0.5, common("multiply", weight=3.0))}, 0.5),  # weights belong to sums
        ({"a": (9.0, common())}, 0.0),  # nothing takes part
        ({}, 0.0),
        ({"a": (None, common(weight=1.0)), "b": (1.0, common(weight=1.0))}, None),
        ({"a": (None, common("multiply")), "b": (1.0, common(weight=1.0))}, None),
        ({"a": (None, common("gate")), "b": (0.0, common("gate"))}, None),  # not 0: nobody knows
        ({"a": (0.0, common("gate")), "b": (None, common(weight=1.0))}, None),
        ({"a": (None, common()), "b": (1.0, common(weight=1.0))}, 1.0),  # a tagger takes no part
        ({"a": (1e308, common("multiply")), "b": (1e308, common("multiply"))}, None),  # overflows
    ],
)
def test_cases_by_hand(entries: dict[str, tuple[float | None, ScorerCommon]], reward: float | None) -> None:
    """One rule at a time."""
    assert combined(**entries).reward == reward


def test_statuses_are_kept_beside_null_scores() -> None:
    """A null reward can be traced to the scorer and to what happened."""
    sample = combined(a=(None, common(weight=1.0)), b=(1.0, common()))
    assert sample.score_status == {"a": "timeout", "b": "ok"}
    assert sample.reward_vector == (None, 1.0)


def test_order_is_the_configs() -> None:
    """Judgements arrive as scorers finish; columns must not depend on it."""
    commons = {"b": common(weight=1.0), "a": common(weight=1.0)}
    judgements = {"a": Judgement(score=1.0), "b": Judgement(score=2.0)}
    sample = combine(COMPLETION, judgements, commons)
    assert sample.reward_vector == (2.0, 1.0)
    assert list(sample.scores) == ["b", "a"]


def test_answer_comes_from_the_first_that_gives_one() -> None:
    """Answer and verdict together: a reader that found nothing says so, and is not overruled by the next."""
    span = Span(label="answer", start=1, end=2)
    judgements = {
        "tags": Judgement(score=1.0, tags={"format": "code"}),
        "rule": Judgement(score=0.0, answer_ok=False, tags={"rule": "strict"}),
        "math": Judgement(score=1.0, answer="7", answer_ok=True, spans=(span,)),
    }
    commons = {"tags": common(), "rule": common(weight=1.0), "math": common(weight=1.0)}
    sample = combine(COMPLETION, judgements, commons)
    assert (sample.answer, sample.answer_ok) == (None, False)
    assert sample.spans == (span,)
    assert sample.tags == {"format": "code", "rule": "strict"}
    order = ("tags", "math", "rule")
    swapped = combine(COMPLETION, judgements, {name: commons[name] for name in order})
    assert (swapped.answer, swapped.answer_ok) == ("7", True)


def test_what_is_stored_beside_scores_carries_the_scorers_name() -> None:
    """Also of a scorer whose score is null: a judge that failed was paid for. The first partition counts."""
    part = Partition(partition_id=0, size=2)
    judgements = {
        "a": Judgement(score=None, status="error", numbers={"tokens": 5.0}, texts={"reason": "late"}),
        "b": Judgement(score=1.0, numbers={"tokens": 7.0}, partition=part),
        "c": Judgement(score=1.0, partition=Partition(partition_id=1, size=1)),
    }
    sample = combine(COMPLETION, judgements, {name: ScorerCommon(kind="x") for name in judgements})
    assert sample.numbers == {"a/tokens": 5.0, "b/tokens": 7.0}
    assert sample.texts == {"a/reason": "late"} and sample.partition == part


def test_clashing_tags_are_refused() -> None:
    """At the start where the kinds tell; where only the user's code does, the later one is told apart."""
    twice = {"first": common(kind="format_tags"), "second": common(kind="format_tags")}
    with pytest.raises(ValueError, match="got 'format' from both 'first' and 'second'"):
        check_tags(twice)
    check_tags({"first": common(kind="format_tags"), "second": common(kind="lab_answer")})
    judgements = {name: Judgement(score=1.0, tags={"style": name}) for name in ("mine", "yours")}
    sample = combine(COMPLETION, judgements, {"mine": common(), "yours": common()})
    assert sample.tags == {"style": "mine", "yours.style": "yours"}


def test_misuse_is_named() -> None:
    """A missing judgement or a misspelt policy is no failure of the sample."""
    with pytest.raises(ValueError, match=r"scorers \['a'\], got \[\]"):
        combine(COMPLETION, {}, {"a": common(weight=1.0)})
    with pytest.raises(ValueError, match=r"scorers\.a\.combine must be one of"):
        combined(a=(1.0, common("add")))


SCORE = st.none() | st.floats(-10, 10)
ENTRY = st.tuples(SCORE, st.builds(common, st.sampled_from(["sum", "multiply", "gate"]), st.floats(-2, 2)))


@given(st.dictionaries(st.sampled_from("abcdef"), ENTRY))
def test_null_exactly_when_a_participant_is_null(
    entries: dict[str, tuple[float | None, ScorerCommon]],
) -> None:
    """Without overflow a reward is null for one reason only, and never NaN."""
    takes_part = [score for score, rule in entries.values() if rule.combine != "sum" or rule.weight != 0]
    reward = combined(**entries).reward
    assert (reward is None) == (None in takes_part)
    assert reward is None or abs(reward) < float("inf")
