"""Token ids of what a frozen model is asked about: texts, pairs, chats. Used by the actors of `models`.

In: an input of `rewards.model_calls`. Out: its token ids, cut to the model's limit where that is allowed.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from transformers import AutoConfig

from configs.kinds.models import ModelOptions
from configs.schema import ModelConfig
from rewards.model_calls import GenerateRequest, Messages, OverLong, TextOrPair
from rollouts.files import unicode_text
from rollouts.records import Prompt
from trainer.data.encode import fixed_clock, load_tokenizer, load_vocab_size, prompt_ids

_SIDES: Final = {"cut_left": "left", "cut_right": "right"}


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one input, and whether it was cut."""

    token_ids: tuple[int, ...]
    was_cut: bool = False
    type_ids: tuple[int, ...] = ()
    """Which text of a pair a token is of, for models that were trained with them."""


class ModelInputs:
    """Encodes inputs for one model. `limit` is the longest input in tokens. May be called from any thread."""

    def __init__(self, options: ModelOptions, limit: int) -> None:
        model = ModelConfig(path=options.path, trust_remote_code=options.trust_remote_code)
        self._tokenizer, self._vocab_size = load_tokenizer(model), load_vocab_size(model)
        config = AutoConfig.from_pretrained(options.path, trust_remote_code=options.trust_remote_code)
        # A tokenizer may tell the texts of a pair apart although the model has no embedding for that.
        self._has_types = getattr(config, "type_vocab_size", 0) > 1
        self._path, self._limit = options.path, limit
        # A tokenizer keeps the side on which it cuts as its own state.
        self._lock = threading.Lock()

    def to_generate(self, request: GenerateRequest) -> tuple[int, ...]:
        """The token ids of a request's prompt: a chat through the model's template, ids as they are.

        Raises:
            ValueError: the template refuses the chat, or there is no room for `max_tokens` after it.
        """
        ids = _ids_of(request.prompt)
        if ids is None:
            # `prompt_ids` names what it refuses by its place.
            chat = Prompt(
                prompt_id="",
                messages=_as_unicode(request.prompt),
                answer=None,
                domain="",
                place=f"a request to {self._path}",
            )
            with self._lock:
                ids = prompt_ids(chat, self._tokenizer, self._vocab_size)
        if len(ids) + request.max_tokens > self._limit:
            raise ValueError(
                f"{self._path}: a prompt and its max_tokens must be at most max_model_len = {self._limit} "
                f"tokens, got {len(ids)} + {request.max_tokens}"
            )
        return ids

    def encode(self, given: TextOrPair, over_long: OverLong) -> Encoded:
        """The token ids of a text, a pair or a chat. Special tokens are those that the tokenizer adds.

        A pair loses tokens of its longer text. A chat that is cut keeps the token that begins every sequence.

        Raises:
            ValueError: it is longer than the limit and must not be cut, it has no tokens, or the template
                refuses it.
        """
        given = _as_unicode(given)
        with self._lock:
            texts = _texts_of(given)
            encoded = self._texts(texts, over_long) if texts else self._chat(given, over_long)  # type: ignore[arg-type]
        if not encoded.token_ids:
            raise ValueError(f"{self._path}: an input must have at least one token, got none")
        return encoded

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """The texts of generated tokens, without special tokens."""
        with self._lock:
            return list(self._tokenizer.batch_decode(sequences, skip_special_tokens=True))

    def _texts(self, texts: tuple[str, ...], over_long: OverLong) -> Encoded:
        found = self._tokenizer(*texts)
        was_cut = len(found["input_ids"]) > self._limit
        if was_cut:
            self._refuse_if_asked(over_long, len(found["input_ids"]))
            self._tokenizer.truncation_side = _SIDES[over_long]
            strategy = "longest_first" if len(texts) > 1 else True
            found = self._tokenizer(*texts, truncation=strategy, max_length=self._limit)
        types = found.get("token_type_ids", ()) if self._has_types and len(texts) > 1 else ()
        return Encoded(tuple(found["input_ids"]), was_cut, tuple(types))

    def _chat(self, chat: Messages, over_long: OverLong) -> Encoded:
        ids = self._template(chat)
        if len(ids) <= self._limit:
            return Encoded(tuple(ids))
        self._refuse_if_asked(over_long, len(ids))
        if over_long == "cut_right":
            return Encoded(tuple(ids[: self._limit]), was_cut=True)
        start = ids[:1] if ids[0] == self._tokenizer.bos_token_id else []
        return Encoded((*start, *ids[len(ids) - self._limit + len(start) :]), was_cut=True)

    def _template(self, chat: Messages) -> list[int]:
        messages: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in chat]
        if not self._tokenizer.chat_template:
            raise ValueError(f"{self._path}: a chat needs a chat template, which the tokenizer has not")
        try:
            return list(
                self._tokenizer.apply_chat_template(
                    messages, return_dict=False, **fixed_clock(self._tokenizer)
                )
            )
        except Exception as error:  # a template is code from the model's folder and may raise anything
            raise ValueError(f"{self._path}: the chat template refuses a chat: {error}") from error

    def _refuse_if_asked(self, over_long: OverLong, length: int) -> None:
        if over_long == "refuse":
            raise ValueError(
                f"{self._path}: an input must be at most max_model_len = {self._limit} tokens, got {length}"
            )


def _as_unicode(given: Any) -> Any:
    """The input with U+FFFD for lone surrogates, which tokenizers refuse and a policy may write."""
    return unicode_text(given) if isinstance(given, str) else tuple(_as_unicode(each) for each in given)


def _ids_of(prompt: Messages | tuple[int, ...]) -> tuple[int, ...] | None:
    """The prompt if it is token ids; None for a chat."""
    ids = tuple(each for each in prompt if isinstance(each, int))
    return ids if len(ids) == len(prompt) else None


def _texts_of(given: TextOrPair) -> tuple[str, ...]:
    """The one or two texts; () for a chat."""
    if isinstance(given, str):
        return (given,)
    texts = tuple(each for each in given if isinstance(each, str))
    return texts if len(texts) == len(given) else ()
