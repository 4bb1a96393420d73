"""Token ids of a prompt: chat messages by the chat template, plain text unchanged.

Used by `trainer.data.prompts` and `trainer.data.demonstrations` before any actor starts. Every failure of a
template or vocabulary becomes one ValueError that names the row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from configs.schema import ModelConfig
from rollouts.records import Demonstration, Prompt

FIXED_NOW: Final = datetime(2026, 1, 1)
"""What `strftime_now` of a chat template formats. With today's date the prompts of a run would differ from
day to day, and it could not resume tomorrow."""
_NUM_NAMED: Final = 3

if TYPE_CHECKING:  # the base install reads datasets without transformers
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with or without a chat template.

    Raises:
        ValueError: the folder has no tokenizer that can be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)  # type: ignore[no-any-return]
    except Exception as error:  # the tokenizers library raises plain `Exception` for a damaged file
        raise ValueError(f"model.path must hold a tokenizer, got {model.path!r}: {error}") from error


def text_encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], tuple[int, ...]]:
    """text -> its token ids without special tokens; what a rollouter calls as `RolloutTools.encode`."""
    return lambda text: tuple(tokenizer.encode(text, add_special_tokens=False))


def tells_the_time(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template prints the date or time of rendering (Llama 3, Ministral)."""
    return "strftime_now" in str(tokenizer.chat_template)


def fixed_clock(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Keyword arguments of `apply_chat_template` that set the template's clock to `FIXED_NOW`."""
    # Only for templates that call it: tokenizers without a Jinja template refuse arguments they do not know.
    return {"strftime_now": FIXED_NOW.strftime} if tells_the_time(tokenizer) else {}


def load_vocab_size(model: ModelConfig) -> int:
    """V, the number of rows of the model's embedding. Every token id must be below it.

    Raises:
        ValueError: config.json cannot be read, or is not that of a language model.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
        return int(config.get_text_config().vocab_size)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"model.path must be a Hugging Face causal LM folder, got {model.path!r}: {error}"
        ) from error


def prompt_ids(
    prompt: Prompt | Demonstration, tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> tuple[int, ...]:
    """Token ids of a prompt, to be followed by the completion.

    With a chat template: the rendered messages and the generation prompt, dated `FIXED_NOW`. If the last
    message is the assistant's, it stays open and the completion continues it (a prefill, as in TRL). Without
    a template: the text, with the special tokens that the tokenizer puts before it.

    Raises:
        ValueError: chat messages without a template, messages that the template rejects, no tokens, a doubled
            BOS, or ids beyond the model's embedding. The message names the row.
    """
    if tokenizer.chat_template:
        ids = _chat_ids(prompt, tokenizer)
    elif prompt.is_text:
        ids = _text_ids(prompt.messages[0][1], tokenizer)
    else:
        raise ValueError(
            f"{row_of(prompt)}: prompt must be text, because the tokenizer of {tokenizer.name_or_path!r} has "
            f"no chat template, got chat messages (roles {_roles(prompt)}): give the prompt as text, or put "
            "a chat_template.jinja into the model's folder"
        )
    if not ids:
        raise ValueError(f"{row_of(prompt)}: prompt must have at least one token, got none")
    start = tokenizer.bos_token_id
    if start is not None and list(ids[:2]) == [start, start]:
        source = "chat template" if tokenizer.chat_template else "tokenizer"
        raise ValueError(
            f"{row_of(prompt)}: the {source} must put {tokenizer.bos_token!r} once, got it twice at the "
            "start (a second one may be the prompt's own text)"
        )
    check_ids(ids, tokenizer, vocab_size, f"{row_of(prompt)}: prompt")
    return tuple(int(token) for token in ids)


def check_ids(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, vocab_size: int, what: str) -> None:
    """Check that the model has an embedding for every id.

    Tokens added to the tokenizer after training may have none.

    Raises:
        ValueError: an id is not below `vocab_size`; the message begins with `what`.
    """
    unknown = next((token for token in ids if not 0 <= token < vocab_size), None)
    if unknown is not None:
        raise ValueError(
            f"{what} must hold only tokens of the model's vocabulary of {vocab_size}, got id {unknown} "
            f"({tokenizer.convert_ids_to_tokens(unknown)!r}): the tokenizer of {tokenizer.name_or_path!r} "
            "has tokens without an embedding in the model; resize the embedding, or take them out of the text"
        )


def row_of(prompt: Prompt | Demonstration) -> str:
    """How error messages name the row: by file and line, else by `prompt_id`."""
    return prompt.place or f"prompt {prompt.prompt_id}"


def named_rows(rows: Sequence[str]) -> str:
    """The first of several `row_of`, each file named once: "train.jsonl, lines 1, 2, 5, ..."."""
    numbers: dict[str, list[str]] = {}
    for row in rows[:_NUM_NAMED]:
        place, _, number = row.rpartition(" ")
        numbers.setdefault(place, []).append(number)
    shown = [f"{place}{'s' if len(found) > 1 else ''} {', '.join(found)}" for place, found in numbers.items()]
    return ", ".join([*shown, "..."] if len(rows) > _NUM_NAMED else shown)


def _chat_ids(prompt: Prompt | Demonstration, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    chat: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in prompt.messages]
    continues = bool(chat) and chat[-1]["role"] == "assistant"
    try:
        return tokenizer.apply_chat_template(  # type: ignore[no-any-return]
            chat,
            add_generation_prompt=not continues,
            continue_final_message=continues,
            return_dict=False,
            **fixed_clock(tokenizer),
        )
    except Exception as error:  # a template is code from the model's folder and may raise anything
        raise ValueError(
            f"{row_of(prompt)}: the chat template of {tokenizer.name_or_path!r} refuses the messages (roles "
            f"{_roles(prompt)}): {_first_line(error)}. Change the messages, or the template in that folder"
        ) from error


def _first_line(error: Exception) -> str:
    """The first line of the template's error: further lines would repeat the whole chat."""
    message = (str(error).strip() or "no message").splitlines()[0].rstrip(".")
    name = type(error).__name__
    # TemplateError comes from the template's own `raise_exception`, whose text needs no type before it.
    return message if name == "TemplateError" else f"{name}: {message}"


def _text_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the text, with the special tokens that the tokenizer puts before it but none after it."""
    ids: list[int] = tokenizer(text)["input_ids"]
    own: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    num_before = next(
        (at for at in range(len(ids) - len(own) + 1) if ids[at : at + len(own)] == own), len(ids) - len(own)
    )
    return ids[: num_before + len(own)]  # some tokenizers append EOS, but a completion must follow


def _roles(prompt: Prompt | Demonstration) -> str:
    return ", ".join(role for role, _ in prompt.messages)
