"""Self-distillation: which answers get a row, what its teacher reads, what it repeats, and a whole run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from loop_fakes import FakeScorer
from refine_fakes import END, LastWord, WordPolicy, Words, tools_of, word_prompt, word_scorers
from trial import NUM_STEPS, Killed, Trial

from configs.bound import bind
from configs.errors import ConfigError
from configs.kinds.refiners import SdpoOptions
from configs.load import load_config
from rollouts.records import Completion, Group, Prompt, Sample, Submission
from rollouts.schema import as_replay, group_to_batch, validate
from rollouts.store import read_eval, read_step, read_summary
from trainer.rollout.refiner import BoundRefiner
from trainer.rollout.self_distillation import add_taught_rows, without_thinking
from trainer.rollout.single_turn import single_turn

LAB = SdpoOptions(prompts="lab")


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fsync: these tests end processes, not machines."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@dataclass
class MixedPolicy(WordPolicy):
    """Answers "it is 3", which is right, for the samples in `right`, else "it is 4"."""

    right: tuple[int, ...] = ()
    masks: dict[int, tuple[bool, ...]] = field(default_factory=dict)

    async def generate(self, submission: Submission) -> list[Completion]:
        found = []
        for completion in await super().generate(submission):
            number = int(completion.sample_id.split(".")[1])
            ids = (*self.words.text(f"it is {3 if number in self.right else 4}"), END)
            text, mask = self.words.read(ids[:-1]), self.masks.get(number)
            found.append(replace(completion, token_ids=ids, text=text, loss_mask=mask))
        return found


def taught(options: SdpoOptions, policy: WordPolicy, **more: object) -> Group:
    """A group of four answers to 1 + 2, after the refiner."""
    prompt = word_prompt(policy.words, **cast(dict[str, object], more.pop("prompt", {})))

    async def run() -> Group:
        submission, tools = tools_of(policy, prompt, **more)  # type: ignore[arg-type]
        group = await single_turn(submission, tools)
        bound = BoundRefiner(kind="sdpo", function=add_taught_rows, options=options)
        return await bound.refine(group, tools)

    group = asyncio.run(run())
    validate(group_to_batch(group, "run"))
    return group


def contexts(group: Group, words: Words) -> dict[str, str]:
    """What the teacher of each distilled row reads, by the parent's number."""
    rows = [sample for sample in group.samples if sample.origin == "distilled"]
    return {(row.parent_id or "").split(".")[1]: words.read(row.teacher_prompt_ids or ()) for row in rows}


def test_a_siblings_success_and_never_the_own_one() -> None:
    """One right answer among four teaches the three others; it has no other to learn from."""
    policy = MixedPolicy(right=(2,))
    group = taught(LAB, policy)
    shown = "<user> 1 + 2 ? it is 3 right again"
    assert contexts(group, policy.words) == {"0": shown, "1": shown, "3": shown}
    assert [sample.texts.get("teacher/solution_of") for sample in group.samples[4:]] == ["00000002.2"] * 3
    assert "critique/tried" not in group.samples[2].numbers
    # Two right answers teach each other.
    policy = MixedPolicy(right=(1, 3))
    rows = taught(LAB, policy).samples[4:]
    assert [(row.parent_id, row.texts["teacher/solution_of"]) for row in rows] == [
        ("00000002.0", "00000002.1"),
        ("00000002.1", "00000002.3"),
        ("00000002.2", "00000002.1"),
        ("00000002.3", "00000002.1"),
    ]


def test_a_row_repeats_its_parent() -> None:
    """Token ids, mask, logprobs, versions, scores: the parent's. Only names and the teacher differ."""
    policy = MixedPolicy(right=(0,), masks={1: (True, False, True, True)})
    group = taught(LAB, policy)
    rows = {row["sample_id"]: row for row in group_to_batch(group, "run").to_pylist()}
    row, parent = rows["00000002.1.taught"], rows["00000002.1"]
    own = {"sample_id", "parent_id", "origin", "numbers", "texts", "teacher_prompt_ids"}
    assert {name for name in row if row[name] != parent[name]} == own
    assert row["loss_mask"] == [True, False, True, True] and row["behavior_logprobs"][1] is None
    assert (row["parent_id"], row["origin"]) == ("00000002.1", "distilled")
    assert row["numbers"] == [("teacher/solution", 1.0), ("teacher/feedback", 0.0)]
    assert parent["numbers"] == [("critique/tried", 1.0)] and parent["teacher_prompt_ids"] is None
    assert policy.asked == ["<user> 1 + 2 ?"] * 4, "nothing more was sampled"


def test_feedback_on_wrong_answers() -> None:
    """Where no sibling is right, or with both; a right answer is told nothing."""
    failed = MixedPolicy()
    group = taught(replace(LAB, feedback="indicative"), failed)
    assert set(contexts(group, failed.words).values()) == {"<user> 1 + 2 ? wrong again"}
    assert [row.critique and row.critique.text for row in group.samples[4:]] == ["wrong"] * 4
    mixed = MixedPolicy(right=(0,))
    assert contexts(taught(replace(LAB, feedback="indicative"), mixed), mixed.words) == dict.fromkeys(
        "123", "<user> 1 + 2 ? it is 3 right again"
    )
    both = replace(LAB, feedback="indicative", feedback_with_solution=True)
    assert contexts(taught(both, mixed), mixed.words) == dict.fromkeys(
        "123", "<user> 1 + 2 ? it is 3 right wrong again"
    )
    alone = replace(LAB, feedback="with_truth", solutions=False)
    group = taught(alone, mixed)
    said = "<user> 1 + 2 ? wrong , the answer is 3 again"
    assert contexts(group, mixed.words) == dict.fromkeys("123", said)
    assert [row.numbers["critique/leaked"] for row in group.samples[4:]] == [1.0] * 3
    assert group.samples[4].numbers["teacher/feedback"] == 1.0
    rule = replace(LAB, feedback="rule", rule="test_self_distillation:quoting")
    assert contexts(taught(rule, failed), failed.words)["0"] == "<user> 1 + 2 ? wrong : it is 4 again"
    written = replace(LAB, feedback="policy")
    assert contexts(taught(written, failed), failed.words)["3"] == "<user> 1 + 2 ? it is 4 again"
    assert failed.asked[-1] == "<user> 1 + 2 ? it is 4 critique"


def quoting(prompt: Prompt, text: str) -> tuple[str, str]:
    """A rule critic."""
    return "bad", f"wrong : {text}"


def test_no_context_no_row() -> None:
    """A group that fails without feedback; only failed groups; answers without a reward; a lone success."""
    failed = MixedPolicy()
    assert len(taught(LAB, failed).samples) == 4
    assert not any(sample.numbers for sample in taught(LAB, failed).samples)
    only = replace(LAB, groups="failed", feedback="indicative")
    assert len(taught(only, MixedPolicy(right=(1,))).samples) == 4
    assert len(taught(only, failed).samples) == 8
    missing = LastWord(fails=lambda completion: completion.sample_id == "00000002.1")
    policy = MixedPolicy(right=(0,))
    group = taught(replace(LAB, feedback="indicative"), policy, scorers=word_scorers(missing))
    assert set(contexts(group, policy.words)) == {"2", "3"}


def test_a_critic_that_fails_leaves_the_solution() -> None:
    """Counted either way: with a solution the row is there, without one it is not."""

    class Fails:
        async def generate(self, requests: object) -> list[object]:
            raise TimeoutError

    options = replace(LAB, feedback="model", model="c", feedback_with_solution=True)
    group = taught(options, MixedPolicy(right=(0,)), models={"c": Fails()})
    assert [sample.origin for sample in group.samples[4:]] == ["distilled"] * 3
    assert group.samples[1].numbers == {"critique/tried": 1.0, "critique/critic_failed": 1.0}
    group = taught(options, MixedPolicy(), models={"c": Fails()})
    assert len(group.samples) == 4
    assert group.samples[1].numbers == {"critique/tried": 0.0, "critique/critic_failed": 1.0}


def test_a_context_without_room_is_counted() -> None:
    """The teacher's prompt has 10 tokens and an answer 4: 14 are enough, 13 are not."""
    for longest, rows in ((14, 3), (13, 0)):
        group = taught(LAB, MixedPolicy(right=(0,)), longest=longest)
        assert len(group.samples) == 4 + rows
    assert group.samples[1].numbers == {"critique/tried": 0.0, "critique/no_room": 1.0}


def test_thinking_is_left_out() -> None:
    """Also where the opening tag is part of the prompt, and where thinking never ends."""
    assert without_thinking("<think> so 4 </think>\n it is 3") == "it is 3"
    assert without_thinking("so 4 </think> it is 3") == "it is 3"
    assert without_thinking("<think>a</think> b <think>c</think> d") == "d"
    assert without_thinking("it is <think> 3") == "it is"
    assert without_thinking("it is 3") == "it is 3"


@dataclass
class ThinkingWords(Words):
    """The world's words, and the two tags."""

    words: list[str] = field(default_factory=lambda: [*Words().words, "<think>", "</think>"])


@dataclass
class Thinker(MixedPolicy):
    """Thinks before it answers; sample 1 answers while it thinks, so that nothing is left of it."""

    words: Words = field(default_factory=ThinkingWords)

    async def generate(self, submission: Submission) -> list[Completion]:
        found = []
        for number, completion in enumerate(await super().generate(submission)):
            text = completion.text
            text = f"<think> so {text}" if number == 1 else f"<think> so </think> {text}"
            ids = (*self.words.text(text), END)
            logprobs = (-0.5,) * len(ids)
            found.append(replace(completion, text=text, token_ids=ids, behavior_logprobs=logprobs))
        return found


def test_a_demonstration_without_its_thinking() -> None:
    """Sample 1 is right but shows nothing, so sample 2 is shown; with `drop_thinking` false all of it is."""
    thinker = Thinker(right=(1, 2))
    assert contexts(taught(LAB, thinker), thinker.words)["0"] == "<user> 1 + 2 ? it is 3 right again"
    kept = contexts(taught(replace(LAB, drop_thinking=False), thinker), thinker.words)
    assert kept["0"] == "<user> 1 + 2 ? <think> so it is 3 right again"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"teacher_prompt_ids": None}, "must have the teacher's prompt for distilled"),
        ({"teacher_prompt_ids": ()}, "must have the teacher's prompt for distilled"),
        ({"origin": "refined"}, "must be null for origins other than distilled"),
    ],
)
def test_rows_without_a_teacher_are_refused(change: dict[str, Any], rule: str) -> None:
    group = taught(LAB, MixedPolicy(right=(0,)))
    samples: tuple[Sample, ...] = (*group.samples[:-1], replace(group.samples[-1], **change))
    with pytest.raises(ValueError, match=rule):
        validate(group_to_batch(replace(group, samples=samples), "run"))


def test_distilled_rows_are_not_replayed() -> None:
    rows = group_to_batch(taught(LAB, MixedPolicy(right=(0,))), "run")
    assert as_replay(rows, 3).column("parent_id").to_pylist() == [f"00000002.{k}" for k in range(4)]


def run_of(folder: Path, attempt: int = 1, **loss: object) -> Trial:
    """Six steps of two groups of two answers, the first right and the second wrong."""
    more: dict[str, Any] = {
        "refiner": {"kind": "sdpo", "prompts": "lab"},
        "loss": {"policy": {"kind": "ppo_clip"}, "distilled": {"kind": "sdpo", **loss}},
        "advantage": {"kind": "dr_grpo"},
    }
    words = Words()
    scorer: FakeScorer = LastWord()
    trial = Trial(folder, attempt=attempt, more=more, scorer=scorer, encoders=words.encoders)
    policy = MixedPolicy(words=words, right=(0,))
    for name in ("generate", "load", "probe"):
        setattr(trial.generator, name, getattr(policy, name))
    policy.calls = trial.generator.calls
    return trial


def test_a_run_from_config_to_rows(tmp_path: Path) -> None:
    """The wrong answer of each group has a second row: no advantage, no baseline, a weight of its own."""
    trial = run_of(tmp_path / "run", weight=0.5)
    assert trial.train()
    rows = read_step(trial.folder, 2).to_pylist()
    assert [row["origin"] for row in rows] == ["policy", "policy", "distilled"] * 2
    assert [row["teacher_kl"] for row in rows] == [None, None, 0.25] * 2
    learnable = trial.learner.learned[1]
    assert np.nan_to_num(learnable.advantage_N).tolist() == [0.5, -0.5, 0.0] * 2
    assert learnable.row_weight_N.tolist() == pytest.approx([1 / 16, 1 / 16, 0.5 / 8] * 2)
    line = cast(dict[str, float], read_summary(trial.folder, 2)["metrics"])
    wanted = {
        "reward/mean": 0.5,
        "refine/rows": 2.0,
        "refine/kept": 2.0,
        "distilled/num_rows": 2.0,
        "distilled/reward_mean": 0.0,
        "distilled/solution_share": 1.0,
        "distilled/feedback_share": 0.0,
        "distilled/teacher_kl": 0.25,
        "distilled/wrong_gain": 0.25,
    }
    assert {name: line[name] for name in wanted} == wanted
    assert not any(name.startswith("scorer/teacher") for name in line) and "refine/fixed_share" not in line
    assert {row["origin"] for row in read_eval(trial.folder, 3).to_pylist()} == {"policy"}


def test_a_run_that_was_ended_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole, cut = run_of(tmp_path / "whole"), run_of(tmp_path / "cut")
    assert whole.train()
    commits = [number for number, name in enumerate(whole.calls) if name == "buffer.commit"]
    cut.kill_at(commits[3], before=True)
    with pytest.raises(Killed):
        cut.train()
    again = run_of(tmp_path / "cut", attempt=2)
    assert again.train()
    for step in range(1, NUM_STEPS + 1):
        assert read_step(whole.folder, step).equals(read_step(again.folder, step))


SDPO, LOSS = "refiner={kind: sdpo}", "loss.distilled={kind: sdpo}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([SDPO], "must have a loss to train with: loss.distilled"),
        ([SDPO, "loss.refined={kind: shaped}"], "must have a loss to train with: loss.distilled"),
        ([LOSS], "must have rows: refiner.kind is none"),
        (
            [LOSS, "refiner={kind: critique_grpo}", "loss.refined={kind: shaped}"],
            "must have rows: refiner.kind is critique_grpo",
        ),
        ([SDPO, "loss.distilled={kind: nll}"], "must be sdpo: these rows are trained towards their teacher"),
        (["loss.policy={kind: sdpo}"], "must be of loss.distilled: other rows have no teacher"),
        ([SDPO, LOSS, "loss.distilled.alpha=1.5"], "must be between 0 and 1"),
        ([SDPO, LOSS, "loss.distilled.teacher=other"], "must be one of ema, live, base"),
        ([SDPO, LOSS, "loss.distilled.ratio_cap=0.5"], "must be 0 \\(off\\) or at least 1"),
        ([SDPO, LOSS, "refiner.solutions=false"], "the teacher would know nothing more"),
        ([SDPO, LOSS, "refiner.groups=failed"], "a group that failed has no solution to show"),
        ([SDPO, LOSS, "refiner.feedback=model"], "must name a model"),
        ([SDPO, LOSS, "refiner.keep=1"], "keep"),
        ([SDPO, LOSS, "loss.policy.weight=0", "kl.coef=0.1"], "must be 0 without a loss.policy"),
        ([SDPO, LOSS, "loss.policy.weight=0", "entropy.coef=0.1"], "must be 0 without a loss.policy"),
    ],
)
def test_configs_that_cannot_work(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("debug", overrides)


def test_the_preset() -> None:
    run = bind(load_config("sdpo"))
    assert run.right_at is None and set(run.taught_losses()) == {"distilled"}
    assert bind(load_config("critique_grpo")).right_at == 0.5
