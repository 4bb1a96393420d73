"""What frozen models read: chats without today's date, and texts that a tokenizer would refuse."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from actors.model_inputs import ModelInputs
from configs.kinds.models import ModelOptions
from lab.base_model import ModelShape, model_config
from lab.tokenizer import CHAT_TEMPLATE, make_tokenizer
from rewards.model_calls import GenerateRequest, TextOrPair

DATED = "{% if strftime_now is defined %}{{ strftime_now('%-d') + ' ' }}{% endif %}" + CHAT_TEMPLATE
CHAT = (("user", "1 + 2 = ?"), ("assistant", "so 3"))


def inputs(folder: Path, template: str = CHAT_TEMPLATE) -> ModelInputs:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    model_config(ModelShape(), tokenizer).save_pretrained(folder)
    return ModelInputs(ModelOptions(path=str(folder)), 64)


def words(ids: tuple[int, ...]) -> str:
    return " ".join(make_tokenizer().convert_ids_to_tokens(list(ids)))


def test_a_chat_has_the_same_tokens_tomorrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For both tasks: a resumed run scores what it scored before."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Clock:
            return cls(2026, 3, 17)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    found = inputs(tmp_path, DATED)
    asked = found.to_generate(GenerateRequest(prompt=CHAT[:1], max_tokens=1))
    assert words(asked) == "1 <bos> <user> 1 + 2 = ? <assistant>"
    assert words(found.encode(CHAT, "refuse").token_ids).startswith("1 <bos> <user> 1 + 2 = ? <assistant> so")


@pytest.mark.parametrize(
    "given", ["1 \ud800 2", ("1", "\udfff 2"), (("user", "1 \ud83d"), ("assistant", "2"))]
)
def test_a_lone_surrogate_is_one_unknown_character(tmp_path: Path, given: TextOrPair) -> None:
    """A policy may write one. Tokenizers refuse it, and a reward model would have no score for the batch."""
    found = inputs(tmp_path)
    assert words(found.encode(given, "refuse").token_ids).count("<unk>") == 1
    assert "<unk>" in words(found.to_generate(GenerateRequest(prompt=(("user", "1 \ud800"),), max_tokens=1)))
