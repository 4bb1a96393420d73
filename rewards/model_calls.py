"""Calls to language models, for scorers and refiners. In: texts or messages. Out: texts, scores or vectors.

`Model` is what a scorer or a refiner is given for each model that its options name, whoever serves it: actors
of the run (section `models` of a config) or an endpoint. Imports no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Messages = tuple[tuple[str, str], ...]
"""A chat as (role, content) pairs."""
TextOrPair = str | tuple[str, str] | Messages


class ModelCallError(RuntimeError):
    """A call that gave no result: refused, unreachable, or too many failures. The message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One text to generate. `prompt` is a chat, which gets the model's template, or token ids as they are.

    Equal requests give equal replies as far as the model's server allows: `seed` is used at temperatures
    above 0.
    """

    prompt: Messages | tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    json_schema: str = ""
    """JSON Schema, as JSON text, of the reply; "" for any text. An engine of the run samples only tokens that
    it allows (structured outputs); an endpoint is sent it as `response_format`."""
    choices: tuple[str, ...] = ()
    """Texts of which the reply is one, from an engine of the run; endpoints are not held to them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateReply:
    """What a model wrote. `finish_reason` is ``stop`` or ``length``; counts are in tokens."""

    text: str
    finish_reason: str
    num_prompt_tokens: int
    num_completion_tokens: int
    token_ids: tuple[int, ...] = ()
    """Empty if the server does not return them."""
    cost: float = 0.0
    """In the currency of the prices that the model was given; 0 without prices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyReply:
    """The raw logits of one input, and whether the input was cut to the model's limit."""

    logits: tuple[float, ...]
    num_tokens: int
    was_cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedReply:
    """The embedding of one input (not normalised), and whether the input was cut to the model's limit."""

    vector: tuple[float, ...]
    num_tokens: int
    was_cut: bool = False


OverLong = Literal["cut_left", "cut_right", "refuse"]


class Model(Protocol):
    """One model with one task; the methods of other tasks raise ValueError.

    Replies are in the order of the inputs. A call ends with its caller's deadline (cancellation).

    Raises:
        ModelCallError: no result could be had.
        ValueError: the model cannot do what is asked: another task, an input longer than the model's limit.
    """

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[GenerateReply]: ...

    async def classify(
        self, inputs: Sequence[TextOrPair], over_long: OverLong = "cut_left"
    ) -> list[ClassifyReply]: ...

    async def embed(self, inputs: Sequence[str], over_long: OverLong = "cut_right") -> list[EmbedReply]: ...
