"""Recipes of bases: what they may say, how rows become updates, and what is measured."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs.kinds.datasets import LabOptions
from lab.base_model import ModelShape, make_base
from lab.corpus import CorpusConfig, FormatConfig, make_corpus
from lab.measure import measure_base, sample
from lab.pretrain import plan_updates, tokenize_rows
from lab.problems import load_prompts
from lab.recipe import MeasureConfig, Recipe, TrainingConfig, load_recipe, recipe_hash
from lab.tokenizer import make_tokenizer

VOICES = "lab/bases/voices.yaml"


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("base")
    make_base(ModelShape(num_layers=1), folder)
    yield folder


def test_the_recipe_in_the_repository_loads() -> None:
    """The recipe beside the base is the one that made it, so it must stay readable."""
    recipe = load_recipe(VOICES)
    assert set(recipe.corpus.formats) == {"code", "prose", "symbolic", "tagged"}
    assert sum(part.weight for part in recipe.corpus.formats.values()) == pytest.approx(1.0)


def test_overrides_win_and_formats_are_exactly_those_written(tmp_path: Path) -> None:
    """A recipe with two formats makes a base with two, not two and the defaults."""
    path = tmp_path / "two.yaml"
    path.write_text("corpus:\n  formats:\n    code: {weight: 3}\n    prose: {weight: 1}\n")
    recipe = load_recipe(str(path), ["training.lr=1e-3", "corpus.formats.prose.weight=2"])
    assert recipe.training.lr == 1e-3
    assert recipe.corpus.formats == {"code": FormatConfig(weight=3.0), "prose": FormatConfig(weight=2.0)}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("training: {learning_rate: 1}", "learning_rate"),
        ("training: {lr: fast}", "fast"),
        ("training: {lr: 0}", r"training\.lr"),
        ("training: {num_updates: 0}", r"training\.num_updates"),
        ("measure: {num_samples: 0}", r"measure\.num_samples"),
        ("model: {head_dim: 16}", r"model\.head_dim"),
        ("corpus: {formats: {latex: {}}}", "latex"),
        ("corpus: [1, 2]", "recipe.yaml"),
        ("a: b: c", "recipe.yaml"),
    ],
)
def test_bad_recipes_are_refused_by_file_and_key(tmp_path: Path, text: str, named: str) -> None:
    """Ten minutes of training must not start from a misread file."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text + "\n")
    with pytest.raises(ValueError, match=named) as raised:
        load_recipe(str(path))
    assert "recipe.yaml" in str(raised.value)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    """Not a traceback from a library."""
    with pytest.raises(ValueError, match=r"existing YAML file, got .*nothing\.yaml"):
        load_recipe(str(tmp_path / "nothing.yaml"))


def test_the_hash_is_of_what_decides_the_weights() -> None:
    """Another folder makes the same base; another error rate does not."""
    recipe, elsewhere, other = Recipe(), Recipe(output="somewhere"), Recipe()
    other.corpus.formats["code"].error_rate = 0.5
    assert recipe_hash(recipe) == recipe_hash(elsewhere) != recipe_hash(other)


@examples(30)
@given(num_rows=st.integers(1, 300), size=st.integers(1, 40), seed=st.integers(0, 9))
def test_updates_visit_every_row_once_per_pass(num_rows: int, size: int, seed: int) -> None:
    """A row seen more often than others would shift the shares that the corpus fixes."""
    lengths = np.random.default_rng(seed).integers(10, 34, num_rows)
    updates = plan_updates(lengths, TrainingConfig(seed=seed, rows_per_update=size))
    seen: list[int] = []
    while len(seen) < num_rows:
        update = next(updates).tolist()
        assert 1 <= len(update) < 2 * size
        seen += update
    assert sorted(seen) == list(range(num_rows))


def test_updates_follow_the_seed_and_change_between_passes() -> None:
    """The same recipe trains on the same rows in the same order, but no two passes alike."""
    lengths = np.full(64, 20)
    config = TrainingConfig(rows_per_update=8)
    first, again = (np.stack(list(islice(plan_updates(lengths, config), 16))) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first[:8], first[8:])


def test_training_rows_are_the_chat_template() -> None:
    """The engine samples after the very ids that training put before the response."""
    tokenizer = make_tokenizer()
    rows = make_corpus(CorpusConfig(num_rows=50))
    tokens = tokenize_rows(rows, tokenizer)
    for row, prompt, response in zip(rows, tokens.prompts, tokens.responses, strict=True):
        turn = [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.response}]
        assert prompt + response == tokenizer.apply_chat_template(turn, return_dict=False)


def test_sampling_follows_the_seed_and_pads_after_the_end(untrained: Path) -> None:
    """A padded prompt must sample like an unpadded one, and nothing counts after the end token."""
    model = AutoModelForCausalLM.from_pretrained(untrained).eval()
    tokenizer = AutoTokenizer.from_pretrained(untrained)
    prompts = load_prompts(LabOptions(split="heldout", limit=20))
    config = MeasureConfig(num_samples=2, max_tokens=30)
    first, again = (
        sample(model, tokenizer, prompts, config, torch.Generator().manual_seed(4)) for _ in range(2)
    )
    assert torch.equal(first[0], again[0]) and len(first[0]) == 40
    torch.testing.assert_close(first[1].sum(1), torch.ones(20))
    for row in first[0].tolist():
        if tokenizer.eos_token_id in row:
            assert not any(row[row.index(tokenizer.eos_token_id) + 1 :])
    for index in (0, len(prompts) - 1):
        alone = sample(model, tokenizer, prompts[index : index + 1], config, torch.Generator())[1]
        torch.testing.assert_close(first[1][index : index + 1], alone, atol=1e-6, rtol=1e-4)


def test_a_model_that_knows_nothing_is_measured_as_such(untrained: Path) -> None:
    """Fresh weights: every first token about 1/160, no text of any format, no reward."""
    model = AutoModelForCausalLM.from_pretrained(untrained).eval()
    tokenizer = AutoTokenizer.from_pretrained(untrained)
    report = measure_base(model, tokenizer, 0, MeasureConfig(num_prompts=70, num_samples=2, max_tokens=12))
    assert all(0.2 / 160 < share < 5 / 160 for share in report.first_token_share.values())
    assert report.sampled_share["none"] + report.sampled_share["mixed"] == 1.0
    assert sum(report.accuracy.values()) == 0.0
    assert 0.8 < report.format_entropy <= 1.0
