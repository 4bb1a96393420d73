"""The lab's problems, corpus, tokenizer and base model: what the experiments take for granted about them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs.kinds.datasets import LabOptions
from lab.base_model import ModelShape, make_base, make_model
from lab.corpus import (
    FIRST_TOKENS,
    FORMATS,
    CorpusConfig,
    CorpusRow,
    FormatConfig,
    check_corpus,
    make_corpus,
    render,
)
from lab.problems import NO_STEP, Problems, load_prompts, problem_split, problem_texts
from lab.tokenizer import make_tokenizer, vocabulary
from rewards.formats import tag
from rewards.lab import SYLLABLES

TWO_STEP = re.compile(r"\( (\d+) ([-+*]) (\d+) \) ([-+*]) (\d+) = \?")
ONE_STEP = re.compile(r"(\d+) ([-+*]) (\d+) = \?")


def small_corpus(error_rate: float = 0.0, num_rows: int = 2000, multiplicity: int = 1) -> CorpusConfig:
    weights = {"code": 2.0, "prose": 1.0, "symbolic": 1.0, "tagged": 1.0}
    formats = {name: FormatConfig(weight, multiplicity, error_rate) for name, weight in weights.items()}
    return CorpusConfig(num_rows=num_rows, formats=formats)


def written_numbers(row: CorpusRow) -> list[int]:
    return [int(word) for word in row.response.split() if word.isdigit()]


def test_answers_are_those_of_python() -> None:
    """The answer key is the ground truth of every reward, so it is checked by another evaluator."""
    step = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    for prompt in load_prompts(LabOptions(split="train")):
        text = prompt.messages[0][1]
        if found := TWO_STEP.fullmatch(text):
            start, op, operand, last_op, last = found.groups()
            middle = step[op](int(start), int(operand))
            answer = step[last_op](middle, int(last))
        else:
            short = ONE_STEP.fullmatch(text)
            assert short is not None, text
            middle = answer = step[short[2]](int(short[1]), int(short[3]))
        assert 0 <= middle <= 99 and 0 <= answer <= 99, text
        assert prompt.answer == str(answer)


def test_splits_are_disjoint_and_without_repeats() -> None:
    """A held-out problem seen in training would make memory look like skill."""
    train = [prompt.messages for prompt in load_prompts(LabOptions(split="train"))]
    heldout = [prompt.messages for prompt in load_prompts(LabOptions(split="heldout"))]
    assert len(set(train)) == len(train) == 12288
    assert len(set(heldout)) == len(heldout) == 1024
    assert not set(train) & set(heldout)


def test_prompts_follow_the_seed() -> None:
    """Runs that name the same seed share prompt ids and texts; another seed gives other problems and ids."""
    first, again = (load_prompts(LabOptions(corpus_seed=3, limit=50)) for _ in range(2))
    other = load_prompts(LabOptions(corpus_seed=4, limit=50))
    assert first == again and len(first) == 50
    assert not {prompt.prompt_id for prompt in first} & {prompt.prompt_id for prompt in other}
    assert [prompt.messages for prompt in first] != [prompt.messages for prompt in other]


def test_creative_prompts_are_open_ended() -> None:
    """No answer: a scorer that needs one must not be fed these."""
    prompts = load_prompts(LabOptions(split="creative"))
    assert len(prompts) == len(SYLLABLES) ** 2
    assert {prompt.domain for prompt in prompts} == {"creative"}
    assert all(prompt.answer is None for prompt in prompts)


@pytest.mark.parametrize(
    "options", [LabOptions(split="test"), LabOptions(limit=-1), LabOptions(corpus_seed=-1)]
)
def test_bad_dataset_options_are_refused(options: LabOptions) -> None:
    """A mistyped split must not silently train on another one."""
    with pytest.raises(ValueError, match=r"must be"):
        load_prompts(options)


def test_renderings_are_the_four_formats() -> None:
    """The exact texts, by hand: the graders' grammars are written for these."""
    column = [torch.tensor([value]).numpy() for value in (3, 0, 4, 2, 2, 14)]
    problems = Problems(*column)
    first, second = torch.tensor([7]).numpy(), torch.tensor([14]).numpy()
    assert problem_texts(problems) == ["( 3 + 4 ) * 2 = ?"]
    assert [render(name, problems, first, second)[0] for name in FORMATS] == [
        "def : x = 3 + 4 -> 7 ; x = x * 2 -> 14 ; return 14",
        "we take 3 plus 4 which is 7 and then 7 times 2 which is 14 so the answer is 14",
        "$ 3 + 4 = 7 , 7 * 2 = 14 => 14 $",
        "<step> 3 + 4 = 7 </step> <step> 7 * 2 = 14 </step> <answer> 14 </answer>",
    ]


@examples(15)
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.3, 1.0]))
def test_every_solution_has_its_format_and_its_first_token(seed: int, error_rate: float) -> None:
    """The tag of a row, its first token and the config's name for it are one thing, whatever the errors."""
    config = small_corpus(error_rate, num_rows=200)
    config.seed = seed
    for row in make_corpus(config):
        if row.format == "creative":
            assert set(row.response.split()) <= set(SYLLABLES) and 6 <= len(row.response.split()) <= 12
            continue
        assert tag(row.response, FORMATS) == row.format
        assert row.response.split()[0] == FIRST_TOKENS[row.format]
        assert all(0 <= number <= 99 for number in written_numbers(row))


def test_shares_follow_the_weights() -> None:
    """2000 rows, a tenth creative, weights 2:1:1:1 of the rest: 720, 360, 360, 360."""
    counts = Counter(row.format for row in make_corpus(small_corpus()))
    assert counts == {"creative": 200, "code": 720, "prose": 360, "symbolic": 360, "tagged": 360}


def test_error_rate_is_per_step_and_carried_on() -> None:
    """Rate 0: all answers right. Rate 0.3 in two steps: about 0.7^2. Rate 1: no one-step problem right."""

    def accuracy(config: CorpusConfig, one_step: bool | None = None) -> float:
        rows = [row for row in make_corpus(config) if row.format != "creative"]
        kept = [row for row in rows if one_step is None or row.prompt.startswith("(") != one_step]
        return sum(str(written_numbers(row)[-1]) == row.answer for row in kept) / len(kept)

    assert accuracy(small_corpus(0.0)) == 1.0
    assert accuracy(small_corpus(0.3, num_rows=8000), one_step=False) == pytest.approx(0.49, abs=0.05)
    assert accuracy(small_corpus(1.0), one_step=True) == 0.0


def test_multiplicity_trades_problems_for_renderings() -> None:
    """Eight renderings each: 360 prose rows cover 45 problems instead of 360."""
    prose = [row for row in make_corpus(small_corpus(multiplicity=8)) if row.format == "prose"]
    assert set(Counter(row.prompt for row in prose).values()) == {8} and len(prose) == 360


def test_corpus_uses_only_the_first_train_problems() -> None:
    """`num_train` bounds what can be memorised; held-out problems never enter."""
    config = small_corpus()
    config.num_train = 40
    allowed = set(problem_texts(problem_split("train", 0))[:40])
    used = {row.prompt for row in make_corpus(config) if row.format != "creative"}
    assert used == allowed


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"num_rows": 0}, "corpus.num_rows"),
        ({"num_train": 99999}, "corpus.num_train"),
        ({"creative_share": 1.0}, "corpus.creative_share"),
        ({"formats": {}}, "corpus.formats"),
        ({"formats": {"latex": FormatConfig()}}, "latex"),
        ({"formats": {"code": FormatConfig(weight=0.0)}}, "weight"),
        ({"formats": {"code": FormatConfig(error_rate=1.5)}}, r"corpus.formats.code.error_rate"),
        ({"formats": {"code": FormatConfig(multiplicity=0)}}, r"corpus.formats.code.multiplicity"),
    ],
)
def test_bad_corpora_are_refused(change: dict[str, object], key: str) -> None:
    """A recipe is written by hand: each wrong value is named."""
    with pytest.raises(ValueError, match=key):
        check_corpus(CorpusConfig(**change))  # type: ignore[arg-type]


def test_every_word_of_the_corpus_is_one_token() -> None:
    """An unknown word would be learned as <unk> and come back as no format at all."""
    tokenizer = make_tokenizer()
    assert len(tokenizer) == len(vocabulary()) < 200 and len(tokenizer) % 8 == 0
    for row in make_corpus(small_corpus(0.3, num_rows=300)):
        for text in (row.prompt, row.response):
            ids = tokenizer(text)["input_ids"]
            assert len(ids) == len(text.split()) and tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text
    assert all(len(tokenizer(str(number))["input_ids"]) == 1 for number in range(100))


def test_generation_prompt_is_a_prefix_of_the_whole_turn() -> None:
    """Training rows are prompt ids + response ids; the engine sees the prompt ids alone. They must agree."""
    tokenizer = make_tokenizer()
    user = {"role": "user", "content": "( 3 + 4 ) * 2 = ?"}
    response = "$ 3 + 4 = 7 , 7 * 2 = 14 => 14 $"
    prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=False)
    turn = [user, {"role": "assistant", "content": response}]
    whole = tokenizer.apply_chat_template(turn, return_dict=False)
    assert whole == prompt + tokenizer(response)["input_ids"] + [tokenizer.eos_token_id]
    assert tokenizer.decode(whole, skip_special_tokens=True) == f"( 3 + 4 ) * 2 = ? {response}"


def test_base_folder_loads_as_any_hugging_face_model(tmp_path: Path) -> None:
    """The engine and the learner load the folder by its name alone: same logits, own head, under 4 MB."""
    shape = ModelShape(num_layers=2, seed=5)
    make_base(shape, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 4_000_000
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "3 + 4 = ?"}], add_generation_prompt=True, return_dict=False
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    fresh = make_model(shape, make_tokenizer()).eval()
    assert loaded.config.tie_word_embeddings is False
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    with torch.no_grad():
        rows = torch.tensor([ids])
        torch.testing.assert_close(loaded(rows).logits, fresh(rows).logits)


def test_weights_follow_the_seed_and_leave_the_global_generator() -> None:
    """Two bases of one recipe are the same; making one must not move anybody else's random numbers."""
    tokenizer = make_tokenizer()
    before = torch.random.get_rng_state()
    first, again = (make_model(ModelShape(num_layers=1, seed=1), tokenizer) for _ in range(2))
    other = make_model(ModelShape(num_layers=1, seed=2), tokenizer)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    assert first.lm_head.weight.data_ptr() != first.model.embed_tokens.weight.data_ptr()


def test_head_size_must_be_one_the_engine_runs() -> None:
    """16 would train and then fail in the engine, minutes later."""
    with pytest.raises(ValueError, match=r"head_dim must be one of 32, .* got 16"):
        make_model(ModelShape(head_dim=16), make_tokenizer())


def test_one_step_problems_are_a_sixteenth() -> None:
    """The mix is part of the recipe: both lengths must be there for accuracy by length."""
    short = sum(int((problem_split(split, 0).second_op == NO_STEP).sum()) for split in ("train", "heldout"))
    assert short == (12288 + 1024) // 16
