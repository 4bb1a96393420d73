"""The scorer `partition`: scores by hand, who is compared, missing qualities, and any order of the rows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.sandbox_protocol import check_judgements
from configs.kinds.base import load_target
from configs.kinds.partition import PartitionOptions
from configs.kinds.scorers import SCORERS
from configs.load import ConfigError, load_config
from rewards.partition import PartitionScorer
from rollouts.records import Completion, Judgement, Prompt

PROMPT = Prompt(prompt_id="p", messages=(("user", "1 + 1 = ?"),), answer="2", domain="math")


def completion(text: str, number: int = 0, quality: Judgement | None = None) -> Completion:
    return Completion(
        sample_id=f"g.{number}",
        seed=number,
        token_ids=(1,),
        text=text,
        finish_reason="stop",
        behavior_logprobs=(-1.0,),
        versions=((0, 0),),
        judgements={} if quality is None else {"correct": quality},
    )


def answered(answer: str | None, right: bool | None = True, score: float = 1.0) -> Judgement:
    return Judgement(score=score, answer=answer, answer_ok=right)


def judge(completions: Sequence[Completion], **options: object) -> list[Judgement]:
    scorer = PartitionScorer(PartitionOptions(**options))  # type: ignore[arg-type]
    return check_judgements(asyncio.run(scorer.score(PROMPT, completions)), len(completions))


ANSWERS = [answered("7", False), answered("2"), answered("2"), answered("3", False), answered("4")]


def group(qualities: Sequence[Judgement] = tuple(ANSWERS)) -> list[Completion]:
    return [completion(f"text {at}", at, each) for at, each in enumerate(qualities)]


def test_over_all_by_hand() -> None:
    """Answers 7, 2, 2, 3, 4 of five: (5 - 2)/4 for the two 2s, 1 for the others. The largest class is 0."""
    found = judge(group(), quality="correct", over="all")
    assert [each.score for each in found] == [1.0, 0.75, 0.75, 1.0, 1.0]
    partitions = [(each.partition.partition_id, each.partition.size) for each in found if each.partition]
    assert partitions == [(3, 1), (0, 2), (0, 2), (1, 1), (2, 1)]
    assert found[0].numbers == {"partitions": 4.0, "members": 5.0, "distance": 1.0}
    assert json.loads(found[0].texts["edges"]) == [9, 0, 0, 0, 0, 0, 0, 0, 0, 1]


def test_over_correct_by_hand() -> None:
    """Right answers are 2, 2 and 4: (3 - 2)/2, and 1; what is wrong has the floor and no partition."""
    found = judge(group(), quality="correct", floor=0.2)
    assert [each.score for each in found] == [0.2, 0.5, 0.5, 0.2, 1.0]
    assert [each.partition is None for each in found] == [True, False, False, True, False]
    assert found[0].numbers == {} and found[1].numbers["members"] == 3.0


def test_equal_answers_have_the_floor_and_a_single_right_one_all() -> None:
    same = judge(group([answered("2")] * 3), quality="correct")
    assert [each.score for each in same] == [0.1] * 3
    alone = judge(group([answered("2"), answered("3", False)]), quality="correct")
    assert [each.score for each in alone] == [1.0, 0.1]
    assert [each.score for each in judge(group([answered("3", False)]), quality="correct")] == [0.1]


def test_correct_by_score_where_no_answer_is_read() -> None:
    """From `correct_from` on."""
    graded = [answered(None, None, score) for score in (0.4, 0.5, 0.9)]
    found = judge(group(graded), quality="correct", correct_from=0.5, equivalence="ngram", ngram=2)
    assert [each.partition is None for each in found] == [True, False, False]


def test_an_unknown_quality_is_no_score() -> None:
    """The completion gets the status of the scorer that failed; the others are compared without it."""
    late = Judgement(score=None, status="timeout")
    found = judge(group([answered("2"), late, answered("2"), answered("4")]), quality="correct")
    assert [(each.score, each.status) for each in found] == [
        (0.5, "ok"),
        (None, "timeout"),
        (0.5, "ok"),
        (1.0, "ok"),
    ]
    assert "correct" in found[1].detail
    with pytest.raises(ValueError, match="judgement of scorer 'correct' must be there"):
        judge([completion("a")], quality="correct")


def test_no_answer_is_an_answer_of_its_own() -> None:
    """Texts without an answer are equivalent to each other, and not to an empty answer."""
    found = judge(group([answered(None), answered(None), answered("")]), quality="correct")
    assert [each.score for each in found] == [0.5, 0.5, 1.0]


def test_ngrams_by_hand() -> None:
    """Bigrams of "a b c" and "a B d": one of two. Unigrams of "x y" and "y": one of two words."""
    options = {"over": "all", "equivalence": "ngram"}
    texts = [completion("a b c"), completion("a  B d"), completion("x y"), completion("y")]
    found = judge(texts[:2], ngram=2, threshold=0.5, **options)
    assert [each.score for each in found] == [0.1, 0.1] and found[0].numbers["distance"] == 0.5
    assert [each.score for each in judge(texts[:2], ngram=2, threshold=0.51, **options)] == [1.0, 1.0]
    assert [each.score for each in judge(texts[2:], ngram=1, **options)] == [0.1, 0.1]
    # fewer words than an n-gram has: the whole text is one
    assert [each.score for each in judge(texts[2:], ngram=4, **options)] == [1.0, 1.0]
    # white space is no difference
    assert [each.score for each in judge([completion("a b"), completion("a\n b")], **options)] == [0.1, 0.1]


def test_behaviour_by_hand() -> None:
    """Outcomes word by word; whether a program is correct is another question."""
    outcomes = ("passed wrong_answer", "passed timeout", "passed wrong_answer", "passed passed")
    programs = [Judgement(score=0.5, answer_ok=False, texts={"outcomes": each}) for each in outcomes]
    options = {"quality": "correct", "equivalence": "behaviour"}
    found = judge(group(programs), over="all", **options)
    assert [each.score for each in found] == pytest.approx([2 / 3, 1.0, 2 / 3, 1.0])
    with pytest.raises(ValueError, match="scorer 'correct' must store the text outcomes"):
        judge(group([answered("2"), answered("2")]), **options)


def test_distance_and_largest() -> None:
    """Overlaps 0.5, 0 and 0: distances 0.75, 0.75 and 1, halved twice by nothing; then over the largest."""
    texts = [completion("a b c"), completion("a b d"), completion("e f g")]
    options = {"over": "all", "equivalence": "ngram", "ngram": 2, "score": "distance"}
    assert [each.score for each in judge(texts, **options)] == pytest.approx([0.75, 0.75, 1.0])
    near = [completion("a b c"), completion("a b d"), completion("a b e")]
    assert [each.score for each in judge(near, **options)] == pytest.approx([0.5] * 3)
    assert [each.score for each in judge(near, normalise="largest", **options)] == pytest.approx([1.0] * 3)


WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(" ".join)
ROWS = st.lists(st.tuples(WORDS, st.sampled_from(["1", "2", None]), st.booleans()), min_size=1, max_size=7)


@given(ROWS, st.randoms(use_true_random=False), st.sampled_from(["components", "greedy", "complete"]))
def test_the_order_of_rows_changes_nothing(
    rows: list[tuple[str, str | None, bool]], random: object, rule: str
) -> None:
    """Each row's judgement, its partition id included, whatever order the group has."""
    completions = [
        completion(text, at, answered(answer, right)) for at, (text, answer, right) in enumerate(rows)
    ]
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    for options in ({"equivalence": "answer", "over": "all"}, {"equivalence": "ngram", "ngram": 2}):
        options = {"quality": "correct", "rule": rule, "threshold": 0.4, **options}
        straight = judge(completions, **options)
        shuffled = judge([completions[at] for at in order], **options)
        assert [straight[at] for at in order] == shuffled


def test_the_kind_and_its_options() -> None:
    assert load_target(SCORERS["partition"].target) is PartitionScorer
    config = ["scorers.diverse={kind: partition, quality: correct, combine: multiply}"]
    assert load_config("debug", config).scorers["diverse"]["rule"] == "greedy"
    for wrong, message in {
        "{kind: partition}": r"diverse\.quality.*must name the scorer that says what is correct",
        "{kind: partition, over: all}": r"diverse\.quality.*must name the scorer that reads the answers",
        "{kind: partition, quality: correct, equivalence: behaviour}": r"diverse\.quality.*runs programs",
        "{kind: partition, quality: corect}": r"diverse\.quality.*must name a scorer of this config",
        "{kind: partition, quality: diverse}": r"diverse\.quality.*must not name diverse",
        "{kind: partition, quality: correct, after: [nobody]}": r"diverse\.after.*must name a scorer",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load_config("debug", [f"scorers.diverse={wrong}"])
    around = ["scorers.correct.after=[diverse]", *config]
    with pytest.raises(ConfigError, match=r"correct\.after.*must not name diverse, which runs after"):
        load_config("debug", around)
