"""What crosses to the process that judges: a completion comes back as it was sent."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from rollout_rows import make_group, make_sample

from actors.sandbox_protocol import (
    check_judgements,
    decode_completion,
    decode_judgement,
    decode_prompt,
    encode_group,
    encode_judgement,
)
from rollouts.records import Judgement, Partition, Span


@pytest.mark.parametrize("mask", [None, (True, False, True)])
def test_a_completion_there_and_back(mask: tuple[bool, ...] | None) -> None:
    """Tuples stay tuples, a loss mask too: scorers that count tokens count the same ones there."""
    completion = replace(make_sample("a", 3).completion, loss_mask=mask)
    prompt = make_group(0, ()).submission.prompt
    sent = json.loads(json.dumps(encode_group(prompt, [completion])))
    assert decode_completion(sent["completions"][0]) == completion
    assert decode_prompt(sent["prompt"]) == prompt


def test_what_other_scorers_said_there_and_back() -> None:
    """For a scorer that runs after others: scores, statuses, spans and partitions."""
    said = {
        "correct": Judgement(
            score=1.0,
            tags={"format": "code"},
            spans=(Span(label="answer", start=1, end=2),),
            answer="2",
            answer_ok=True,
            partition=Partition(partition_id=1, size=2),
        ),
        "late": Judgement(score=None, status="timeout", detail="why"),
    }
    sent = json.loads(
        json.dumps(
            encode_group(
                make_group(0, ()).submission.prompt,
                [replace(make_sample("a", 3).completion, judgements=said)],
            )
        )
    )
    assert decode_completion(sent["completions"][0]).judgements == said


def test_what_is_stored_beside_a_score_there_and_back() -> None:
    """A partition, numbers and texts."""
    judgement = Judgement(
        score=0.5, partition=Partition(partition_id=2, size=3), numbers={"n": 2.0}, texts={"why": "so"}
    )
    assert decode_judgement(json.loads(json.dumps(encode_judgement(judgement)))) == judgement


@pytest.mark.parametrize(
    "extras",
    [
        {"partition": (1, 2)},
        {"partition": Partition(partition_id=-1, size=1)},
        {"partition": Partition(partition_id=True, size=1)},
        {"numbers": {"n": float("nan")}},
        {"numbers": {"n": "2"}},
        {"numbers": [1]},
        {"texts": {"why": 1}},
    ],
)
def test_what_cannot_be_stored_is_invalid(extras: dict[str, Any]) -> None:
    """Whether there is a score or not."""
    for judgement in (Judgement(score=1.0), Judgement(score=None, status="error")):
        (found,) = check_judgements([replace(judgement, **extras)], 1)
        assert (found.score, found.status) == (None, "invalid") and "of a wrong type" in found.detail
        assert check_judgements([judgement], 1) == [judgement]


def test_a_lone_surrogate_is_replaced_and_the_score_stays() -> None:
    """A policy may write one, and an answer quotes it: what cannot be stored is the character alone."""
    given = Judgement(score=0.0, answer="x\ud800", tags={"form\ud800": "a\udfff"}, texts={"why": "\ud83d so"})
    for found in (check_judgements([given], 1)[0], decode_judgement(encode_judgement(given))):
        assert (found.score, found.status, found.answer) == (0.0, "ok", "x\ufffd")
        assert found.tags == {"form\ufffd": "a\ufffd"} and found.texts == {"why": "\ufffd so"}


def test_integers_among_the_numbers_become_floats_or_are_refused() -> None:
    """A column of floats takes no integer that has no float, and one judgement would end the run."""
    (kept, huge) = check_judgements(
        [Judgement(score=1.0, numbers={"n": (1 << 60) + 1}), Judgement(score=1.0, numbers={"n": 10**400})], 2
    )
    assert kept.score == 1.0 and kept.numbers == {"n": float(1 << 60)}
    assert type(kept.numbers["n"]) is float
    assert huge.score is None and huge.status == "invalid"
