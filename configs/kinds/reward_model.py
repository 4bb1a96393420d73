"""Options of the scorer `reward_model`: the score of a frozen classifier."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from configs.errors import Broken, nearest
from configs.fields import NOT_EMPTY, NOT_NEGATIVE, NOTHING, POSITIVE, Rule, one_of, option
from configs.kinds.base import Options
from configs.kinds.models import CLASSIFY, example


@dataclass
class RewardModelOptions(Options):
    """The score of a frozen classifier, such as a reward model or a cross-encoder.

    It is scale x activation(logit of `label`) + bias. The rows have the raw logit, the number of tokens and
    whether the input was cut, as numbers `<scorer>/logit`, `<scorer>/tokens` and `<scorer>/cut`. Set
    `concurrency` above 1, so that a batch has completions of several groups.
    """

    model: str = option("", Rule(bool, f"must name a model under models, such as {example(CLASSIFY)}"))
    """Name of the classifier under `models`."""
    label: str = option("0", NOT_EMPTY)
    """Index of the label whose logit counts, or its name in the `id2label` of the model's config.json."""
    activation: str = option("none", one_of("none", "sigmoid", "softmax"))
    """none (the raw logit), sigmoid (of that logit alone) or softmax (over all labels)."""
    input: str = option("chat", one_of("chat", "pair", "text", "completion"))
    """What the model reads: chat (the prompt's messages and the completion as the assistant's, in the chat
    template of the model), pair (prompt and completion as two texts, for cross-encoders), text (both as one
    text, a line between them) or completion (without the prompt)."""
    over_long: str = option("cut_left", one_of("cut_left", "cut_right", "no_score"))
    """What happens to an input longer than the model's `max_model_len`: its beginning or its end is cut off,
    or it gets no score."""
    scale: float = option(1.0)
    """Factor of the activated logit."""
    bias: float = option(0.0)
    """Added after scaling."""
    max_batch: int = option(64, POSITIVE, NOTHING)
    """Completions in one call of the model."""
    max_wait_ms: float = option(5.0, NOT_NEGATIVE, NOTHING)
    """Time that the first completion of a batch waits for others."""

    def check(self) -> Iterator[Broken]:
        if self.scale == 0:
            yield "scale", "must not be 0: every completion would have the same score"

    def model_names(self) -> Mapping[str, str]:
        return {"model": self.model}

    def model_tasks(self) -> Mapping[str, tuple[str, ...]]:
        return {"model": (CLASSIFY,)}

    def with_folders(self, folders: Mapping[str, Path]) -> Self:
        """The options with the label as an index."""
        names = _labels(folders[self.model])
        if self.label in names:
            return replace(self, label=str(names.index(self.label)))
        if self.label.isdecimal() and int(self.label) < len(names):
            return self
        close = nearest(self.label, names)
        hint = f" (did you mean {close}?)" if close else ""
        raise ValueError(
            f"label = {self.label!r}: must be a label of {folders[self.model]}, by name ({', '.join(names)}) "
            f"or index (below {len(names)}){hint}"
        )


def _labels(folder: Path) -> list[str]:
    """The names of a classifier's labels, in the order of its logits.

    config.json has them as `id2label`. Without, there are `num_labels`, 2 if that is missing too, as in
    transformers.
    """
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        named = {int(index): str(name) for index, name in (content.get("id2label") or {}).items()}
        number = len(named) or int(content.get("num_labels", 2))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"model: {folder / 'config.json'} must be a model's config, got {error}") from error
    return [named.get(index, f"LABEL_{index}") for index in range(number)]
