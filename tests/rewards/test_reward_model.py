"""The scorer `reward_model`: what it asks the model, and what it makes of the logits."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rollout_rows import make_sample

from configs.bound import bind
from configs.kinds.reward_model import RewardModelOptions
from configs.load import ConfigError, load_config
from rewards.model_calls import ClassifyReply, ModelCallError, OverLong, TextOrPair
from rewards.reward_model import RewardModel, activated
from rollouts.records import Completion, Prompt

PROMPT = Prompt(prompt_id="p", messages=(("system", "be short"), ("user", "2 + 2 ?")), answer="4", domain="x")
MODELS = "models.rm={path: somewhere, task: classify}"


class FakeClassifier:
    """Logits (0, length of the last text); refuses texts with "refuse" in them."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[TextOrPair, ...], OverLong]] = []

    async def classify(
        self, inputs: Sequence[TextOrPair], over_long: OverLong = "cut_left"
    ) -> list[ClassifyReply]:
        self.asked.append((tuple(inputs), over_long))
        texts = [each if isinstance(each, str) else each[-1] for each in inputs]
        last = [text if isinstance(text, str) else text[1] for text in texts]
        if any("refuse" in text for text in last):
            raise ValueError("an input must be at most 8 tokens, got 9")
        return [ClassifyReply(logits=(0.0, float(len(text))), num_tokens=7, was_cut=True) for text in last]


def completion(text: str) -> Completion:
    return replace(make_sample("s", 3).completion, text=text)


def score(
    options: RewardModelOptions, texts: Sequence[str], prompt: Prompt = PROMPT
) -> tuple[list, FakeClassifier]:
    model = FakeClassifier()
    scorer = RewardModel(options, {"rm": model})  # type: ignore[dict-item]
    return asyncio.run(scorer.score([(prompt, completion(text)) for text in texts])), model


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("chat", (("system", "be short"), ("user", "2 + 2 ?"), ("assistant", "four"))),
        ("pair", ("be short\n2 + 2 ?", "four")),
        ("text", "be short\n2 + 2 ?\nfour"),
        ("completion", "four"),
    ],
)
def test_the_model_reads_what_the_option_says(kind: str, asked: TextOrPair) -> None:
    """In one call for all items; numbers have the logit of the label, tokens and cuts."""
    options = RewardModelOptions(model="rm", label="1", input=kind, scale=2.0, bias=-1.0)
    judgements, model = score(options, ["four", "seven"])
    assert model.asked[0][0][0] == asked and len(model.asked) == 1 and model.asked[0][1] == "cut_left"
    before = 17.0 if kind == "text" else 0.0
    assert [each.score for each in judgements] == [2 * before + 7.0, 2 * before + 9.0]
    assert judgements[1].numbers == {"logit": before + 5.0, "tokens": 7.0, "cut": 1.0}


def test_a_prefill_is_the_beginning_of_the_answer() -> None:
    """Scorers get it in the completion, as `test_an_answer_that_the_prompt_begins_is_judged_whole` tests."""
    prompt = replace(PROMPT, messages=(("user", "q"), ("assistant", "so ")))
    for kind, asked in (
        ("chat", (("user", "q"), ("assistant", "so 4"))),
        ("pair", ("q", "so 4")),
        ("text", "q\nso 4"),
        ("completion", "so 4"),
    ):
        _, model = score(RewardModelOptions(model="rm", label="1", input=kind), ["so 4"], prompt)
        assert model.asked[0][0] == (asked,)


def test_activations() -> None:
    """Against their formulas, and at logits whose exponential has no float."""
    assert activated("none", (1.0, -2.0), 1) == -2.0
    assert activated("sigmoid", (1.0, -2.0), 1) == pytest.approx(1 / (1 + math.exp(2)), rel=1e-15)
    assert activated("softmax", (1.0, -2.0), 1) == pytest.approx(1 / (1 + math.exp(3)), rel=1e-15)
    assert activated("sigmoid", (-1000.0,), 0) == 0.0 and activated("sigmoid", (1000.0,), 0) == 1.0
    assert activated("softmax", (1000.0, 0.0), 0) == 1.0


def test_an_input_that_is_refused_leaves_the_others_their_scores() -> None:
    """Too long under no_score: null with the reason, never 0."""
    options = RewardModelOptions(model="rm", label="1", over_long="no_score")
    judgements, model = score(options, ["four", "refuse me", "seven"])
    assert [each.score for each in judgements] == [4.0, None, 5.0]
    assert judgements[1].status == "error" and "at most 8 tokens" in judgements[1].detail
    assert {over_long for _, over_long in model.asked} == {"refuse"}


def test_a_label_that_the_model_lacks_is_no_score() -> None:
    judgements, _ = score(RewardModelOptions(model="rm", label="2"), ["x"])
    assert judgements[0].score is None and "below the model's 2 labels, got 2" in judgements[0].detail


def test_a_model_that_cannot_be_asked_fails_the_batch() -> None:
    class Gone:
        async def classify(self, inputs: object, over_long: str) -> list[ClassifyReply]:
            raise ModelCallError("model rm: it died")

    scorer = RewardModel(RewardModelOptions(model="rm"), {"rm": Gone()})  # type: ignore[dict-item]
    with pytest.raises(ModelCallError):
        asyncio.run(scorer.score([(PROMPT, completion("x"))]))


@pytest.mark.parametrize(
    ("content", "label", "found"),
    [
        ({"id2label": {"0": "bad", "1": "good"}}, "good", "1"),
        ({"id2label": {"1": "good", "0": "bad"}}, "0", "0"),
        ({"num_labels": 1}, "0", "0"),
        ({}, "LABEL_1", "1"),
        ({"id2label": {"0": "bad", "1": "good"}}, "god", "did you mean good"),
        ({"id2label": {"0": "bad", "1": "good"}}, "2", "index (below 2)"),
        ({"id2label": {"0": "bad"}}, "-1", "index (below 1)"),
    ],
)
def test_a_label_is_an_index_or_a_name(content: dict, label: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    options = RewardModelOptions(model="rm", label=label)
    if found.isdecimal():
        assert options.with_folders({"rm": tmp_path}).label == found
        return
    with pytest.raises(ValueError) as refused:
        options.with_folders({"rm": tmp_path})
    assert found in str(refused.value) and str(refused.value).startswith(
        f"label = {label!r}: must be a label"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["scorers.r={kind: reward_model}"],
            "scorers.r.model = '': must name a model under models, such as models={rm",
        ),
        (
            ["scorers.r={kind: reward_model, model: rm}"],
            "scorers.r.model = 'rm': must name a model under models",
        ),
        (
            ["scorers.r={kind: reward_model, model: judg}", "models.judge={path: x}"],
            "must name a model under models (there: judge) (did you mean judge?)",
        ),
        (
            ["scorers.r={kind: reward_model, model: rm}", "models.rm={path: a}"],
            "must name a model with task classify; models.rm has generate",
        ),
        (
            ["scorers.j={kind: judge, model: rm}", MODELS],
            "must name a model with task generate",
        ),
        (["scorers.r={kind: reward_model, model: policy}"], "the policy itself cannot be used here"),
        (["models.policy={path: a}"], "models.policy: must have another name"),
        (["models.m={path: a, num_gpus: 1.5}"], "models.m.num_gpus = 1.5: must be a share of one GPU"),
        (["models.m={path: a, backend: transformers}"], "models.m.backend = 'transformers': must be vllm"),
        (["models.m={path: a, pooling: mean}"], "models.m.pooling = 'mean': must be auto with task generate"),
        (["models.m={}"], "models.m.path = '': must not be empty"),
        (
            ["allow=[mine]", "scorers.s={kind: 'mine:S', models: {judge: helpr}}", "models.helper={path: a}"],
            "scorers.s.models.judge = 'helpr': must name a model under models (there: helper) (did you mean",
        ),
        (
            ["allow=[mine]", "refiner={kind: 'mine:r', models: {critic: policy}}"],
            "refiner.models.critic = 'policy': must name a frozen model",
        ),
        (
            ["allow=[mine]", "advantage={kind: 'mine:a', models: {x: y}}"],
            "advantage.models",
        ),
        (["models.m={path: a, endpoint: localhost}"], "models.m.endpoint = 'localhost': must be a URL"),
        (
            ["models.m={path: a, endpoint: 'http://127.0.0.1:1/v1', task: embed}"],
            "models.m.task = 'embed': must be generate with `endpoint`",
        ),
        (
            ["models.m={path: a, endpoint: 'http://127.0.0.1:1/v1', num_gpus: 1}"],
            "must be empty for a model with replicas, CPUs or GPUs of the run",
        ),
        (["models.m={path: a, api_key: MY_KEY}"], "must be set with api_key or extra"),
        (
            [
                "scorers.j={kind: judge, model: m}",
                "models.m={path: a, endpoint: 'http://127.0.0.1:1/v1', api_key: MY_KEY}",
            ],
            "must name a model whose api_key (MY_KEY) is among scorers.j.secrets (none)",
        ),
        (["models.m={path: a, kind: x}"], "models.m.kind = 'x': unknown key; an entry here takes path"),
        (
            ["scorers.r={kind: reward_model, model: rm, scale: 0}", MODELS],
            "scorers.r.scale = 0.0: must not be 0",
        ),
    ],
)
def test_models_that_cannot_be_used_are_refused_by_name(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config("debug", overrides)
    assert message in str(refused.value)


def test_a_config_says_which_models_are_used() -> None:
    given = load_config(
        "debug", ["scorers.r={kind: reward_model, model: rm}", MODELS, "models.other={path: b}"]
    )
    run = bind(given)
    assert run.used_models() == {"rm"} and set(run.models) == {"rm", "other"}


def test_a_users_own_kinds_name_models() -> None:
    """Scorer, rollouter and refiner: under the names that their code uses."""
    given = load_config(
        "debug",
        [
            "allow=[mine]",
            "scorers.s={kind: 'mine:S', models: {judge: a}, options: {depth: 2}}",
            "rollouter={kind: 'mine:turns', models: {guide: b}}",
            "refiner={kind: 'mine:again', models: {critic: c}}",
            "loss.refined={kind: shaped}",
            *(f"models.{name}={{path: {name}}}" for name in "abcd"),
        ],
    )
    run = bind(given)
    assert run.used_models() == {"a", "b", "c"}
    assert run.scorers["s"].options.models == {"judge": "a"}
    assert run.scorers["s"].options.options == {"depth": 2}
    assert run.refiner.options.models == {"critic": "c"}
