"""Prompts in tokens: by a template, unchanged, continued; what cannot be encoded is refused with its row."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from cluster.run_directory import source_digest
from configs.kinds.datasets import FileOptions
from configs.kinds.demonstrations import FileDemonstrationOptions
from configs.schema import ModelConfig, RolloutConfig
from lab.tokenizer import make_tokenizer
from rollouts.records import Prompt
from trainer.data.demonstrations import load_file as load_demonstrations
from trainer.data.demonstrations import tokenize_demonstrations
from trainer.data.encode import load_tokenizer, load_vocab_size, prompt_ids
from trainer.data.file_dataset import load_file
from trainer.data.prompts import tokenize_prompts

ASKED = [{"role": "user", "content": "1 + 2 = ?"}]


def base_tokenizer(adds: str = "<bos>") -> PreTrainedTokenizerFast:
    """The lab's tokenizer without a chat template, like a base model's; `adds` are put around every text."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    if adds:
        first, _, last = adds.partition(" ")
        tokenizer._tokenizer.post_processor = TemplateProcessing(
            single=f"{first} $A {last}".strip(),
            special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in adds.split()],
        )
    return tokenizer


def rows_of(folder: Path, *rows: object) -> list[Prompt]:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_file(FileOptions(path=str(path)))


def words(ids: tuple[int, ...]) -> str:
    return " ".join(make_tokenizer().convert_ids_to_tokens(list(ids)))


def encode(prompt: Prompt, tokenizer: PreTrainedTokenizerFast) -> str:
    return words(prompt_ids(prompt, tokenizer, len(make_tokenizer())))


@pytest.mark.parametrize(
    ("adds", "expected"),
    [("", "1 + 2"), ("<bos>", "<bos> 1 + 2"), ("<bos> <eos>", "<bos> 1 + 2")],
)
def test_a_base_model_reads_a_text_prompt_as_it_is(tmp_path: Path, adds: str, expected: str) -> None:
    """With the tokens put before a text, without those put after it: the completion continues it."""
    assert encode(rows_of(tmp_path, {"prompt": "1 + 2"})[0], base_tokenizer(adds)) == expected


def test_a_text_prompt_under_a_template_is_the_users_message(tmp_path: Path) -> None:
    """The same tokens as chat messages give."""
    text, chat = rows_of(tmp_path, {"prompt": "1 + 2 = ?"}, {"prompt": ASKED})
    assert text.is_text and not chat.is_text
    assert encode(text, make_tokenizer()) == "<bos> <user> 1 + 2 = ? <assistant>"
    assert encode(chat, make_tokenizer()) == "<bos> <user> 1 + 2 = ? <assistant>"


def test_chat_messages_without_a_template_are_refused(tmp_path: Path) -> None:
    """The error names the row and what to do."""
    found = rows_of(tmp_path, {"prompt": "1 + 2"}, {"prompt": ASKED})
    with pytest.raises(ValueError) as caught:
        tokenize_prompts(found, base_tokenizer(), 200, 9)
    assert str(caught.value).startswith(f"{tmp_path / 'mine.jsonl'}, line 2: prompt must be text, because")
    assert "(roles user): give the prompt as text, or put a chat_template.jinja" in str(caught.value)


def test_the_last_message_of_the_assistant_is_continued(tmp_path: Path) -> None:
    """Left open: no end token and no second turn; earlier answers of a longer chat are closed."""
    begun = [*ASKED, {"role": "assistant", "content": "we take 1"}]
    prefilled, longer = rows_of(tmp_path, {"prompt": begun}, {"prompt": [*begun, *ASKED]})
    assert encode(prefilled, make_tokenizer()) == "<bos> <user> 1 + 2 = ? <assistant> we take 1"
    assert (prefilled.prefill, longer.prefill) == ("we take 1", "")
    assert encode(longer, make_tokenizer()) == (
        "<bos> <user> 1 + 2 = ? <assistant> we take 1 <eos> <user> 1 + 2 = ? <assistant>"
    )


DATED = (
    "{%- if strftime_now is defined %}{%- set today = strftime_now('%-d %-m') %}"
    "{%- else %}{%- set today = 0 %}{%- endif %}{{ bos_token }} {{ today }} {{ messages[0]['content'] }}"
)


def test_a_template_that_prints_the_date_gives_the_same_prompts_tomorrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that their digest is the same, and the run resumes; for demonstrations too."""

    def at(day: int) -> tuple[str, str]:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: object = None) -> Clock:
                return cls(2026, 3, day)

        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
        tokenizer = make_tokenizer()
        tokenizer.chat_template = DATED
        size = len(tokenizer)
        found = rows_of(tmp_path, {"prompt": ASKED, "completion": "so 3"})
        shown = load_demonstrations(FileDemonstrationOptions(path=str(tmp_path / "mine.jsonl")))
        prompts, _ = tokenize_prompts(found, tokenizer, size, 32)
        rows, _ = tokenize_demonstrations(shown, tokenizer, size, RolloutConfig(), "run")
        assert words(prompts[0].token_ids) == words(tuple(rows.column("prompt_ids")[0].as_py()))
        assert tokenizer.apply_chat_template(ASKED, tokenize=False).startswith(f"<bos> {day} 3 ")
        return words(prompts[0].token_ids), source_digest(prompts, tmp_path)

    assert at(14) == at(15)
    assert at(14)[0] == "<bos> 1 1 1 + 2 = ?"


TEMPLATES = {
    "{{ raise_exception('System role not supported') }}": "System role not supported. Change the messages",
    "{{ documents.first.title }}": "UndefinedError: 'None' has no attribute 'first'",
    "{{ today.year }}": "UndefinedError: 'today' is undefined",
    "{{ messages[0]['content'] + 1 }}": "TypeError: can only concatenate str",
    "{% for message in messages %}": "TemplateSyntaxError: Unexpected end of template",
    "{{ '' }}": "prompt must have at least one token, got none",
    "{{ bos_token + ' ' + bos_token }} 1": "the chat template must put '<bos>' once, got it twice",
}


@pytest.mark.parametrize(("template", "said"), TEMPLATES.items())
def test_what_a_template_refuses_is_said_of_the_row(tmp_path: Path, template: str, said: str) -> None:
    """The template's message after file and line, for prompts and demonstrations; never a traceback."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    messages = [{"role": "system", "content": "be brief"}, *ASKED]
    found = rows_of(tmp_path, {"prompt": messages, "completion": "so 3"})
    shown = load_demonstrations(FileDemonstrationOptions(path=str(tmp_path / "mine.jsonl")))
    with pytest.raises(ValueError) as of_prompt:
        tokenize_prompts(found, tokenizer, 200, 9)
    with pytest.raises(ValueError) as of_demonstration:
        tokenize_demonstrations(shown, tokenizer, 200, RolloutConfig(), "run")
    for caught in (of_prompt, of_demonstration):
        assert str(caught.value).startswith(f"{tmp_path / 'mine.jsonl'}, line 1: ")
        assert said in str(caught.value)


def test_a_template_that_drops_a_begun_answer_is_refused(tmp_path: Path) -> None:
    """A message that it does not render cannot be continued."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    begun = rows_of(tmp_path, {"prompt": [*ASKED, {"role": "assistant", "content": "we take"}]})
    with pytest.raises(
        ValueError, match=r"line 1: the chat template of .* the final message does not appear"
    ):
        tokenize_prompts(begun, tokenizer, 200, 9)


def test_a_token_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    """Added to the tokenizer but not to the model: row, id and vocabulary, in prompts and completions."""
    tokenizer, size = make_tokenizer(), len(make_tokenizer())
    tokenizer.add_tokens(["<think>"])
    known, alien = rows_of(tmp_path, {"prompt": "1 + 2 = ?"}, {"prompt": "<think> 1 + 2 = ?"})
    assert prompt_ids(known, tokenizer, size)
    with pytest.raises(ValueError) as caught:
        tokenize_prompts([known, alien], tokenizer, size, 99)
    assert str(caught.value).startswith(
        f"{tmp_path / 'mine.jsonl'}, line 2: prompt must hold only tokens of the model's vocabulary of "
        f"{size}, got id {size} ('<think>')"
    )
    assert prompt_ids(alien, tokenizer, size + 1)
    rows_of(tmp_path, {"prompt": "1 + 2 = ?", "completion": "so 3 <think>"})
    shown = load_demonstrations(FileDemonstrationOptions(path=str(tmp_path / "mine.jsonl")))
    with pytest.raises(ValueError, match=f"line 1: completion must hold only tokens .* got id {size}"):
        tokenize_demonstrations(shown, tokenizer, size, RolloutConfig(), "run")


def test_a_prompt_that_begins_with_the_start_token_is_refused(tmp_path: Path) -> None:
    """The tokenizer adds one itself."""
    twice = rows_of(tmp_path, {"prompt": "<bos> 1 + 2"})
    with pytest.raises(ValueError, match="line 1: the tokenizer must put '<bos>' once, got it twice"):
        tokenize_prompts(twice, base_tokenizer(), 200, 9)


def test_a_folder_without_tokenizer_or_model_is_refused(tmp_path: Path) -> None:
    """Absent or damaged: one message that names the key and the folder."""
    for content in (None, "{}", '{"model_type": "no-such-model"}', '{"model_type": "vit"}'):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": 3}')
        with pytest.raises(ValueError, match=r"model\.path must hold a tokenizer, got"):
            load_tokenizer(ModelConfig(path=str(tmp_path)))
        with pytest.raises(ValueError, match=r"model\.path must be a Hugging Face causal LM folder, got"):
            load_vocab_size(ModelConfig(path=str(tmp_path)))
