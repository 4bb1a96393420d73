"""A second rollouter works, from the config to the committed rows."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pytest
from added_rows import check_added_rows
from fresh_imports import fresh_imports
from loop_fakes import LOGPROB, FakeGenerator, FakeScorer, FileBuffer, scorers, token_prompts
from rollouters import ENVIRONMENT
from trial import NUM_STEPS, Killed, Trial

from configs.bound import bind
from configs.errors import ConfigError
from configs.kinds.base import OwnOptions
from configs.kinds.scorers import ScorerCommon
from configs.load import load_config
from configs.origins import ORIGINS
from configs.schema import RolloutConfig, RunConfig
from rollouts.records import Completion, Group, Judgement, Prompt, Sampling, Span, Submission
from rollouts.store import committed_evals, read_eval, read_step
from trainer.data.prompts import PromptOrder
from trainer.rollout.pausable_clock import Clock
from trainer.rollout.producer import Producer
from trainer.rollout.rollouter import BoundRollouter, Encoders, RolloutTools, ScorerSet, make_submission
from trainer.rollout.single_turn import single_turn

TWO_TURNS = {"kind": "rollouters:two_turns", "options": {}}
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=10)


@dataclass
class RisingGenerator(FakeGenerator):
    """Loads new weights after every reply, and is slower for odd seeds: replies come out of order."""

    async def generate(self, submission: Submission) -> list[Completion]:
        await asyncio.sleep(0.001 * (submission.seeds[0] % 2))
        found = await FakeGenerator.generate(self, submission)
        self.version = max(self.version, 0) + 1
        return found


def tools_for(
    submission: Submission, generator: FakeGenerator | None = None, longest: int = 16
) -> RolloutTools:
    return RolloutTools(
        submission,
        generator or FakeGenerator(),
        scorers(),
        longest=longest,
        limit_s=60.0,
        clock=Clock(),
    )


@dataclass
class Reader(FakeScorer):
    """Scores by what others said; counts the scorers that have ended when it begins."""

    ended: list[str] = field(default_factory=list)
    seen: list[dict[str, Judgement]] = field(default_factory=list)
    name: str = ""
    delay_s: float = 0.0

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        await asyncio.sleep(self.delay_s)
        self.seen += [dict(each.judgements) for each in completions]
        self.ended.append(self.name)
        return [
            Judgement(score=sum((j.score or 0.0) for j in each.judgements.values()) + 1.0)
            for each in completions
        ]


async def scored_by(
    readers: dict[str, Reader], after: dict[str, tuple[str, ...]], limit_s: float = 60.0
) -> Group:
    """A group of two that these scorers have judged."""
    submission = submission_of()
    common = {name: ScorerCommon(kind="constant", weight=1.0) for name in readers}
    sets = ScorerSet(scorers=readers, common_keys=common, after=after)
    tools = RolloutTools(submission, FakeGenerator(), sets, longest=16, limit_s=limit_s, clock=Clock())
    return await single_turn(submission, tools)


def test_a_scorer_gets_what_those_before_it_said() -> None:
    """a and b run at once, c after both, d after c; nobody else sees a judgement, and none is stored."""
    ended: list[str] = []
    names = {"d": 0.0, "c": 0.0, "b": 0.01, "a": 0.02}
    readers = {name: Reader(ended=ended, name=name, delay_s=delay_s) for name, delay_s in names.items()}
    group = asyncio.run(scored_by(readers, {"c": ("a", "b"), "d": ("c",)}))
    assert ended == ["b", "a", "c", "d"]
    assert readers["a"].seen == readers["b"].seen == [{}, {}]
    assert [sorted(each) for each in readers["c"].seen] == [["a", "b"]] * 2
    assert [{name: each.score for name, each in seen.items()} for seen in readers["d"].seen] == [
        {"c": 3.0}
    ] * 2
    assert [sample.scores for sample in group.samples] == [{"d": 4.0, "c": 3.0, "b": 1.0, "a": 1.0}] * 2
    assert all(not sample.completion.judgements for sample in group.samples)


def test_a_late_scorer_is_late_for_those_after_it_too() -> None:
    """The one after it gets a null judgement, and has to say what that means for its own."""
    readers = {"slow": Reader(name="slow", delay_s=5.0), "after": Reader(name="after")}
    group = asyncio.run(scored_by(readers, {"after": ("slow",)}, limit_s=0.05))
    late = {"slow": "timeout", "after": "timeout"}
    assert [sample.score_status for sample in group.samples] == [late] * 2


def test_every_judgement_is_observed_with_its_scorer() -> None:
    """Those that the group's deadline or a wrong span made null too, each with a reason."""
    seen: list[tuple[str, str, str]] = []

    class Beyond(FakeScorer):
        async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
            return [
                Judgement(score=1.0, spans=(Span(label="answer", start=0, end=10_000),)) for _ in completions
            ]

    readers = {"good": Reader(name="good"), "slow": Reader(name="slow", delay_s=5.0), "beyond": Beyond()}
    sets = replace(
        scorers(), scorers=readers, observe=lambda name, each: seen.append((name, each.status, each.detail))
    )

    async def score() -> int:
        tools = RolloutTools(submission_of(), FakeGenerator(), sets, longest=16, limit_s=0.05, clock=Clock())
        completions = await tools.generate()
        await tools.score(completions)
        return len(completions)

    num_completions = asyncio.run(score())
    assert sorted(set(seen)) == [
        ("beyond", "invalid", "a span ends beyond the completion"),
        ("good", "ok", ""),
        ("slow", "timeout", "the group reached rollout.group_timeout_s"),
    ]
    assert len(seen) == 3 * num_completions


def submission_of(index: int = 3, num_samples: int = 2) -> Submission:
    return make_submission(index, token_prompts(1)[0], num_samples, SAMPLING, 0)


def test_a_config_names_its_own_under_the_allow_list() -> None:
    """Like every kind: a module under a prefix in allow; single_turn by default."""
    assert load_config("debug").rollouter == {"kind": "single_turn"}
    own = ["rollouter.kind=rollouters:two_turns", "rollouter.options={turns: 2}"]
    assert load_config("debug", [*own, "allow=[rollouters]"]).rollouter["options"] == {"turns": 2}
    with pytest.raises(ConfigError, match=r"rollouter\.kind.*under a prefix in allow"):
        load_config("debug", own)
    with pytest.raises(ConfigError, match=r"rollouter\.kind.*single_turn"):
        load_config("debug", ["rollouter.kind=single_turns"])


def test_two_turns_become_rows(tmp_path: Path) -> None:
    """Three tokens, two of the environment, three more under newer weights: the middle is masked, without
    logprobs, under one id, and both versions are at their tokens.
    """
    config = RunConfig(rollout=RolloutConfig(group_size=2, groups_per_step=1), rollouter=TWO_TURNS)
    order, buffer = PromptOrder(token_prompts(1), 0, shuffle=False), FileBuffer(tmp_path, 1)
    producer = Producer(bind(config), order, RisingGenerator(), scorers(), buffer)

    async def rows() -> pa.RecordBatch:
        producer.top_up(0)
        await producer.settle(0)
        assert await buffer.take(1, 0) is not None
        return buffer.actor.shard([0, 1])

    found = asyncio.run(rows()).to_pylist()
    for number, row in enumerate(found):
        assert row["sample_id"] == f"00000000.{number}" and row["text"] == f"text {number} | text 0"
        assert len(row["token_ids"]) == 8 and tuple(row["token_ids"][3:5]) == ENVIRONMENT
        assert row["loss_mask"] == [True] * 3 + [False] * 2 + [True] * 3
        assert row["behavior_logprobs"] == [LOGPROB] * 3 + [None] * 2 + [LOGPROB] * 3
        assert [span["start"] for span in row["versions"]] == [0, 5]
        assert row["versions"][0]["version"] < row["versions"][1]["version"]
    assert found[0]["token_ids"][5:] != found[1]["token_ids"][5:]
    assert [row["reward"] for row in found] == [1.0, 0.0]


def test_a_run_of_two_turns(tmp_path: Path) -> None:
    """The whole loop: rows of eight tokens, of which six are learned; evaluations have one turn."""
    trial = Trial(tmp_path / "run", more={"rollouter": TWO_TURNS})
    assert trial.train()
    for step in range(1, NUM_STEPS + 1):
        rows = read_step(trial.folder, step).to_pylist()
        assert {len(row["token_ids"]) for row in rows} == {8} and {sum(row["loss_mask"]) for row in rows} == {
            6
        }
    # token_mean: four rows of six learned tokens
    assert trial.learner.learned[0].row_weight_N.tolist() == pytest.approx([1 / 24] * 4)
    assert committed_evals(trial.folder) == [0, 3, 6]
    evaluated = read_eval(trial.folder, 3).to_pylist()
    assert {len(row["token_ids"]) for row in evaluated} == {3} and all(all(r["loss_mask"]) for r in evaluated)


def test_a_run_of_two_turns_that_was_ended_resumes_to_the_same_end(tmp_path: Path) -> None:
    """Only groups are stored; the seeds of later turns depend on sample and turn alone."""
    whole, cut = (Trial(tmp_path / name, more={"rollouter": TWO_TURNS}) for name in ("whole", "cut"))
    assert whole.train()
    commits = [number for number, name in enumerate(whole.calls) if name == "buffer.commit"]
    cut.kill_at(commits[3], before=True)
    with pytest.raises(Killed):
        cut.train()
    again = Trial(tmp_path / "cut", attempt=2, more={"rollouter": TWO_TURNS})
    assert again.train()
    for step in range(1, NUM_STEPS + 1):
        assert read_step(whole.folder, step).equals(read_step(again.folder, step))


def test_refined_rows_fit(tmp_path: Path) -> None:
    """A rollouter of one's own makes them, without a refiner."""
    check_added_rows(tmp_path / "run", "refined")


def test_an_origin_is_one_line(tmp_path: Path) -> None:
    """With one more line in the table before anything else is imported: works like refined."""
    with fresh_imports():
        origins = importlib.import_module("configs.origins")
        origins.ORIGINS["echoed"] = origins.OriginSpec(
            sampled="other_context", learned="by_advantage", journaled=True, group_of=origins.POLICY
        )
        importlib.import_module("added_rows").check_added_rows(tmp_path / "run", "echoed")
    assert "echoed" not in ORIGINS


@pytest.mark.parametrize(
    ("how", "rule"),
    [
        ("empty", "at least one sample"),
        ("twice", "a sample_id of its own"),
        ("stranger", r"sample_id must begin with '00000000\.', got 'elsewhere\.0'"),
        ("samples", "must return the Group of its submission, got tuple"),
        ("other", "must return the Group of its submission"),
    ],
)
def test_a_group_that_is_none_is_refused(tmp_path: Path, how: str, rule: str) -> None:
    """The rollouter and the group are named; nothing reaches the buffer."""
    entry = {"kind": "rollouters:broken", "options": {"how": how}}
    config = RunConfig(rollout=RolloutConfig(group_size=2, groups_per_step=1), rollouter=entry)
    order, buffer = PromptOrder(token_prompts(1), 0, shuffle=False), FileBuffer(tmp_path, 1)
    producer = Producer(bind(config), order, FakeGenerator(), scorers(), buffer)

    async def run() -> None:
        producer.top_up(0)
        await producer.settle(0)

    with pytest.raises(ValueError, match=rf"rollouter rollouters:broken, group 0: .*{rule}"):
        asyncio.run(run())
    assert buffer.actor.waiting() == ()


def test_what_follows_a_context_has_its_limit() -> None:
    """A prompt of 3 tokens, 10 tokens of completion, 16 in all: a continued row has the rest of its ten, any
    other context the rest of the sixteen.
    """

    async def check() -> None:
        submission = submission_of()
        tools, own = tools_for(submission), submission.prompt_ids
        assert [tools.room((*own, *range(count))) for count in (0, 4, 9, 10, 12)] == [10, 6, 1, 0, 0]
        assert [tools.room([1] * count) for count in (3, 10, 15, 16, 20)] == [10, 6, 1, 0, 0]
        with pytest.raises(ValueError, match=r"leave room for a token within 16 .*got 13; see RolloutTools"):
            await tools.generate((*own, *range(10)), samples=[0], turn=1)

    asyncio.run(check())


def test_later_turns_have_ids_seeds_and_limits_of_their_own() -> None:
    """The submission itself first; then the sample's own seed and id, whatever was generated before."""
    asked: list[Submission] = []

    class Noting(FakeGenerator):
        async def generate(self, submission: Submission) -> list[Completion]:
            asked.append(submission)
            return await FakeGenerator.generate(self, submission)

    async def ask(*later: tuple[int, int]) -> dict[str, int]:
        asked.clear()
        submission = submission_of()
        tools = tools_for(submission, Noting())
        await tools.generate()
        assert asked == [submission]
        for sample, turn in later:
            await tools.generate((*submission.prompt_ids, 1, 2), samples=[sample], turn=turn)
        with pytest.raises(ValueError, match="generated once in a turn"):
            await tools.generate((1, 2), samples=[later[0][0]], turn=later[0][1])
        for wanted in (5, 50):
            await tools.generate((*submission.prompt_ids, 1, 2), samples=[0], turn=wanted, max_tokens=wanted)
        assert [each.sampling.max_tokens for each in asked[-2:]] == [5, 8]
        del asked[-2:]
        assert {each.sampling.max_tokens for each in asked[1:]} == {8}
        return {each.sample_ids[0]: each.seeds[0] for each in asked[1:]}

    one, other = asyncio.run(ask((0, 1), (1, 1), (0, 2))), asyncio.run(ask((0, 2), (0, 1), (1, 1)))
    assert one == other and list(one) == ["00000003.0.1", "00000003.1.1", "00000003.0.2"]
    assert len({*one.values(), *submission_of().seeds}) == 5


def test_a_later_turn_that_is_stuck_ends_with_the_group(tmp_path: Path) -> None:
    """One deadline for all turns: the error names group, prompt and limit, as for a first turn."""

    class StuckLater(FakeGenerator):
        async def generate(self, submission: Submission) -> list[Completion]:
            if submission.sample_ids:
                await asyncio.Event().wait()
            return await FakeGenerator.generate(self, submission)

    rollout = RolloutConfig(group_size=2, groups_per_step=1, group_timeout_s=0.05)
    config = RunConfig(rollout=rollout, rollouter=TWO_TURNS)
    order = PromptOrder(token_prompts(1), 0, shuffle=False)
    producer = Producer(bind(config), order, StuckLater(), scorers(), FileBuffer(tmp_path, 1))

    async def run() -> None:
        producer.top_up(0)
        await producer.settle(0)

    with pytest.raises(TimeoutError, match=r"group 0 \(prompt p0\).*group_timeout_s = 0\.05"):
        asyncio.run(run())


async def hangs(submission: Submission, tools: RolloutTools, options: OwnOptions) -> Group:
    """Waits for something that is no tool, for ever."""
    await asyncio.Event().wait()
    raise AssertionError("nothing ends the wait")


def test_a_rollouter_that_hangs_outside_its_tools_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tools have nothing to end; the producer does, a little after the group's limit."""
    monkeypatch.setattr("trainer.rollout.producer.GRACE_S", 0.05)
    rollout = RolloutConfig(group_size=2, groups_per_step=1, group_timeout_s=0.05)
    kind = {"kind": "test_rollouter:hangs", "options": {}}
    config = RunConfig(rollout=rollout, rollouter=kind, allow=("test_rollouter",))
    order = PromptOrder(token_prompts(1), 0, shuffle=False)
    producer = Producer(bind(config), order, FakeGenerator(), scorers(), FileBuffer(tmp_path, 1))

    async def run() -> None:
        producer.top_up(0)
        await asyncio.wait_for(producer.settle(0), 20.0)

    with pytest.raises(TimeoutError, match=r"group 0 \(prompt p0\).*group_timeout_s = 0\.05"):
        asyncio.run(run())


def test_an_answer_that_the_prompt_begins_is_judged_whole() -> None:
    """Scorers get the prefill before the sampled text, as in TRL; the row keeps the sampled text."""
    seen: list[str] = []

    class Reader(FakeScorer):
        async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
            seen.extend(completion.text for completion in completions)
            return [Judgement(score=1.0) for _ in completions]

    async def group_of(*messages: tuple[str, str]) -> Group:
        submission = submission_of()
        submission = replace(submission, prompt=replace(submission.prompt, messages=messages))
        tools = RolloutTools(
            submission, FakeGenerator(), scorers(Reader()), longest=16, limit_s=60.0, clock=Clock()
        )
        return await single_turn(submission, tools)

    plain = asyncio.run(group_of(("user", "1+2?")))
    sampled = [sample.completion.text for sample in plain.samples]
    assert seen == sampled
    seen.clear()
    begun = asyncio.run(group_of(("user", "1+2?"), ("assistant", "It is ")))
    assert seen == [f"It is {text}" for text in sampled]
    assert [sample.completion.text for sample in begun.samples] == sampled


def test_a_rollouter_can_encode_what_a_tool_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the producer's tokenizer; without one the message names the text."""
    config = RunConfig(rollout=RolloutConfig(group_size=1, groups_per_step=1))
    order, buffer = PromptOrder(token_prompts(1), 0, shuffle=False), FileBuffer(tmp_path, 1)
    told: list[tuple[int, ...]] = []

    def encode(text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    async def reads(submission: Submission, tools: RolloutTools, options: object) -> Group:
        told.append(tools.encode("42"))
        return await single_turn(submission, tools)

    async def produce() -> None:
        producer = Producer(
            bind(config), order, FakeGenerator(), scorers(), buffer, encoders=Encoders(text=encode)
        )
        producer.top_up(0)
        await producer.settle(0)

    mine = BoundRollouter(kind="mine", function=reads, options=None)
    monkeypatch.setattr("trainer.rollout.producer.bound_rollouter", lambda config: mine)
    asyncio.run(produce())
    assert told == [(52, 50)]

    async def without() -> None:
        tools_for(submission_of()).encode("hello")

    with pytest.raises(ValueError, match="must have a tokenizer, got none for the text 'hello'"):
        asyncio.run(without())
