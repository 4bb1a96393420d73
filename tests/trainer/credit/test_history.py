"""Counts of earlier answers: what counts, once; the same after a checkpoint; bounded for any run."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from trainer.credit.history import MAX_ANSWERS, AnswerHistory

Row = tuple[str, str | None, bool | None]


def index(rows: Sequence[Row], origins: Sequence[str] = (), rewards: Sequence[float | None] = ()) -> pa.Table:
    """The columns of a step's index that are counted; policy rows with a reward unless said otherwise."""
    names, answers, right = (list(column) for column in zip(*rows, strict=True))
    return pa.table(
        {
            "prompt_id": pa.array(names, pa.string()),
            "answer": pa.array(answers, pa.string()),
            "answer_ok": pa.array(right, pa.bool_()),
            "origin": pa.array(list(origins) or ["policy"] * len(rows), pa.string()),
            "reward": pa.array(list(rewards) or [1.0] * len(rows), pa.float64()),
        }
    )


ASKED: tuple[Row, ...] = (("p", "3", None), ("p", "4", None), ("p", None, None), ("q", "3", None))


def seen(history: AnswerHistory) -> list[tuple[int, int, int]]:
    """(visits, successes, failures) of ASKED."""
    found = history.before(index(ASKED))
    columns = (found.visits_N.tolist(), found.successes_N.tolist(), found.failures_N.tolist())
    return list(zip(*columns, strict=True))


def test_by_hand() -> None:
    """Of p: 3 twice, 4 once, one not extracted and one not checked; rows of the same step do not count."""
    history = AnswerHistory()
    assert seen(history) == [(0, 0, 0)] * 4
    step = index(
        [("p", "3", True), ("p", "3", True), ("p", "4", False), ("p", None, False), ("p", None, None)]
    )
    assert history.before(step).visits_N.tolist() == [0] * 5
    history.add(step)
    assert seen(history) == [(2, 2, 2), (1, 2, 2), (2, 2, 2), (0, 0, 0)]


def test_only_policy_rows_with_a_reward_count() -> None:
    history = AnswerHistory()
    rows: list[Row] = [("p", "3", True)] * 5
    history.add(index(rows, ("policy", "replay", "refined", "sft", "policy"), (1.0, 1.0, 1.0, None, None)))
    assert seen(history)[0] == (1, 1, 0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from("pq"), st.none() | st.text(max_size=3), st.sampled_from([True, False, None])
        ),
        min_size=1,
        max_size=12,
    ),
    st.permutations(range(12)),
)
def test_the_state_goes_through_json_and_order_does_not_matter(rows: list[Row], order: list[int]) -> None:
    """Counting continues after a restore; the empty answer and no answer are different."""
    straight, resumed = AnswerHistory(), AnswerHistory()
    straight.add(index(rows))
    resumed.restore(json.loads(json.dumps(straight.state())))
    moved = AnswerHistory()
    moved.add(index([rows[place] for place in order if place < len(rows)]))
    for history in (straight, resumed, moved):
        history.add(index(rows))
        found = history.before(index(rows)).visits_N.tolist()
        assert found == [2 * sum(row[:2] == other[:2] for other in rows) for row in rows]
    resumed.restore({})
    assert seen(resumed) == [(0, 0, 0)] * 4


def test_tags_are_counted_if_a_bonus_asks() -> None:
    """By prompt and value, with the rules of answers; they are in the state only then, and come back."""
    rows: list[Row] = [*[("p", "3", True)] * 3, ("q", "3", True)]
    tags = [[("format", "a"), ("other", "x")], [("format", "a")], [], [("format", "a")]]
    step = index(rows).append_column("tags", pa.array(tags, pa.map_(pa.string(), pa.string())))
    plain, counting = AnswerHistory(), AnswerHistory(["format"])
    plain.add(step)
    assert all(len(kept) == 3 for kept in plain.state().values())  # type: ignore[arg-type]
    assert plain.before(step).tag_visits_N.tolist() == [{}, {}, {}, {}]
    counting.add(step)
    counting.add(step.slice(0, 1))
    resumed = AnswerHistory(["format"])
    resumed.restore(json.loads(json.dumps(counting.state())))
    for history in (counting, resumed):
        found = history.before(step)
        assert found.tag_visits_N.tolist() == [{"format": 3}, {"format": 3}, {}, {"format": 1}]
        assert found.visits_N.tolist() == [4, 4, 4, 1]
    resumed.restore(plain.state())  # a run that began without the bonus
    assert resumed.before(step).tag_visits_N.tolist() == [{"format": 0}, {"format": 0}, {}, {"format": 0}]


def test_it_is_bounded() -> None:
    """64 answers of a prompt have their own counts; later new ones share one; rows without an answer keep
    theirs.
    """
    history = AnswerHistory()
    for number in range(3 * MAX_ANSWERS):
        history.add(index([("p", f"answer {number} " + "x" * 500, False), ("p", None, False)]))
    known = index([("p", f"answer {number} " + "x" * 500, None) for number in (0, MAX_ANSWERS - 1)])
    assert history.before(known).visits_N.tolist() == [1, 1]
    late: list[Row] = [("p", "answer 100 " + "x" * 500, None), ("p", "never", None), ("p", None, None)]
    found = history.before(index(late)).visits_N.tolist()
    assert found == [2 * MAX_ANSWERS, 2 * MAX_ANSWERS, 3 * MAX_ANSWERS]
    assert len(json.dumps(history.state())) < 2000
