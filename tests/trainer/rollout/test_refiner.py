"""Refiners: which groups, which rows are kept, contexts and critiques, controls, and a whole run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import refine_cases
from refine_fakes import (
    END,
    LastWord,
    WordPolicy,
    Words,
    rewards_of,
    tools_of,
    word_prompt,
    word_scorers,
)
from trial import NUM_STEPS, Killed, Trial

from configs.bound import bind
from configs.errors import ConfigError
from configs.kinds.refiners import (
    CritiqueGrpoOptions,
    GoldInjectionOptions,
    OwnRefinerOptions,
    RefinerOptions,
    ResampleHotOptions,
    RltfSdOptions,
)
from configs.load import load_config
from rewards.model_calls import GenerateReply, GenerateRequest, ModelCallError
from rollouts.records import Group, Prompt
from rollouts.schema import group_to_batch, validate
from rollouts.store import read_eval, read_step, read_summary
from trainer.rollout.critique import refine_by_critique, with_question
from trainer.rollout.refine_controls import gold_injection, resample_hot
from trainer.rollout.refiner import Attempt, BoundRefiner, Refiner
from trainer.rollout.rollouter import RolloutTools
from trainer.rollout.single_turn import single_turn

LAB = CritiqueGrpoOptions(prompts="lab")


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fsync: these tests end processes, not machines."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def refined(
    function: Refiner, options: RefinerOptions, policy: WordPolicy | None = None, **more: object
) -> Group:
    """A group of four answers to 1 + 2, after the refiner."""
    policy = policy or WordPolicy()
    prompt = word_prompt(policy.words, **cast(dict[str, object], more.pop("prompt", {})))

    async def run() -> Group:
        submission, tools = tools_of(policy, prompt, **more)  # type: ignore[arg-type]
        group = await single_turn(submission, tools)
        return await BoundRefiner(kind="mine", function=function, options=options).refine(group, tools)

    group = asyncio.run(run())
    validate(group_to_batch(group, "run"))
    return group


def test_the_first_right_row_of_a_failed_group_is_kept() -> None:
    """All four say 4. The critique leads samples 1 and 3 to 3: sample 1 is kept, with what it was told."""
    policy = WordPolicy()
    group = refined(refine_by_critique, LAB, policy)
    assert rewards_of(group) == [0.0] * 4 + [1.0]
    row = group.samples[-1]
    assert (row.origin, row.parent_id) == ("refined", "00000002.1")
    assert (
        row.completion.sample_id == "00000002.1.2" and row.completion.seed != group.samples[1].completion.seed
    )
    context = policy.words.read(row.behavior_prompt_ids or ())
    assert context == "<user> 1 + 2 ? it is 4 wrong again"
    assert row.completion.token_ids == (*policy.words.text("it is 3"), END)
    assert row.critique is not None
    assert (row.critique.text, row.critique.kind, row.critique.verdict) == ("wrong", "indicative", "wrong")
    assert not row.critique.leaked
    assert row.numbers == {"critique/mentions": 0.0, "critique/leaked": 0.0}
    assert [sample.numbers for sample in group.samples[:4]] == [{"critique/tried": 1.0}] * 4
    stored = group_to_batch(group, "run").to_pylist()
    assert [each["critique"] for each in stored] == [None] * 4 + ["wrong"]
    assert stored[4]["prompt_ids"] == stored[0]["prompt_ids"] and stored[4]["critique_leak"] is False


def test_kinds_of_critiques() -> None:
    """With truth the answer is said, which is a leak; a rule quotes; the policy writes a turn before."""
    for style, text, leaked in (
        ("indicative", "wrong", False),
        ("with_truth", "wrong , the answer is 3", True),
    ):
        row = refined(refine_by_critique, replace(LAB, style=style)).samples[-1]
        assert row.critique is not None and (row.critique.text, row.critique.leaked) == (text, leaked)
        assert row.numbers["critique/leaked"] == leaked
    rule = replace(LAB, style="cot", critic="rule", rule="test_refiner:quoting")
    row = refined(refine_by_critique, rule).samples[-1]
    assert row.critique is not None
    assert (row.critique.text, row.critique.verdict, row.critique.kind) == ("wrong : it is 4", "bad", "rule")
    policy = WordPolicy()
    group = refined(refine_by_critique, replace(LAB, style="cot", critic="policy"), policy)
    assert policy.asked.count("<user> 1 + 2 ? it is 4 critique") == 4
    assert policy.asked.count("<user> 1 + 2 ? it is 4 it is 4 again") == 4, "what the critic wrote"
    assert rewards_of(group)[4:] == [0.0], "it did not say wrong"
    assert group.samples[4].critique is not None and group.samples[4].critique.kind == "policy"
    assert group.samples[4].completion.sample_id == "00000002.0.2"


def quoting(prompt: Prompt, text: str) -> tuple[str, str]:
    """A rule critic."""
    return "bad", f"wrong : {text}"


@dataclass
class Critic:
    """A model whose call fails, never ends, or says wrong."""

    how: str = "wrong"

    async def generate(self, requests: list[GenerateRequest]) -> list[GenerateReply]:
        if self.how == "refuses":
            raise ModelCallError("no")
        if self.how == "hangs":
            await asyncio.sleep(1000)
        assert requests[0].prompt == (("user", "1 + 2 ? it is 4 critique"),) and requests[0].max_tokens == 7
        assert requests[0].temperature == 0.25
        return [
            GenerateReply(text=self.how, finish_reason="stop", num_prompt_tokens=1, num_completion_tokens=1)
        ]


def test_a_frozen_model_criticises() -> None:
    """Through the protocol alone. A critic that fails is no critique: the row is not refined, and counted."""
    options = replace(LAB, style="cot", critic="model", model="c", critic_tokens=7, critic_temperature=0.25)
    group = refined(refine_by_critique, options, models={"c": Critic()})
    row = group.samples[-1]
    assert row.reward == 1.0 and row.critique is not None and row.critique.kind == "model"
    group = refined(refine_by_critique, options, models={"c": Critic("refuses")})
    assert len(group.samples) == 4
    failed = {"critique/tried": 0.0, "critique/critic_failed": 1.0}
    assert [sample.numbers for sample in group.samples] == [failed] * 4


def test_a_critic_that_hangs_costs_its_row_alone() -> None:
    policy, options = WordPolicy(), replace(LAB, style="cot", critic="model", model="c")

    async def run() -> Group:
        submission, tools = tools_of(policy, word_prompt(policy.words), models={"c": Critic("hangs")})
        group = await single_turn(submission, tools)
        tools.remaining_s = lambda: 0.1  # type: ignore[method-assign]
        return await BoundRefiner(kind="mine", function=refine_by_critique, options=options).refine(
            group, tools
        )

    assert len(asyncio.run(run()).samples) == 4


def test_a_context_without_room_is_counted() -> None:
    """The context has 10 tokens: with 10 in all there is no room for an answer, with 11 for one token."""
    group = refined(refine_by_critique, LAB, longest=10)
    assert len(group.samples) == 4
    assert group.samples[0].numbers == {"critique/tried": 0.0, "critique/no_room": 1.0}
    assert len(refined(refine_by_critique, LAB, longest=11).samples) == 5


def test_rows_that_betray_their_context() -> None:
    """The refined answer "it is 3" has the phrase "It Is"."""
    row = refined(refine_by_critique, replace(LAB, mentions=("ground truth", "It Is"))).samples[-1]
    assert row.numbers["critique/mentions"] == 1.0


def test_all_groups_and_all_rows() -> None:
    """rltf_sd: a second turn of every first one, right or wrong; those without a reward have no critique."""
    policy = WordPolicy()
    scorer = LastWord(fails=lambda completion: completion.sample_id == "00000002.2")
    group = refined(refine_by_critique, RltfSdOptions(prompts="lab"), policy, scorers=word_scorers(scorer))
    assert rewards_of(group) == [0.0, 0.0, None, 0.0, 0.0, 1.0, 1.0]
    assert [sample.parent_id for sample in group.samples[4:]] == [f"00000002.{k}" for k in (0, 1, 3)]
    assert "critique/tried" not in group.samples[2].numbers
    right = WordPolicy(fixes=lambda number: True)
    prompt = {"prompt": {"answer": "4"}}  # all first answers are right
    group = refined(refine_by_critique, RltfSdOptions(prompts="lab"), right, **prompt)
    assert rewards_of(group) == [1.0] * 8 and right.asked[-1] == "<user> 1 + 2 ? it is 4 right again"
    assert len(refined(refine_by_critique, LAB, right, **prompt).samples) == 4, "not a failed group"


def test_which_groups_and_rows_by_hand() -> None:
    refine_cases.check_which_groups()
    refine_cases.check_is_right()
    refine_cases.check_best_rows()
    refine_cases.check_leaks()


def test_gold_injection() -> None:
    """The dataset's solution, not sampled: no logprobs, no versions, the end token behind it; judged."""
    options = GoldInjectionOptions(field="gold")
    group = refined(gold_injection, options, prompt={"extra": {"gold": "so 3"}})
    row = group.samples[-1]
    assert rewards_of(group) == [0.0] * 4 + [1.0] and row.completion.sample_id == "00000002.gold"
    stored = group_to_batch(group, "run").to_pylist()[-1]
    assert stored["behavior_logprobs"] is None and stored["versions"] == [] and stored["parent_id"] is None
    assert (
        stored["token_ids"][-1] == END and len(stored["token_ids"]) == 3 and stored["loss_mask"] == [True] * 3
    )
    assert stored["behavior_prompt_ids"] is None and stored["critique"] is None
    long = refined(gold_injection, options, prompt={"extra": {"gold": "3 " * 8}})  # 9 tokens with the end
    assert len(long.samples) == 4
    assert long.samples[0].numbers == {"critique/tried": 0.0, "critique/no_room": 1.0}
    with pytest.raises(ValueError, match=r"solution in the field 'gold' of every row, prompt p has None"):
        refined(gold_injection, options)


def test_gold_injection_in_a_share_of_the_groups() -> None:
    """Drawn from the group's seed alone: about 30 of 100, the same ones each time."""

    def drawn() -> list[int]:
        found = []
        for seed in range(100):
            policy = WordPolicy()
            prompt = word_prompt(policy.words, extra={"solution": "so 3"})

            async def run(prompt: Any = prompt, policy: WordPolicy = policy, seed: int = seed) -> int:
                submission, tools = tools_of(policy, prompt)
                submission = replace(submission, seeds=tuple(seed * 4 + k for k in range(4)))
                group = Group(submission=submission, samples=(await single_turn(submission, tools)).samples)
                return len(await gold_injection(group, tools, GoldInjectionOptions(share=0.3)))

            found.append(asyncio.run(run()))
        return found

    first = drawn()
    assert first == drawn() and 18 <= sum(first) <= 42


def test_hot_resampling() -> None:
    """As many answers again, under the same prompt, at another temperature."""
    policy = WordPolicy()
    group = refined(resample_hot, ResampleHotOptions(temperature=1.7, keep=2), policy)
    assert policy.temperatures == [1.0, 1.7] and set(policy.asked) == {"<user> 1 + 2 ?"}
    assert [sample.completion.sample_id for sample in group.samples[4:]] == ["00000002.0.1", "00000002.1.1"]
    assert group.samples[4].behavior_prompt_ids is None and group.samples[4].parent_id == "00000002.0"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"origin": "policy"}, "another origin than policy"),
        ({"completion": {"sample_id": "00000002.0"}}, "a sample_id of its own"),
        ({"completion": {"sample_id": "x.0"}}, "must begin with '00000002.'"),
    ],
)
def test_rows_that_cannot_be_trained_are_refused(change: dict[str, Any], rule: str) -> None:
    """The message names the refiner and the group."""

    async def broken(group: Group, tools: RolloutTools, options: object) -> list[Attempt]:
        row = replace(group.samples[0], origin="refined")
        row = replace(row, completion=replace(row.completion, sample_id="00000002.9"))
        changes = dict(change)
        if "completion" in changes:
            changes["completion"] = replace(row.completion, **changes["completion"])
        return [Attempt(parent=None, sample=replace(row, **changes))]

    with pytest.raises(ValueError, match=rf"refiner mine, group 2.*{rule}"):
        refined(broken, LAB)


def test_a_chat_keeps_its_other_messages() -> None:
    """Only the last message of the user changes."""
    messages = (("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    prompt = Prompt(prompt_id="p", messages=messages, answer=None, domain="math")
    assert with_question(prompt, "new").messages == (*messages[:3], ("user", "new"), messages[4])
    with pytest.raises(ValueError, match="prompt p must have a message of the user"):
        with_question(replace(prompt, messages=messages[:1]), "new")


def run_of(folder: Path, attempt: int = 1, **options: object) -> Trial:
    """Six steps of two groups of two answers, all wrong until told; sample 1 of each is fixed."""
    more: dict[str, Any] = {
        "refiner": {"kind": "critique_grpo", "prompts": "lab", **options},
        "loss": {"policy": {"kind": "ppo_clip"}, "refined": {"kind": "shaped"}},
        "advantage": {"kind": "dr_grpo"},
    }
    words = Words()
    trial = Trial(folder, attempt=attempt, more=more, scorer=LastWord(), encoders=words.encoders)
    policy = WordPolicy(words=words)
    for name in ("generate", "load", "probe"):
        setattr(trial.generator, name, getattr(policy, name))
    policy.calls = trial.generator.calls
    return trial


@pytest.mark.parametrize(
    ("baseline", "advantages"),
    [("joined", [-1 / 3, -1 / 3, 2 / 3]), ("policy", [0.0, 0.0, 1.0])],
)
def test_a_run_from_config_to_rows(tmp_path: Path, baseline: str, advantages: list[float]) -> None:
    """Rewards 0, 0 and a refined 1: compared in one group, 1/3 is the mean; with the policy's, 0 is.

    token_mean per origin: 2 x 2 policy rows of 4 tokens have 1/16 each, two refined rows 1/8.
    """
    trial = run_of(tmp_path / "run", baseline=baseline)
    assert trial.train()
    rows = read_step(trial.folder, 2).to_pylist()
    assert [row["origin"] for row in rows] == ["policy", "policy", "refined"] * 2
    assert [row["advantage"] for row in rows] == pytest.approx(advantages * 2)
    weights = trial.learner.learned[1].row_weight_N.tolist()
    assert weights == pytest.approx([1 / 16, 1 / 16, 1 / 8] * 2)
    line = cast(dict[str, float], read_summary(trial.folder, 2)["metrics"])
    assert line["reward/mean"] == 0.0 and line["length/mean_tokens"] == 4.0
    wanted = {"refine/rows": 4.0, "refine/kept": 2.0, "refine/fixed_share": 1.0, "refine/leaked_share": 0.0}
    assert {name: line[name] for name in wanted} == wanted
    assert not any(name.startswith("scorer/critique") for name in line)
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


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["refiner.kind=critique_grpo"], "must have a loss to train with: loss.refined"),
        (["loss.refined={kind: shaped}"], "must have rows: refiner.kind is none"),
        (
            ["refiner={kind: critique_grpo, prompts: nowhere}", "loss.refined={kind: shaped}"],
            "prompts must be one of critique, lab, or a folder of templates, got 'nowhere'",
        ),
        (
            ["refiner={kind: critique_grpo, style: cot, critic: model}", "loss.refined={kind: shaped}"],
            "must name a model",
        ),
        (
            ["refiner={kind: critique_grpo}", "loss.refined={kind: ppo_clip, ratio_to: behavior}"],
            "the sampler of these rows saw another context",
        ),
    ],
)
def test_configs_that_cannot_work(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("debug", overrides)


def test_the_default_refines_nothing() -> None:
    assert load_config("debug").refiner == {"kind": "none"}


def test_a_refiner_of_ones_own_and_its_models() -> None:
    """A module under a prefix in allow; options of every refiner beside its own; models by name."""
    own = [
        "refiner.kind=refiners:again",
        "refiner.options={tries: 2}",
        "refiner.keep=3",
        "refiner.groups=all",
    ]
    loss = ["loss.refined={kind: advantage_nll}"]
    bound = bind(load_config("debug", [*own, *loss, "allow=[refiners]"]))
    assert isinstance(bound.refiner.options, OwnRefinerOptions) and bound.refiner.options.keep == 3
    assert bound.refiner.options.options == {"tries": 2} and bound.joins_refined
    with pytest.raises(ConfigError, match=r"refiner\.kind.*under a prefix in allow"):
        load_config("debug", [*own, *loss])
    rule = ["refiner={kind: rltf_sd, style: cot, critic: rule, rule: 'critics:mine'}", *loss]
    with pytest.raises(ConfigError, match=r"refiner\.rule.*under a prefix in allow"):
        load_config("debug", rule)
    assert not bind(load_config("debug", [*rule, "allow=[critics]"])).joins_refined
    critic = ["refiner={kind: critique_grpo, style: cot, critic: model, model: judge}", *loss]
    with pytest.raises(ConfigError, match=r"refiner\.model.*models"):
        load_config("debug", critic)
    named = bind(load_config("debug", [*critic, "models.judge={path: some/model, task: generate}"]))
    assert "judge" in named.used_models()
    with pytest.raises(ConfigError, match=r"refiner\.model"):
        load_config("debug", [*critic, "models.judge={path: some/model, task: embed}"])
