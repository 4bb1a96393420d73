"""How likely two texts of a group are equivalent, by the kinds of `equivalence` of the scorer `partition`.

In: a prompt and D distinct texts. Out: `Edges`: a symmetric matrix of probabilities [D, D] with ones on its
diagonal, and numbers about how it was made. A model that fails raises, so that no pair counts as different.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from configs.kinds.partition import PartitionOptions
from rewards.judge_request import as_data
from rewards.model_calls import ClassifyReply, GenerateReply, GenerateRequest, Model, ModelCallError
from rewards.partition_rules import Floats
from rollouts.records import Prompt

PROMPT_FILE: Final = Path(__file__).with_name("prompts") / "equivalence.txt"
"""The judge's question, if the options name no other file."""
_VERDICT = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Edges:
    """`probability_DD` that two texts are equivalent; `numbers` about the model's calls, for the rows."""

    probability_DD: Floats
    numbers: Mapping[str, float] = field(default_factory=dict)


Equivalence = Callable[[Prompt, Sequence[str]], Awaitable[Edges]]


@dataclass(frozen=True, slots=True)
class PairCalibration:
    """probability = 1 / (1 + exp(-(scale x margin + shift))), equivalent from `threshold` on.

    `template` makes one text of a pair, with {first} and {second}; empty if the model takes pairs.
    """

    scale: float = 1.0
    shift: float = 0.0
    threshold: float = 0.5
    template: str = ""


def read_calibration(path: str) -> PairCalibration:
    """The calibration in a JSON file such as `polyphony lab train-equivalence` writes; the default for "".

    A relative path is searched in the working directory, then beside the packages.

    Raises:
        ValueError: there is no such file, or it has no such calibration; the message names it.
    """
    if not path:
        return PairCalibration()
    found = _calibration_file(path)
    try:
        content = json.loads(found.read_text(encoding="utf-8"))
        numbers = {name: float(content[name]) for name in ("scale", "shift", "threshold")}
        template = str(content["template"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{found}: must be JSON with scale, shift, threshold and template: {error!r}"
        ) from error
    if template and not all(f"{{{name}}}" in template for name in ("first", "second")):
        raise ValueError(f"{found}: template must have {{first}} and {{second}}, got {template!r}")
    return PairCalibration(template=template, **numbers)


def _calibration_file(path: str) -> Path:
    places = [Path.cwd() / path, Path(__file__).resolve().parents[1] / path]
    # The working directory first: a file of the user goes before one of the package.
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ValueError(f"calibration must be an existing file, got {path!r}")
    return found.resolve()


def start(options: PartitionOptions) -> PartitionOptions:
    """Check the files before a run starts. Their paths in the returned options are absolute.

    Raises:
        ValueError: a file cannot be used.
    """
    read_calibration(options.calibration)
    read_template(options.prompt_file)
    # Absolute, because scorers run in processes with another working directory.
    return replace(
        options,
        calibration=str(_calibration_file(options.calibration)) if options.calibration else "",
        prompt_file=str(Path(options.prompt_file).resolve()) if options.prompt_file else "",
    )


def threshold_of(options: PartitionOptions) -> float:
    """`options.threshold`, or if that is 0 the calibration's, which is 0.5 without a file."""
    return options.threshold or read_calibration(options.calibration).threshold


def equivalence(options: PartitionOptions, models: Mapping[str, Model]) -> Equivalence:
    """The function that `options.equivalence` names.

    Raises:
        ValueError: it is unknown, its model is missing, or a file that it needs cannot be used.
    """
    if options.equivalence in ("answer", "behaviour"):
        return _same
    if options.equivalence == "ngram":
        return _NgramOverlap(options.ngram)
    if options.model not in models:
        raise ValueError(f"partition: model must be one of {sorted(models)}, got {options.model!r}")
    model = models[options.model]
    if options.equivalence == "embedding":
        return _Embedding(model)
    if options.equivalence == "cross_encoder":
        return _CrossEncoder(model, read_calibration(options.calibration), options.both_orders)
    if options.equivalence == "judge":
        return _Judge(model, read_template(options.prompt_file), options.both_orders, options.max_tokens)
    raise ValueError(f"partition: unknown equivalence {options.equivalence!r}")


async def _same(prompt: Prompt, texts: Sequence[str]) -> Edges:
    """0 for all pairs: the texts are distinct."""
    return Edges(np.eye(len(texts)))


class _NgramOverlap:
    """|A and B| / max(|A|, |B|) for the sets of word n-grams A and B of two texts, in lower case.

    With n = 1 and a threshold of 0.5 this is DARLING's rule for short answers, but for repeated words.
    A text of fewer than n words is one n-gram.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    async def __call__(self, prompt: Prompt, texts: Sequence[str]) -> Edges:
        grams = [self._grams(text) for text in texts]
        pairs = _pairs(texts)
        shared = [
            len(grams[first] & grams[second]) / max(len(grams[first]), len(grams[second]))
            for first, second in pairs
        ]
        return Edges(_matrix(len(texts), pairs, shared))

    def _grams(self, text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        starts = range(max(1, len(words) - self._size + 1))
        return {tuple(words[start : start + self._size]) for start in starts}


class _Embedding:
    """Cosine of the texts' embeddings, at least 0."""

    def __init__(self, model: Model) -> None:
        self._model = model

    async def __call__(self, prompt: Prompt, texts: Sequence[str]) -> Edges:
        replies = await self._model.embed(texts)
        vectors_DH = np.array([reply.vector for reply in replies], np.float64)
        lengths_D = np.linalg.norm(vectors_DH, axis=1)
        if not (np.isfinite(lengths_D).all() and (lengths_D > 0).all()):
            raise ModelCallError(f"embeddings must have a finite length above 0, got {lengths_D.tolist()}")
        # Dot products one by one: a matrix product's last digit depends on the order of the texts.
        units = [vector / length for vector, length in zip(vectors_DH, lengths_D, strict=True)]
        pairs = _pairs(texts)
        cosines = [float(np.clip(math.fsum(units[a] * units[b]), 0.0, 1.0)) for a, b in pairs]
        numbers = {"model_calls": float(len(texts)), "cut": float(sum(reply.was_cut for reply in replies))}
        return Edges(_matrix(len(texts), pairs, cosines), numbers)


class _CrossEncoder:
    """Calibrated probability of a classifier that reads both texts, the mean margin of both orders.

    The margin is the logit of the last class less the log-sum-exp of the others', as the released DARLING
    client takes the last class; a single logit is itself the margin.
    """

    def __init__(self, model: Model, calibration: PairCalibration, both_orders: bool) -> None:
        self._model, self._calibration, self._both = model, calibration, both_orders

    async def __call__(self, prompt: Prompt, texts: Sequence[str]) -> Edges:
        pairs = _pairs(texts)
        asked = [*pairs, *((b, a) for a, b in pairs)] if self._both else pairs
        replies = await self._model.classify([self._input(texts[a], texts[b]) for a, b in asked])
        margins = [_margin(reply) for reply in replies]
        scale, shift = self._calibration.scale, self._calibration.shift
        probabilities = [_logistic(scale * each + shift) for each in _mean_of_orders(margins, len(pairs))]
        numbers = {"model_calls": float(len(asked)), "cut": float(sum(reply.was_cut for reply in replies))}
        return Edges(_matrix(len(texts), pairs, probabilities), numbers)

    def _input(self, first: str, second: str) -> str | tuple[str, str]:
        if not self._calibration.template:
            return (first, second)
        return filled(self._calibration.template, {"first": first, "second": second})


class _Judge:
    """1 where a model says that two texts are equivalent, 0 where it says no; 1/2 where both orders differ.

    Raises:
        ModelCallError: a reply has neither yes nor no, or both.
    """

    def __init__(self, model: Model, template: str, both_orders: bool, max_tokens: int) -> None:
        self._model, self._template = model, template
        self._both, self._max_tokens = both_orders, max_tokens

    async def __call__(self, prompt: Prompt, texts: Sequence[str]) -> Edges:
        pairs = _pairs(texts)
        asked = [*pairs, *((b, a) for a, b in pairs)] if self._both else pairs
        question = "\n\n".join(content for role, content in prompt.messages if role != "assistant")
        requests = [self._request(question, texts[a], texts[b]) for a, b in asked]
        replies = await self._model.generate(requests)
        verdicts = _mean_of_orders([_verdict(reply) for reply in replies], len(pairs))
        numbers = {
            "model_calls": float(len(asked)),
            "tokens": float(sum(each.num_prompt_tokens + each.num_completion_tokens for each in replies)),
            "cost": math.fsum(reply.cost for reply in replies),
        }
        return Edges(_matrix(len(texts), pairs, verdicts), numbers)

    def _request(self, question: str, first: str, second: str) -> GenerateRequest:
        # As data: a server reads the whole chat at once, and `<|im_end|>` in an answer would end the message.
        values = {"question": question, "first": first, "second": second}
        content = filled(self._template, {name: as_data(text) for name, text in values.items()})
        return GenerateRequest(
            prompt=(("user", content),), max_tokens=self._max_tokens, choices=("yes", "no")
        )


def read_template(path: str) -> str:
    """The judge's question in a file with {question}, {first} and {second}; the built-in one for "".

    Raises:
        ValueError: there is no such file, or a placeholder is missing; the message names it.
    """
    file = Path(path) if path else PROMPT_FILE
    try:
        template = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompt_file must be a readable text file, got {str(file)!r}: {error}") from error
    if missing := [name for name in ("first", "second") if f"{{{name}}}" not in template]:
        raise ValueError(f"{file}: must have the placeholder {{{missing[0]}}}")
    return template


def filled(template: str, values: Mapping[str, str]) -> str:
    """The template with its placeholders replaced, in one pass: a value with braces is left as it is."""
    pattern = "|".join(re.escape(f"{{{name}}}") for name in values)
    return re.sub(pattern, lambda match: values[match[0][1:-1]], template)


def _verdict(reply: GenerateReply) -> float:
    words = {word.lower() for word in _VERDICT.findall(reply.text)}
    if len(words) != 1:
        raise ModelCallError(f"the judge must say yes or no, got {reply.text[:80]!r}")
    return float(words == {"yes"})


def _margin(reply: ClassifyReply) -> float:
    *others, last = reply.logits
    if not all(map(math.isfinite, reply.logits)):
        raise ModelCallError(f"logits must be finite, got {reply.logits}")
    if not others:
        return last
    highest = max(others)
    return last - highest - math.log(math.fsum(math.exp(each - highest) for each in others))


def _mean_of_orders(values: Sequence[float], count: int) -> list[float]:
    """`count` values: the mean of the first and the second half, if there are two halves."""
    if len(values) == count:
        return list(values)
    return [(first + second) / 2.0 for first, second in zip(values[:count], values[count:], strict=True)]


def _logistic(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value)) if value > -700.0 else 0.0


def _pairs(texts: Sequence[str]) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(len(texts)), 2))


def _matrix(size: int, pairs: Sequence[tuple[int, int]], values: Sequence[float]) -> Floats:
    """Symmetric, with ones on the diagonal."""
    matrix_DD = np.eye(size)
    for (first, second), value in zip(pairs, values, strict=True):
        matrix_DD[first, second] = matrix_DD[second, first] = value
    return matrix_DD
