"""The rollouter `candidates`: how a text is split, which answer counts, and what the row stores."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from loop_fakes import FakeGenerator, token_prompts

from configs.kinds.rollouters import CandidatesOptions
from configs.kinds.scorers import ScorerCommon
from configs.load import load_config
from rollouts.records import Completion, Group, Judgement, Prompt, Sampling, Span, Submission
from rollouts.schema import group_to_batch, validate
from trainer.rollout.candidates import candidates, split
from trainer.rollout.pausable_clock import Clock
from trainer.rollout.rollouter import RolloutTools, ScorerSet, make_submission


@dataclass
class Writer(FakeGenerator):
    """Writes these texts."""

    texts: Sequence[str] = ()

    async def generate(self, submission: Submission) -> list[Completion]:
        found = await FakeGenerator.generate(self, submission)
        return [replace(each, text=text) for each, text in zip(found, self.texts, strict=True)]


@dataclass
class Table:
    """Scores by text; null where the table has None."""

    scores: Mapping[str, float | None]
    seen: list[str] = field(default_factory=list)

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        self.seen += [each.text for each in completions]
        found = [self.scores[each.text] for each in completions]
        span = (Span(label="answer", start=0, end=1),)
        return [
            Judgement(score=None, status="timeout") if score is None else Judgement(score=score, spans=span)
            for score in found
        ]


def group_of(texts: Sequence[str], scorers: Mapping[str, Table]) -> Group:
    """A group whose completions have these texts; scorer `a` counts twice, the others not at all."""

    async def made() -> Group:
        sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=10)
        submission = make_submission(0, token_prompts(1)[0], len(texts), sampling, 0)
        common = {name: ScorerCommon(kind="constant", weight=2.0 * (name == "a")) for name in scorers}
        sets = ScorerSet(scorers=scorers, common_keys=common)
        tools = RolloutTools(submission, Writer(texts=texts), sets, longest=16, limit_s=60.0, clock=Clock())
        return await candidates(submission, tools, CandidatesOptions(max_candidates=2))

    return asyncio.run(made())


def test_a_text_is_split() -> None:
    """At the separator; empty pieces are no answers, and what is beyond the limit is not scored."""
    options = CandidatesOptions(separator="<or>", max_candidates=2)
    assert split("x <or> y <or> z", options) == ["x", "y"]
    assert split("<or> <or>x", options) == ["x"]
    assert split(" x ", options) == ["x"] and split("", options) == [""] == split("<or>", options)


def test_the_best_answer_counts_and_all_are_stored() -> None:
    """Rewards 2 and 4 in the first row; of the second row's answers one has no score, so the other counts."""
    tables = {
        "a": Table({"x": 1.0, "y": 2.0, "z": None, "w": -1.0, "": 0.0}),
        "b": Table(dict.fromkeys("xyzw", 5.0)),
    }
    tables["b"] = Table({**tables["b"].scores, "": 6.0})
    group = group_of(["x<or>y", "z<or>w", ""], tables)
    assert tables["a"].seen == ["x", "y", "z", "w", ""]
    assert [sample.reward for sample in group.samples] == [4.0, -2.0, 0.0]
    assert [sample.scores["a"] for sample in group.samples] == [2.0, -1.0, 0.0]
    first, second, third = (dict(sample.numbers) for sample in group.samples)
    assert first == {
        "candidate/count": 2.0,
        "candidate/0/a": 1.0,
        "candidate/0/b": 5.0,
        "candidate/1/a": 2.0,
        "candidate/1/b": 5.0,
    }
    assert second == {
        "candidate/count": 2.0,
        "candidate/0/b": 5.0,
        "candidate/1/a": -1.0,
        "candidate/1/b": 5.0,
    }
    assert third == {"candidate/count": 1.0, "candidate/0/a": 0.0, "candidate/0/b": 6.0}
    assert [sample.completion.text for sample in group.samples] == ["x<or>y", "z<or>w", ""]
    assert all(not sample.spans for sample in group.samples)
    validate(group_to_batch(group, "run"))


def test_a_row_without_any_score_has_none() -> None:
    group = group_of(["z<or>z"], {"a": Table({"z": None})})
    assert group.samples[0].reward is None and group.samples[0].score_status == {"a": "timeout"}


def test_the_kind_and_its_options() -> None:
    config = load_config("debug", ["rollouter={kind: candidates, max_candidates: 4}"])
    assert config.rollouter["separator"] == "<or>"
    with pytest.raises(ValueError, match=r"rollouter\.separator.*must not be empty"):
        load_config("debug", ["rollouter={kind: candidates, separator: ''}"])
