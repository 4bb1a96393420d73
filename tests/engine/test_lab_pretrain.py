"""From a recipe to a base, the whole way in DeepSpeed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lab.pretrain import pretrain
from lab.recipe import load_recipe, recipe_hash

pytestmark = pytest.mark.engine
VOICES = "lab/bases/voices.yaml"


def test_pretrain_writes_a_base_and_its_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way in DeepSpeed, very short: the loss falls, the folder loads, the manifest is true."""
    output = tmp_path / "base"
    overrides = [
        f"output={output}",
        "model.num_layers=1",
        "corpus.num_rows=2000",
        "training.num_updates=30",
        "training.updates_per_call=10",
        "measure.num_prompts=4",
        "measure.num_samples=2",
    ]
    assert pretrain(VOICES, overrides) == 0
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["final_loss"] < 4.0  # ln 160 = 5.08 before the first update
    assert manifest["recipe_sha256"] == recipe_hash(load_recipe(VOICES, overrides))
    assert set(manifest["measured"]["sampled_share"]) == {
        "code",
        "prose",
        "symbolic",
        "tagged",
        "mixed",
        "none",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]
    assert AutoTokenizer.from_pretrained(output).chat_template
    assert AutoModelForCausalLM.from_pretrained(output).num_parameters() > 0
    assert "update 30/30" in capsys.readouterr().out
