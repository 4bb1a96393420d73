"""Options of the scorer `partition`, diversity within a group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from configs.errors import Broken
from configs.fields import POSITIVE, SHARE, one_of, option
from configs.kinds.base import Options, RunView
from configs.kinds.models import CLASSIFY, EMBED, GENERATE, example

_BY_MODEL: Final = {"embedding": EMBED, "cross_encoder": CLASSIFY, "judge": GENERATE}
"""Kinds of equivalence that ask a model -> the model's task."""


@dataclass
class PartitionOptions(Options):
    """The share of other completions of the group that are not equivalent to this one, as in DARLING."""

    equivalence: str = option("answer", one_of("answer", "ngram", "behaviour", *_BY_MODEL))
    """answer (what `quality` read as the answer is equal), ngram (share of common word n-grams), behaviour
    (programs with the same outcome in every test of `quality`), embedding (cosine), cross_encoder (a
    classifier of pairs) or judge (a model says yes or no)."""
    model: str = ""
    """The frozen model under `models`, for the last three."""
    rule: str = option("greedy", one_of("components", "greedy", "complete"))
    """components (union-find, as DARLING trains), greedy (by representatives) or complete (linkage).
    docs/results/partition.md compares them under wrong pairs."""
    threshold: float = option(0.0, SHARE)
    """Two texts are equivalent from this probability, cosine or overlap on; 0 takes that of `calibration`,
    and 0.5 without one."""
    over: str = option("correct", one_of("all", "correct"))
    """correct: only correct completions are compared, and the others score `floor`."""
    quality: str = ""
    """The scorer that says which completions are correct, and which answer each gives."""
    correct_from: float = 1.0
    """Score of `quality` from which a completion is correct, where that scorer reads no answers."""
    score: str = option("size", one_of("size", "distance"))
    """size ((N - s) / (N - 1), s the class's size) or distance (1 - the mean probability of the pairs)."""
    normalise: str = option("none", one_of("none", "largest"))
    """largest: divide by the largest score of the group."""
    floor: float = option(0.1, SHARE)
    """The smallest score. DARLING's code has 0.1; at 0, a group of equal answers learns nothing with combine
    multiply."""
    ngram: int = option(4, POSITIVE)
    """Words in an n-gram."""
    both_orders: bool = True
    """Ask a cross-encoder or judge in both orders and take the mean, so that none matters."""
    calibration: str = ""
    """File of a cross-encoder: how its logits become a probability, the threshold, and the template of a
    pair. `polyphony lab train-equivalence` writes one beside the model; without, the model is given pairs."""
    prompt_file: str = ""
    """The judge's question, a text with {question}, {first} and {second}; empty for the built-in one."""
    max_tokens: int = option(8, POSITIVE)
    """Tokens of a judge's reply."""

    def model_names(self) -> Mapping[str, str]:
        return {"model": self.model} if self.model else {}

    def model_tasks(self) -> Mapping[str, tuple[str, ...]]:
        return {"model": (_BY_MODEL[self.equivalence],)} if self.equivalence in _BY_MODEL else {}

    def reads(self) -> Mapping[str, str]:
        return {"quality": self.quality} if self.quality else {}

    def files(self) -> tuple[str, ...]:
        return tuple(path for path in (self.calibration, self.prompt_file) if path)

    def notes(self) -> Iterator[str]:
        if self.equivalence == "answer" and self.over == "correct":
            yield (
                "where a problem has one right answer, all correct completions are equivalent and score the "
                "floor: set over=all or another equivalence"
            )

    def check(self) -> Iterator[Broken]:
        by_model = self.equivalence in _BY_MODEL
        if by_model and not self.model:
            task = _BY_MODEL[self.equivalence]
            how = f"such as {example(task)}"
            yield (
                "model",
                f"must name a model under models with task {task}, {how}: {self.equivalence} asks it",
            )
        if self.model and not by_model:
            yield "model", f"must be empty: {self.equivalence} asks no model"
        if self.calibration and self.equivalence != "cross_encoder":
            yield "calibration", "must be empty: only a cross_encoder is calibrated"
        if self.prompt_file and self.equivalence != "judge":
            yield "prompt_file", "must be empty: only a judge is asked a question"
        reads_answers = self.equivalence in ("answer", "behaviour")
        if not self.quality and self.over == "correct":
            other = " and another equivalence" if reads_answers else ""
            yield "quality", f"must name the scorer that says what is correct, or set over=all{other}"
        elif not self.quality and reads_answers:
            yield "quality", "must name the scorer that reads the answers, or equivalence must be another"

    def check_run(self, key: str, run: RunView) -> Iterator[Broken]:
        quality = run.scorers.get(self.quality)
        if self.equivalence == "behaviour" and quality and not quality.kind.outcomes:
            yield (
                f"{key}.quality",
                f"must be a scorer that runs programs, such as code: {self.quality} runs none",
            )
