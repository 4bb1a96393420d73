"""The lab's reward model: its labels, and a training from begin to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lab.corpus import FORMATS
from lab.reward_model import Training, labelled, split, train_reward_model
from lab.reward_model import _corpus as corpus_of
from lab.tokenizer import make_tokenizer

VOICES = Path(__file__).resolve().parents[2] / "lab/bases/voices"
SMALL = Training(num_rows=200, num_updates=2, rows_per_update=4)


def test_labels_and_where_a_solution_first_goes_wrong() -> None:
    """About half are right; a wrong one is common with the right one up to a wrong result, and not beyond."""
    tokenizer = make_tokenizer()
    config = corpus_of(SMALL)
    assert set(config.formats) == set(FORMATS)
    rows = labelled(config, tokenizer)
    assert 0.3 < sum(row.is_right for row in rows) / len(rows) < 0.7
    for row in rows:
        shown = tokenizer.convert_ids_to_tokens(row.ids)
        assert shown[row.start - 1] == "<assistant>" and shown[-1] == "<eos>"
        if row.is_right:
            assert row.common == len(row.ids)
            continue
        assert row.start < row.common < len(row.ids) and shown[row.common].isdigit()
    learn, held_out = split(rows)
    assert not {row.prompt for row in learn} & {row.prompt for row in held_out}


def test_a_small_training_ends_and_is_repeatable(tmp_path: Path) -> None:
    """Two updates: a folder that transformers loads, the measurements beside it, the same bytes twice."""
    measured = [train_reward_model(VOICES, tmp_path / name, SMALL) for name in ("one", "two")]
    assert 0 <= measured[0]["auc"] <= 1 and measured[0]["rows"] > 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "one")
    assert model.config.num_labels == 1 and type(model).__name__ == "Qwen3ForSequenceClassification"
    assert AutoTokenizer.from_pretrained(tmp_path / "one").chat_template
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert manifest["training"]["num_updates"] == 2 and manifest["measured"]["auc"] == measured[0]["auc"]
    with pytest.raises(ValueError, match="--out must be a new folder or one that this command wrote"):
        train_reward_model(VOICES, VOICES.parent, SMALL)
