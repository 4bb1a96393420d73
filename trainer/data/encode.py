"""One prompt's token ids: chat messages under the chat template, plain text as it is. Used by `prompts` and
`demonstrations`.

Whatever a template or a vocabulary refuses becomes one ValueError that names the row, because a run must be
refused before its actors start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from configs.schema import ModelConfig
from rollouts.records import Demonstration, Prompt

if TYPE_CHECKING:  # the base install reads datasets without transformers
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with or without a chat template.

    Raises:
        ValueError: there is none that can be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)  # type: ignore[no-any-return]
    except Exception as error:  # the tokenizers library raises plain `Exception` for a damaged file
        raise ValueError(f"model.path must hold a tokenizer, got {model.path!r}: {error}") from error


def load_vocab_size(model: ModelConfig) -> int:
    """V, the rows of the model's embedding: a token id must be below it.

    Raises:
        ValueError: the folder's config.json cannot be read, or is of no language model.
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
    """Token ids of a prompt, ready for the completion to follow.

    With a chat template: its rendering of the messages, generation prompt included. A last message of the
    assistant is left open, so that the completion continues it (a prefill, as in TRL). Without a template:
    the text, with the special tokens that the tokenizer puts before it.

    Raises:
        ValueError: the template refuses the messages or does not exist, or the ids are none that the model
            can read; names the row.
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
    """Raise ValueError, beginning with `what`, if an id is not below the model's `vocab_size`.

    A tokenizer may know more tokens than the model has rows in its embedding: such as were added to it later.
    """
    alien = next((token for token in ids if not 0 <= token < vocab_size), None)
    if alien is not None:
        raise ValueError(
            f"{what} must hold only tokens of the model's vocabulary of {vocab_size}, got id {alien} "
            f"({tokenizer.convert_ids_to_tokens(alien)!r}): the tokenizer of {tokenizer.name_or_path!r} has "
            "tokens that the model has no embedding for; resize the embedding, or take them out of the text"
        )


def row_of(prompt: Prompt | Demonstration) -> str:
    """How a message names the row: the file and line, or else its `prompt_id`."""
    return prompt.place or f"prompt {prompt.prompt_id}"


def _chat_ids(prompt: Prompt | Demonstration, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    chat: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in prompt.messages]
    continues = bool(chat) and chat[-1]["role"] == "assistant"
    try:
        return tokenizer.apply_chat_template(  # type: ignore[no-any-return]
            chat,
            add_generation_prompt=not continues,
            continue_final_message=continues,
            return_dict=False,
        )
    except Exception as error:  # a template is code of the model's folder, and may raise anything
        raise ValueError(
            f"{row_of(prompt)}: the chat template of {tokenizer.name_or_path!r} refuses the messages (roles "
            f"{_roles(prompt)}): {_first_line(error)}. Change the messages, or the template in that folder"
        ) from error


def _first_line(error: Exception) -> str:
    """What the template said; a message of several lines repeats the whole chat after the first."""
    said = (str(error).strip() or "no message").splitlines()[0].rstrip(".")
    name = type(error).__name__
    return said if name == "TemplateError" else f"{name}: {said}"  # which `raise_exception` raises


def _text_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The text between no other tokens than those that the tokenizer puts before it, such as its BOS."""
    ids: list[int] = tokenizer(text)["input_ids"]
    own: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    num_before = next(
        (at for at in range(len(ids) - len(own) + 1) if ids[at : at + len(own)] == own), len(ids) - len(own)
    )
    return ids[: num_before + len(own)]  # some tokenizers end every text; a completion must follow this one


def _roles(prompt: Prompt | Demonstration) -> str:
    return ", ".join(role for role, _ in prompt.messages)
